"""The whole audit: minutes."""

import json
from pathlib import Path

import pytest

from client.privacy.audit import CLAIMS, audit_command
from client.privacy.audit_report import EPSILONS


@pytest.mark.slow
def test_the_shipped_client_passes_the_whole_audit(tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    audit_command(file)
    report = json.loads(file.read_text())
    assert report["passed"]
    assert len(report["rows"]) == len(CLAIMS) * len(EPSILONS)
    assert {(row["releases"], row["sampling_rate"]) for row in report["rows"]} == {(1, 1.0), (20, 0.25), (100, 0.05)}
    assert all(row["z"] > -6 for row in report["rows"])  # claims are nearly tight, so an audit that sees is near them
