"""What a service refuses before it listens, and that its generated code is that of its interface."""

from pathlib import Path

import pytest

from client.service.address import is_loopback, joined_address, split_address
from client.service.security import check_exposure, read_token, server_credentials
from metarec_shared.errors import SettingsError, TrustError
from tests.certificates import Authority

ROOT = Path(__file__).resolve().parents[2]
PROTO = Path("client/service/proto/metarec/v1/recommender.proto")


def private(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "host", "port", "alone"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051, True),
        ("127.8.0.1:0", "127.8.0.1", 0, True),
        ("[::1]:65535", "::1", 65535, True),
        ("localhost:1", "localhost", 1, True),
        ("0.0.0.0:1", "0.0.0.0", 1, False),
        ("[::]:1", "::", 1, False),
        ("fed.example.org:443", "fed.example.org", 443, False),
        ("localhost.example.org:443", "localhost.example.org", 443, False),
    ],
)
def test_addresses(text: str, host: str, port: int, alone: bool) -> None:
    assert split_address(text, "--listen") == (host, port)
    assert joined_address(host, port) == text
    assert is_loopback(host) == alone


@pytest.mark.parametrize(
    "text", ["", ":1", "host", "host:", "host:x", "host:-1", "host:65536", "::1:5", "[h]:1", "h:१"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(SettingsError, match="--listen: got"):
        split_address(text, "--listen")


@pytest.mark.parametrize(
    ("host", "tls", "token", "insecure", "said"),
    [
        ("127.0.0.1", False, True, False, None),
        ("0.0.0.0", True, True, False, None),
        ("0.0.0.0", False, False, True, None),
        ("0.0.0.0", False, False, False, "--listen: 0.0.0.0 is not this machine alone; wanted --tls-cert"),
        ("0.0.0.0", False, True, True, "--auth-token-file: 0.0.0.0 is not this machine alone"),
    ],
)
def test_nothing_is_sent_in_the_open_unasked(
    host: str, tls: bool, token: bool, insecure: bool, said: str | None
) -> None:
    if said is None:
        check_exposure(host, tls=tls, token=token, insecure=insecure)
        return
    with pytest.raises(SettingsError, match=said):
        check_exposure(host, tls=tls, token=token, insecure=insecure)


def test_a_token_is_its_files_and_nobody_elses(tmp_path: Path) -> None:
    token = "0123456789abcdef-_~"
    assert read_token(private(tmp_path / "token", f"{token}\n")) == token
    for text in ("", "short", "0123456789 abcdef", "0123456789abcdeé", f"{token}\n{token}"):
        with pytest.raises(TrustError, match="wanted a token"):
            read_token(private(tmp_path / "other", text))
    for mode in (0o640, 0o604, 0o644):
        with pytest.raises(TrustError, match=f"its mode must be 0600 or stricter, got {mode:04o}"):
            read_token(private(tmp_path / "token", token, mode))
    with pytest.raises(TrustError, match="cannot be read"):
        read_token(tmp_path / "missing")


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    authority = Authority.new()
    certificate, key = authority.server(tmp_path / "one")
    with pytest.raises(TrustError, match="others may use it"):
        server_credentials(certificate, key)
    key.chmod(0o600)
    server_credentials(certificate, key)
    _, other = authority.server(tmp_path / "two")
    other.chmod(0o600)
    with pytest.raises(TrustError, match="is not the key of"):
        server_credentials(certificate, other)
    old, its = authority.server(tmp_path / "old", days=(-20, -10))
    its.chmod(0o600)
    with pytest.raises(TrustError, match="expired on"):
        server_credentials(old, its)
    with pytest.raises(TrustError, match="holds no private key"):
        server_credentials(certificate, private(tmp_path / "no.key", "none"))
    with pytest.raises(TrustError, match="holds no certificate"):
        server_credentials(private(tmp_path / "no.crt", "none"), key)


def test_the_generated_code_is_that_of_the_interface(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    made = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT}", *made, str(ROOT / PROTO)]) == 0
    generated = sorted((tmp_path / PROTO.parent).iterdir())
    assert len(generated) == 3
    for file in generated:
        assert file.read_text() == (ROOT / PROTO.parent / file.name).read_text(), f"{file.name}: make proto"
