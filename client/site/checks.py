"""All that must hold before a site starts, each checked whatever the others say."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.site.approval import Approval, read_approval
from client.site.folder import Site, load_site
from client.site.start import cache_environment
from metarec_shared.errors import MetaRecError


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        name: What was checked.
        passed: Whether it holds.
        said: What was found; where it does not hold, also what to do.
    """

    name: str
    passed: bool
    said: str


Finding = Callable[[Site, Approval], str]
"""Returns what was found, or raises a MetaRecError that says what is wrong and what to do."""


def run_checks(folder: Path) -> list[Check]:
    """Check a site's folder, data, privacy and connection."""
    settings = guarded("settings", lambda: load_site(folder).settings.name)
    if not settings.passed:
        return [settings]
    site = load_site(folder)
    os.environ.update(cache_environment(site.state, os.environ))  # before what reads it is imported: runs use the same
    from client.site import checks_data, checks_folder, checks_server

    approved = guarded("approval", lambda: checks_folder.approval(site, read_approval(site.approved)))
    checks = [settings, approved, guarded("files", lambda: checks_folder.modes(site))]
    try:
        approval = read_approval(site.approved)
    except MetaRecError:
        return checks
    findings: dict[str, Finding] = {
        "key": checks_folder.key,
        "disk": checks_folder.disk,
        "catalogue": checks_data.catalogue,
        "text encoder": checks_data.text_encoder,
        "data": checks_data.data,
        "excluded users": checks_data.excluded,
        "privacy": checks_data.privacy,
        "server": checks_server.server,
        "clock": checks_server.clock,
        "enrolment": checks_server.enrolment,
    }
    return checks + [guarded(name, lambda found=found: found(site, approval)) for name, found in findings.items()]  # type: ignore[misc]


def guarded(name: str, find: Callable[[], str]) -> Check:
    """Run one check; whatever it raises is what it found."""
    try:
        return Check(name=name, passed=True, said=find())
    except (MetaRecError, OSError) as error:
        return Check(name=name, passed=False, said=" ".join(str(error).split()))
    except Exception as error:  # a check that breaks must not hide what the others find
        return Check(name=name, passed=False, said=f"{type(error).__name__}: {' '.join(str(error).split())}")
