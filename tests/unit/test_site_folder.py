"""A site's folder: made from an invitation, owned by one account, changed by newer invitations."""

import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_public_key,
)
from typer.testing import CliRunner

from client.privacy.policy import load_policy
from client.site.approval import read_approval, write_approval
from client.site.cli import site_app
from client.site.folder import load_site
from client.site.keys import read_key
from client.site.setup import init_site
from client.site.templates import ledger_command, privacy_text
from metarec_shared.cli import run as metarec
from metarec_shared.errors import MetaRecError, PrivacyError, SettingsError, TrustError
from metarec_shared.invitation import content_hash, file_hash, key_fingerprint
from tests.certificates import Authority
from tests.sites import make_invitation, make_site, resealed

KEY = Ed25519PrivateKey.generate()
FINGERPRINT = key_fingerprint(KEY.public_key())


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    return make_invitation(tmp_path / "invitation", KEY)


def run(*arguments: object, typed: str | None = None) -> Result:
    return CliRunner().invoke(site_app, [str(argument) for argument in arguments], input=typed)


def test_init_makes_a_folder_for_its_owner_alone(tmp_path: Path, invitation: Path) -> None:
    made = run("init", tmp_path / "site", "--invitation", invitation, "--name", "clinic")
    assert made.exit_code == 0, made.output
    folder = tmp_path / "site"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert names == {
        "site.toml", "site.key", "site.key.pub", "ca.crt", "catalogue", "catalogue/items.csv", "approved.json",
        "privacy.toml", "data", "excluded.txt", "state", "deploy", "deploy/Dockerfile", "deploy/compose.yaml",
        "deploy/metarec-site.service",
    }  # fmt: skip
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert f"signed by {FINGERPRINT}: compare it with the coordinator by phone" in made.stdout
    assert f"1. send {folder / 'site.key.pub'} to the coordinator" in made.stdout
    assert f"metarec site start {folder}" in made.stdout
    site = load_site(folder)
    assert (site.settings.name, site.settings.server, site.reading.on_bad_rows) == ("clinic", "127.0.0.1:9092", "skip")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing temporary is left"


def test_every_setting_of_a_new_site_has_a_comment(tmp_path: Path, invitation: Path) -> None:
    init_site(tmp_path / "site", invitation, "clinic")
    for line in (tmp_path / "site" / "site.toml").read_text().splitlines():
        assert not line or line.startswith(("#", "[")) or "  # " in line or " # " in line, line


def test_a_known_fingerprint_must_fit(tmp_path: Path, invitation: Path) -> None:
    init_site(tmp_path / "site", invitation, "clinic", fingerprint=FINGERPRINT)
    with pytest.raises(TrustError, match="this site trusts SHA256:other"):
        init_site(tmp_path / "other", invitation, "clinic", fingerprint="SHA256:other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("changed", ["catalogue/items.csv", "ca.crt", "metarec.fab", "invitation.json"])
def test_a_tampered_invitation_makes_no_site(tmp_path: Path, invitation: Path, changed: str) -> None:
    with (invitation / changed).open("ab") as file:
        file.write(b" ")
    with pytest.raises(TrustError):
        init_site(tmp_path / "site", invitation, "clinic")
    assert [path.name for path in tmp_path.iterdir()] == ["invitation"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, invitation: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not empty; a site needs a folder of its own"):
        init_site(tmp_path / "site", invitation, "clinic")
    (tmp_path / "site" / "notes.txt").unlink()
    init_site(tmp_path / "site", invitation, "clinic")
    assert load_site(tmp_path / "site").settings.name == "clinic"


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 64, "ä", "a.b", "a_b"])
def test_a_name_that_a_server_should_not_see_is_refused(tmp_path: Path, invitation: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="a site's name is 1 to 63 letters"):
        init_site(tmp_path / "site", invitation, name)


def test_the_key_is_what_openssh_makes_and_reads(tmp_path: Path, invitation: Path) -> None:
    init_site(tmp_path / "site", invitation, "clinic")
    private = tmp_path / "site" / "site.key"
    public = load_ssh_public_key((tmp_path / "site" / "site.key.pub").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp384r1"
    assert read_key(private).public_key() == public
    printed = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, text=True, check=True).stdout
    assert printed.split()[:2] == (tmp_path / "site" / "site.key.pub").read_text().split()[:2]


def test_a_key_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    keys = {
        "wanted an ECDSA key on P-384": rsa.generate_private_key(65537, 2048),
        "ssh-keygen -t ecdsa -b 384": ec.generate_private_key(ec.SECP256R1()),
    }
    for message, key in keys.items():
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        with pytest.raises(TrustError, match=message):
            read_key(path)
    path.unlink()
    locked = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "a passphrase", "-f", path]
    subprocess.run(locked, check=True, timeout=60)
    with pytest.raises(TrustError, match="no OpenSSH private key without passphrase"):
        read_key(path)
    path.unlink()
    with pytest.raises(TrustError, match="cannot read the key"):
        read_key(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[site]", "[side]"), r"wanted tables \[site\] and \[data\], got side"),
        (('name = "clinic"', 'nam = "clinic"'), "unknown setting site.nam"),
        (('server = "127.0.0.1:9092"', 'server = "127.0.0.1"'), "site.server must be host:port"),
        (('server = "127.0.0.1:9092"', 'server = "a:99999"'), "site.server must be host:port"),
        (("port = 9094", "port = 0"), "site.port must be between 1 and 65535"),
        (('log-format = "text"', 'log-format = "xml"'), "site.log-format must be one of text, json"),
        (('on-bad-rows = "skip"', 'on-bad-rows = "maybe"'), "data.on-bad-rows must be one of error, skip"),
        (("rating-low = 0.0", "rating-low = 2.0"), r"data.rating-high must not be below data.rating-low \(2\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, invitation: Path, change: tuple[str, str], message: str
) -> None:
    init_site(tmp_path / "site", invitation, "clinic")
    path = tmp_path / "site" / "site.toml"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(SettingsError, match=message):
        load_site(tmp_path / "site")


@pytest.mark.parametrize("mode", ["site", "central", "local"])
def test_the_privacy_file_and_the_command_for_its_ledger_fit_each_other(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "privacy.toml"
    path.write_text(privacy_text(mode))  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match=r"privacy\.users"):
        load_policy(path)
    path.write_text(path.read_text().replace("users = 0 ", "users = 4000 "))
    policy = load_policy(path)
    words = ledger_command(tmp_path, mode).split()  # type: ignore[arg-type]
    assert words[:3] == ["metarec", "privacy", "init"]
    from client.privacy.cli import privacy_app
    from client.privacy.ledger import Ledger

    made = CliRunner().invoke(privacy_app, words[2:])
    assert made.exit_code == 0, made.output
    assert list(Ledger.open(tmp_path / policy.ledger, tmp_path / policy.witness).plan) == policy.plan()


def test_a_site_that_protects_nobody_says_so_and_needs_no_ledger(tmp_path: Path, invitation: Path) -> None:
    made = run("init", tmp_path / "site", "--invitation", invitation, "--name", "clinic", "--mode", "none")
    assert "ledger" not in made.stdout
    assert load_policy(tmp_path / "site" / "privacy.toml").mode == "none"


def newer(tmp_path: Path, **changes: object) -> Path:
    return make_invitation(tmp_path / "newer", KEY, **changes)  # type: ignore[arg-type]


def test_approving_shows_what_differs_and_takes_it_over(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    before = replace(read_approval(site.approved), bundle="0" * 64, metarec="0.0.1")
    write_approval(site.approved, before)  # an older MetaRec was installed then
    authority = Authority.new("another")
    path = newer(tmp_path, items=40, server="films.example:9092", authority=authority)
    refused = run("approve", site.folder, "--invitation", path, typed="n\n")
    assert refused.exit_code == 1
    assert read_approval(site.approved) == before
    shown = run("approve", site.folder, "--invitation", path, typed="y\n").stdout
    after = read_approval(site.approved)
    assert f"bundle: {before.bundle} -> {after.bundle}" in shown
    assert f"catalogue: {before.catalogue} -> {after.catalogue}" in shown
    assert "items: 40 after 30; 10 added, 0 removed, 0 with another text" in shown
    assert "server: 127.0.0.1:9092 -> films.example:9092" in shown
    assert "the authority of the server's certificate is another one" in shown
    assert content_hash(site.catalogue) == after.catalogue
    assert site.authority.read_bytes() == (path / "ca.crt").read_bytes()
    assert load_site(site.folder).settings.server == "films.example:9092"
    assert (after.signing_key, after.text_encoder) == (FINGERPRINT, "random")
    for part in (site.catalogue, site.catalogue / "items.csv", site.authority, site.approved):
        assert not stat.S_IMODE(part.stat().st_mode) & 0o077
    assert not list(site.folder.glob(".approve*"))


def test_an_invitation_older_than_the_approved_one_is_refused(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    older = newer(tmp_path, items=20, issued="2026-03-01T12:59:59+01:00")
    result = run("approve", site.folder, "--invitation", older, "--yes")
    assert isinstance(result.exception, TrustError)
    assert "issued 2026-03-01T12:59:59+01:00, before the one that was approved" in str(result.exception)
    resealed(older, KEY, issued="2026-03-01T12:00:01+00:00")
    assert run("approve", site.folder, "--invitation", older, "--yes").exit_code == 0
    assert read_approval(site.approved).issued == "2026-03-01T12:00:01+00:00"
    resealed(older, KEY, issued="2026-03-02")
    with pytest.raises(TrustError, match="issued must be a time with its zone"):
        init_site(tmp_path / "other", older, "clinic")


def test_what_an_older_metarec_approved_can_still_be_followed(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    approved = json.loads(site.approved.read_text())
    del approved["issued"]
    site.approved.write_text(json.dumps(approved))
    assert run("approve", site.folder, "--invitation", invitation, "--yes").exit_code == 0
    assert read_approval(site.approved).issued


def test_an_address_that_the_operator_chose_stays(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    path = site.folder / "site.toml"
    path.write_text(path.read_text().replace("127.0.0.1:9092", "gateway:443"))
    told = run("approve", site.folder, "--invitation", newer(tmp_path, server="films.example:1"), "--yes").stdout
    assert load_site(site.folder).settings.server == "gateway:443"
    assert '1. set server = "films.example:1" in' in told


def test_changed_texts_are_counted_and_an_unreadable_catalogue_is_said(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    other = newer(tmp_path)
    items = other / "catalogue" / "items.csv"
    items.write_text(items.read_text().replace("number 7", "number seven"))
    resealed(other, KEY, catalogue=content_hash(other / "catalogue"))
    assert (
        "0 added, 0 removed, 1 with another text" in run("approve", site.folder, "--invitation", other, "--yes").stdout
    )
    items.write_text("nothing\n")
    resealed(other, KEY, catalogue=content_hash(other / "catalogue"))
    assert "items: cannot be compared" in run("approve", site.folder, "--invitation", other, "--yes").stdout


def test_an_invitation_by_another_key_is_not_approved(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    stranger = make_invitation(tmp_path / "stranger", Ed25519PrivateKey.generate(), items=40)
    result = run("approve", site.folder, "--invitation", stranger, "--yes")
    assert isinstance(result.exception, TrustError)
    assert f"this site trusts {FINGERPRINT}" in str(result.exception)
    assert len((site.catalogue / "items.csv").read_text().splitlines()) == 31


def test_a_bundle_of_another_version_says_what_to_install(tmp_path: Path, invitation: Path) -> None:
    resealed(invitation, KEY, metarec="9.9.9")
    said = r"the bundle calls MetaRec 9\.9\.9, installed is .*: pip install metarec==9\.9\.9"
    with pytest.raises(TrustError, match=said):
        init_site(tmp_path / "site", invitation, "clinic")
    assert not (tmp_path / "site").exists()


def test_a_bundle_of_code_that_is_not_installed_is_never_approved(tmp_path: Path, invitation: Path) -> None:
    foreign = newer(tmp_path, bundle=b"any code")
    got, wanted = file_hash(foreign / "metarec.fab"), file_hash(invitation / "metarec.fab")
    said = f"the bundle has the SHA-256 {got}, the installed MetaRec .* makes {wanted}"
    with pytest.raises(TrustError, match=said):
        init_site(tmp_path / "site", foreign, "clinic")
    assert not (tmp_path / "site").exists()
    site = make_site(tmp_path / "site", invitation)
    before = read_approval(site.approved)
    result = run("approve", site.folder, "--invitation", foreign, "--yes")
    assert isinstance(result.exception, TrustError)
    assert got in str(result.exception)
    assert read_approval(site.approved) == before


@pytest.mark.parametrize("content", [None, "{", "[]", '{"bundle": "a"}'])
def test_without_a_readable_approval_nothing_is_approved(tmp_path: Path, invitation: Path, content: str | None) -> None:
    site = make_site(tmp_path / "site", invitation)
    site.approved.unlink() if content is None else site.approved.write_text(content)
    with pytest.raises(TrustError, match="run `metarec site approve`"):
        read_approval(site.approved)


def excluded(folder: Path) -> list[str]:
    return (folder / "excluded.txt").read_text().splitlines()


def test_excluded_users_are_kept_once_and_privately(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    more = tmp_path / "more.txt"
    more.write_text("u3\n\nnobody\n")
    said = run("exclude", site.folder, "u5", "u3", "--file", more)
    assert said.exit_code == 0, said.output
    assert excluded(site.folder) == ["nobody", "u3", "u5"]
    assert stat.S_IMODE(site.excluded.stat().st_mode) == 0o600
    assert "3 more users are excluded, from the next message on" in said.stdout
    assert "warning: not in the data: 1 of 4, number 4 of those given" in said.stdout
    assert "nobody" not in said.stdout, "ids are not printed"
    assert run("exclude", site.folder, "u5").stdout.startswith("0 more users are excluded")
    assert excluded(site.folder) == ["nobody", "u3", "u5"]


def test_a_lost_file_of_excluded_users_is_not_begun_anew(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    site.excluded.unlink()
    assert isinstance(run("exclude", site.folder, "u5").exception, MetaRecError)
    assert not site.excluded.exists()
    site.excluded.touch()
    assert isinstance(run("exclude", site.folder, " ").exception, MetaRecError)
    assert run("exclude", site.folder).exit_code == 2


def test_excluding_works_where_the_data_cannot_be_read(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    (site.data / "interactions.csv").unlink()
    said = run("exclude", site.folder, "u5").stdout
    assert "whether they are in the data is not known: DataError" in said
    assert excluded(site.folder) == ["u5"]


def test_status_of_a_site_that_never_started(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    assert "never started" in run("status", site.folder).stdout
    found = json.loads(run("status", site.folder, "--json").stdout)
    assert (found["state"], found["ledger"], found["excluded"]) == ("never started", None, 0)


def test_a_site_that_is_not_connected_says_so_to_a_health_check(tmp_path: Path, invitation: Path) -> None:
    site = make_site(tmp_path / "site", invitation)
    said = run("status", site.folder, "--quiet")
    assert (said.exit_code, said.output) == (1, "")
    assert metarec(["site", "status", str(site.folder), "--quiet"]) == 1, "what `metarec` itself exits with"
