"""The apps that Flower ships: a few lines that call the MetaRec which server and site installed by themselves.

They are a pure function of the installed version. So a coordinator cannot send code to a site: the site makes the same
bundle by itself, and approves no other.
"""

import hashlib
import tempfile
from importlib.metadata import version
from pathlib import Path

from metarec_shared.errors import TrustError
from metarec_shared.files import write_text
from metarec_shared.settings import Settings
from metarec_shared.toml_text import toml_tables

_PROJECT = """[project]
name = "metarec"
version = "{version}"
description = "Calls the installed MetaRec."
license = {{ text = "Apache-2.0" }}
dependencies = []

[tool.flwr.app]
publisher = "metarec"

[tool.flwr.app.components]
serverapp = "metarec_app.server_app:app"
clientapp = "metarec_app.client_app:app"

"""
_CLIENT = '''"""The ClientApp: the installed MetaRec's."""

from flwr.clientapp import ClientApp

from client.app import handle

app = ClientApp()
app.query()(handle)
app.query("moments")(handle)
app.train()(handle)
app.evaluate()(handle)
'''
_SERVER = '''"""The ServerApp: the installed MetaRec's."""

from flwr.serverapp import ServerApp

from server.app import main

app = ServerApp()
app.main()(main)
'''


def metarec_version() -> str:
    """Return the version of the installed MetaRec."""
    return version("metarec")


def write_app(folder: Path) -> None:
    """Write the apps into a folder, with every setting's default: a run may only override keys that are there."""
    config = toml_tables(Settings().flat(), prefix="tool.flwr.app.config.")
    files = {
        "pyproject.toml": _PROJECT.format(version=metarec_version()) + config,
        "metarec_app/__init__.py": '"""Apps that call the installed MetaRec."""\n',
        "metarec_app/client_app.py": _CLIENT,
        "metarec_app/server_app.py": _SERVER,
    }
    for name, text in files.items():
        write_text(folder / name, text)


def build_bundle(app: Path) -> bytes:
    """Return the bundle that Flower makes of the apps: the same bytes for the same files."""
    from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(app)


def installed_bundle() -> bytes:
    """Return the bundle of the installed MetaRec."""
    with tempfile.TemporaryDirectory(prefix="metarec-bundle-") as made:
        app = Path(made) / "app"
        write_app(app)
        return build_bundle(app)


def check_bundle(metarec: str, bundle: str) -> None:
    """Check that a bundle calls the installed MetaRec and is the one that it makes.

    Args:
        metarec: Version of MetaRec that the bundle calls.
        bundle: SHA-256 of the bundle, hex.

    Raises:
        TrustError: It calls another version, or it is another bundle: it may hold any code.
    """
    if metarec != (installed := metarec_version()):
        raise TrustError(
            f"the bundle calls MetaRec {metarec}, installed is {installed}: pip install metarec=={metarec}"
        )
    if bundle != (wanted := hashlib.sha256(installed_bundle()).hexdigest()):
        raise TrustError(
            f"the bundle has the SHA-256 {bundle}, the installed MetaRec {installed} makes {wanted}: it is not the "
            "code that is installed here"
        )
