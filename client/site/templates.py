"""The files of settings that a new site begins with, a comment on every line that somebody may want to change."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from client.site.folder import ReadingSettings, SiteSettings
from metarec_shared.settings import Mode
from metarec_shared.toml_text import toml_value

_PRIVACY_HEAD = """\
# What may leave this site, and how noised. No run and no server can loosen it: docs/privacy.md.
[privacy]
"""

_PROTECTED = """\
mode = "{mode}"
users = 0                       # FILL IN: {users}
clip-norm = 1.0                 # highest clip norm
noise-multiplier = 1.0          # lowest noise multiplier of meta-updates
sampling-rate = 0.1             # highest chance of a user to take part in a round
delta = 1e-5                    # highest delta; below 1 / users
popularity-noise = 10.0         # lowest noise multiplier of item counts; 0: they never leave
ledger = "ledger.sqlite"        # what was released; made once by `metarec privacy init`
witness = "witness.json"        # the ledger's last row; better a path on another disk
"""

_USERS = {
    "site": "users this site declares, a public constant of at least 100, rounded down from what it has",
    "central": "users this site declares, a public constant; the server is trusted to add the noise",
    "local": "users this site declares, a public constant",
}

_NOBODY = """\
mode = "none"                   # nobody is protected: the server sees raw meta-updates of this site's users
"""


def settings_text(settings: SiteSettings) -> str:
    """Return ``site.toml`` with a comment for every setting."""
    head = "# A site of a MetaRec federation. Files are relative to this folder. docs/site-reference.md explains it.\n"
    return f"{head}{_table('site', settings)}\n{_table('data', ReadingSettings())}"


def privacy_text(mode: Mode) -> str:
    """Return the privacy file of a mode, to be filled in."""
    if mode == "none":
        return _PRIVACY_HEAD + _NOBODY
    return _PRIVACY_HEAD + _PROTECTED.format(mode=mode, users=_USERS[mode])


def ledger_command(folder: Path, mode: Mode) -> str:
    """Return the command that makes the ledger that ``privacy_text`` names; empty where it names none."""
    if mode == "none":
        return ""
    counts = "" if mode == "local" else " --popularity-noise 10"
    rate = "1" if mode == "local" else "0.1"
    return (
        f"metarec privacy init --ledger {folder / 'ledger.sqlite'} --witness {folder / 'witness.json'} "
        f"--epsilon 8 --delta 1e-5 --noise-multiplier 1 --sampling-rate {rate}{counts}"
    )


def _table(name: str, values: Any) -> str:
    lines = [f"[{name}]"]
    for field in fields(values):
        line = f"{field.name.replace('_', '-')} = {toml_value(getattr(values, field.name))}"
        lines.append(f"{line:<36}# {field.metadata['doc']}")
    return "\n".join(lines) + "\n"
