"""The coordinator's folder: keys and certificates, settings, the invitation it signs, and Flower's commands."""

import json
import ssl
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from metarec_shared.bundle import build_bundle, write_app
from metarec_shared.cli import run as metarec
from metarec_shared.errors import DataError, FederationError, SettingsError, TrustError
from metarec_shared.invitation import TERMS, content_hash, file_hash, key_fingerprint, open_invitation
from metarec_shared.readers import read_catalogue
from metarec_shared.settings import DataSettings, Settings
from server.coordinator.certificates import issue_certificate, load_signing_key
from server.coordinator.home import Home
from server.coordinator.init import initialize
from server.coordinator.publish import publish, take_catalogue
from server.coordinator.settings import deployed_settings
from server.coordinator.sites import enroll_site, revoke_site
from server.coordinator.start import check_keys, superlink_command
from tests.fake_flwr import FakeFlower

ITEMS = "item_id,title\n" + "".join(f"{i},Title {i}\n" for i in range(30))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return initialize(tmp_path / "coordinator", {"names": "fed.example.org,10.1.2.3", "port": 19092})[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "items.csv").write_text(ITEMS)
    (folder / "interactions.csv").write_text("user_id,item_id\nprivate-person,3\n")
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_settings_file_says_what_was_asked_for(home: Home) -> None:
    settings = home.settings()
    assert (settings.port, settings.public_address) == (19092, "fed.example.org:19092")
    assert settings.host == "127.0.0.1", "nothing is open to others unless asked for"


def test_private_keys_are_for_their_owner_alone(home: Home) -> None:
    assert [mode(key) for key in (home.authority_key, home.server_key, home.signing_key)] == [0o600] * 3
    assert mode(home.folder) == mode(home.folder / "keys") == mode(home.flower) == 0o700


def test_openssl_verifies_the_servers_certificate_for_its_names_only(home: Home) -> None:
    def verified(*options: str) -> bool:
        command = ["openssl", "verify", "-purpose", "sslserver", "-x509_strict", "-CAfile", str(home.authority)]
        return (
            subprocess.run([*command, *options, str(home.certificate)], capture_output=True, check=False).returncode
            == 0
        )

    assert verified()
    assert verified("-verify_hostname", "fed.example.org")
    assert verified("-verify_ip", "10.1.2.3")
    assert verified("-verify_ip", "127.0.0.1"), "the coordinator's own commands come from this machine"
    assert not verified("-verify_hostname", "other.example.org")


def test_the_authority_may_sign_servers_and_no_further_authority(home: Home) -> None:
    authority = x509.load_pem_x509_certificate(home.authority.read_bytes())
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    server = x509.load_pem_x509_certificate(home.certificate.read_bytes())
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_renewed_certificate_comes_from_the_same_authority_with_another_key(home: Home) -> None:
    before = home.authority.read_bytes(), home.server_key.read_bytes()
    until = issue_certificate(home, ["fed.example.org"], days=5)
    assert home.authority.read_bytes() == before[0]
    assert home.server_key.read_bytes() != before[1]
    assert 3 <= (until - datetime.now(UTC)).days <= 5
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.certificate, home.server_key)  # key and certificate belong together


def test_init_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FederationError, match="wanted an empty folder or none"):
        initialize(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_init_with_a_bad_setting_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="port must be between 1 and 65535, got 0"):
        initialize(tmp_path / "new", {"port": 0})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server]\nprot = 1\n", "unknown setting server.prot"),
        ("[other]\n", r"wanted one table \[server\], got other"),
        ("[server]\nnames = ' , '\n", "must name the server"),
        ("[server\n", "not TOML"),
    ],
)
def test_a_bad_settings_file_is_said(home: Home, text: str, said: str) -> None:
    home.settings_file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        home.settings()


def test_a_folder_that_is_none_of_a_coordinator_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="metarec server init"):
        Home(tmp_path).settings()


def test_publishing_copies_items_and_no_interaction(home: Home, data: Path) -> None:
    assert take_catalogue(home, data) == 30
    invitation = publish(home)
    names = {path.relative_to(home.invitation).as_posix() for path in home.invitation.rglob("*") if path.is_file()}
    assert names == {
        "ca.crt", "metarec.fab", "catalogue/items.csv", "invitation.json", "invitation.sig", "signing-key.pub",
    }  # fmt: skip
    assert not [path for path in home.folder.rglob("*") if path.is_file() and b"private-person" in path.read_bytes()]
    opened, fingerprint = open_invitation(home.invitation)
    assert opened == invitation
    assert fingerprint == key_fingerprint(load_signing_key(home).public_key())
    assert opened.bundle == file_hash(home.invitation / "metarec.fab")


def test_publishing_twice_gives_the_same_hashes_and_a_changed_item_another(home: Home, data: Path) -> None:
    take_catalogue(home, data)
    first = publish(home)
    again = publish(home)
    assert replace(again, issued=first.issued) == first
    assert datetime.fromisoformat(again.issued) >= datetime.fromisoformat(first.issued)
    (data / "items.csv").write_text(ITEMS.replace("Title 7", "Title seven"))
    take_catalogue(home, data)
    second = publish(home)
    assert second.catalogue != first.catalogue
    assert second.bundle == first.bundle


def test_items_that_lie_elsewhere_are_published_themselves(home: Home, data: Path, tmp_path: Path) -> None:
    rows = 'sku,name,kind,maker\n007,"A ""quoted"", long\ntitle",Drama|War,\n8,Heat,,Né & co\n9,,, \n'
    (tmp_path / "private.csv").write_text(rows)
    columns = 'item_id = "sku"\ntitle = "name"\nkind = "kind"\n"made by, or" = "maker"\n'
    pointer = f'[items]\nfile = "../private.csv"\n[items.columns]\n{columns}'
    (data / "source.toml").write_text(pointer + '[interactions]\nfile = "interactions.csv"\n')
    assert take_catalogue(home, data) == 3
    assert [path.name for path in home.catalogue.iterdir()] == ["items.csv"]
    assert read_catalogue(home.catalogue, DataSettings()) == read_catalogue(data, DataSettings())
    publish(home)
    open_invitation(home.invitation)


@pytest.mark.parametrize("name", ["source.toml", "Source.TOML", "below/source.toml"])
def test_an_invitation_whose_catalogue_points_elsewhere_is_refused_though_signed(
    home: Home, data: Path, name: str
) -> None:
    take_catalogue(home, data)
    path = home.catalogue / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('[items]\nurl-env = "SITE_DATABASE"\nquery = "SELECT * FROM patients"\n')
    publish(home)
    with pytest.raises(TrustError, match=f"{name}: says that the items lie elsewhere"):
        open_invitation(home.invitation)


def test_nothing_is_published_without_a_catalogue(home: Home, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no catalogue yet"):
        publish(home)
    with pytest.raises(DataError, match="no such folder"):
        take_catalogue(home, tmp_path / "nowhere")
    assert not home.catalogue.exists()


@pytest.mark.parametrize("name", ["invitation.json", "ca.crt", "metarec.fab", "catalogue/items.csv"])
def test_an_invitation_of_which_a_byte_was_changed_is_refused(home: Home, data: Path, name: str) -> None:
    take_catalogue(home, data)
    publish(home)
    path = home.invitation / name
    path.write_bytes(path.read_bytes().replace(b"e", b"f", 1))
    with pytest.raises(TrustError, match=Path(name).name if "items" not in name else "catalogue"):
        open_invitation(home.invitation)


def test_an_invitation_signed_by_another_key_is_refused(home: Home, data: Path) -> None:
    take_catalogue(home, data)
    publish(home)
    other = key_fingerprint(ed25519.Ed25519PrivateKey.generate().public_key())
    with pytest.raises(TrustError, match=f"this site trusts {other}".replace("+", r"\+")):
        open_invitation(home.invitation, other)


def test_terms_with_a_field_more_are_refused_though_signed(home: Home, data: Path) -> None:
    import base64

    take_catalogue(home, data)
    publish(home)
    terms = json.loads((home.invitation / TERMS).read_text()) | {"run": "anything"}
    text = json.dumps(terms).encode()
    (home.invitation / TERMS).write_bytes(text)
    (home.invitation / "invitation.sig").write_bytes(base64.b64encode(load_signing_key(home).sign(text)))
    with pytest.raises(TrustError, match="another version of MetaRec"):
        open_invitation(home.invitation)


def test_a_link_in_a_catalogue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").symlink_to("/etc/hostname")
    with pytest.raises(TrustError, match="a link"):
        content_hash(tmp_path)


def test_the_bundle_is_a_few_lines_that_import_the_installed_package(home: Home) -> None:
    write_app(home.app)
    assert build_bundle(home.app) == build_bundle(home.app)
    code = list(home.app.rglob("*.py"))
    assert sum(len(path.read_text().splitlines()) for path in code) < 40
    document = tomllib.loads((home.app / "pyproject.toml").read_text())
    flat = {
        f"{t}.{k}": v for t, entries in document["tool"]["flwr"]["app"]["config"].items() for k, v in entries.items()
    }
    assert flat == Settings().flat()


def test_a_deployed_run_draws_noise_from_a_secure_source_over_the_published_items(home: Home, data: Path) -> None:
    with pytest.raises(SettingsError, match="nothing published yet"):
        deployed_settings(home, None, [], rounds=3, resume=False)
    take_catalogue(home, data)
    settings = deployed_settings(home, None, ["privacy.mode=site", "federation.rounds=9"], rounds=3, resume=False)
    assert settings.privacy.randomness == "secure"
    assert settings.data.path == str(home.catalogue)
    assert settings.federation.rounds == 3
    assert settings.model.item_ids is False


def test_the_superlink_is_started_with_tls_and_authentication(home: Home) -> None:
    command = superlink_command(home, home.settings())
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_a_server_with_an_expired_certificate_or_an_open_key_does_not_start(home: Home) -> None:
    check_keys(home)
    home.server_key.chmod(0o644)
    with pytest.raises(TrustError, match="others may read it; chmod 600"):
        check_keys(home)
    home.server_key.chmod(0o600)
    issue_certificate(home, ["localhost"], days=0)
    with pytest.raises(TrustError, match=r"expired on .*; metarec server renew"):
        check_keys(home)


@pytest.fixture
def fake_flwr(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFlower:
    fake = FakeFlower(tmp_path, monkeypatch)
    fake.say("supernode list", nodes=[])
    fake.say("supernode register", **{"node-id": 17})
    fake.say("supernode unregister")
    return fake


def public_key(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    path.write_bytes(key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    return path


def test_a_site_is_enrolled_once_and_taken_off_again(home: Home, fake_flwr: FakeFlower, tmp_path: Path) -> None:
    key = public_key(tmp_path / "site.pub")
    fingerprint = enroll_site(home, key, "site-1")
    printed = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True, check=True).stdout
    assert printed.split()[1] == fingerprint
    assert home.sites()["site-1"]["node"] == "17"
    assert enroll_site(home, key, "site-1") == fingerprint, "once more changes nothing"
    with pytest.raises(FederationError, match="site-1 is enrolled already, with another key"):
        enroll_site(home, public_key(tmp_path / "other.pub"), "site-1")
    with pytest.raises(FederationError, match="enrolled already, as site-1"):
        enroll_site(home, key, "site-2")
    fake_flwr.say("supernode list", nodes=[{"node-id": "17", "status": "offline"}])
    revoke_site(home, "site-1")
    assert home.sites() == {}
    with pytest.raises(FederationError, match="no site site-1"):
        revoke_site(home, "site-1")
    asked = [call for call in fake_flwr.calls if call != "supernode list"]
    assert asked == ["supernode register", "supernode unregister"]


def test_a_site_whose_name_or_key_makes_no_sense_is_not_enrolled(
    home: Home, fake_flwr: FakeFlower, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="letters, digits and hyphens"):
        enroll_site(home, public_key(tmp_path / "site.pub"), "../site")
    (tmp_path / "junk.pub").write_text("not a key")
    with pytest.raises(TrustError, match="no readable public key"):
        enroll_site(home, tmp_path / "junk.pub", "site-1")
    assert fake_flwr.calls == []


def test_what_flower_says_of_a_failure_is_passed_on_and_nobody_is_enrolled(
    home: Home, fake_flwr: FakeFlower, tmp_path: Path
) -> None:
    fake_flwr.fail("supernode register", "Connection refused")
    with pytest.raises(FederationError, match="flwr supernode register failed: Connection refused"):
        enroll_site(home, public_key(tmp_path / "site.pub"), "site-1")
    assert home.sites() == {}


@pytest.mark.parametrize("then", ["the same", "another", "revoke"])
def test_an_enrolment_that_was_cut_off_after_flower_took_the_key_is_finished(
    home: Home, fake_flwr: FakeFlower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    key, before = public_key(tmp_path / "site.pub"), [{"node-id": "5", "status": "offline"}]
    fake_flwr.say("supernode list", nodes=before)
    with _cut_off(monkeypatch), pytest.raises(OSError, match="cut off"):
        enroll_site(home, key, "site-1")
    assert home.sites() == {}
    fake_flwr.say("supernode list", nodes=[*before, {"node-id": "17", "status": "registered"}])
    match then:
        case "the same":
            enroll_site(home, key, "site-1")
            assert {name: entry["node"] for name, entry in home.sites().items()} == {"site-1": "17"}
        case "another":
            fake_flwr.say("supernode register", **{"node-id": 18})
            enroll_site(home, public_key(tmp_path / "other.pub"), "site-2")
            assert {name: entry["node"] for name, entry in home.sites().items()} == {"site-1": "17", "site-2": "18"}
        case _:
            revoke_site(home, "site-1")
            assert home.sites() == {}
            assert fake_flwr.calls[-1] == "supernode unregister"
    assert fake_flwr.calls.count("supernode register") == (2 if then == "another" else 1)


def test_an_enrolment_that_flower_never_saw_is_begun_anew(home: Home, fake_flwr: FakeFlower, tmp_path: Path) -> None:
    fake_flwr.fail("supernode register", "Connection refused")
    with pytest.raises(FederationError, match="Connection refused"):
        enroll_site(home, key := public_key(tmp_path / "site.pub"), "site-1")
    fake_flwr.say("supernode register", **{"node-id": 17})
    enroll_site(home, key, "site-1")
    assert home.sites()["site-1"]["node"] == "17"


def test_a_revocation_that_was_cut_off_is_finished(
    home: Home, fake_flwr: FakeFlower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll_site(home, public_key(tmp_path / "site.pub"), "site-1")
    fake_flwr.say("supernode list", nodes=[{"node-id": "17", "status": "offline"}])
    with _cut_off(monkeypatch), pytest.raises(OSError, match="cut off"):
        revoke_site(home, "site-1")
    fake_flwr.say("supernode list", nodes=[{"node-id": "17", "status": "unregistered"}])
    fake_flwr.fail("supernode unregister", "not found")
    revoke_site(home, "site-1")
    assert home.sites() == {}


@contextmanager
def _cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End whatever would write down who takes part, before it does."""

    def end(*_: object) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(Home, "write_sites", end)
        yield


def test_commands_print_what_to_do_next(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "made"
    assert metarec(["server", "init", str(folder), "--catalogue", str(data)]) == 0
    said = capsys.readouterr().out
    assert "published 30 items" in said
    assert "SHA256:" in said
    assert f"metarec server start {folder}" in said
    assert metarec(["server", "init", str(folder)]) == 2
    assert "wanted an empty folder or none" in capsys.readouterr().err
    assert metarec(["server", "run", str(folder), "--resume"]) == 2
    assert "--resume wants the run's --name" in capsys.readouterr().err


def test_the_files_for_systemd_and_containers_name_commands_that_exist(home: Home) -> None:
    unit = (home.folder / "deploy" / "metarec-server.service").read_text()
    assert f"ExecStart=/usr/bin/env metarec server start {home.folder}" in unit
    docker = (home.folder / "deploy" / "Dockerfile").read_text()
    assert "USER 10001" in docker
    assert "EXPOSE 19092" in docker
    assert '"19092:19092"' in (home.folder / "deploy" / "compose.yaml").read_text()
