"""The audit passes for the client as it is, and fails where a mechanism does less than it claims."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from client import app, node
from client.privacy import audit as audits
from client.privacy import audit_path, guard
from client.privacy.audit import audit, audit_command
from client.privacy.audit_claim import CLIP_NORM, AuditGuard, Claim
from client.privacy.audit_report import EPSILONS, AuditReport, AuditRow
from metarec_shared import meta_gradient
from metarec_shared.exchange import MetaUpdate, Parameters
from metarec_shared.privacy.gaussian import Noise

PATH = Claim(releases=1, sampling_rate=1.0, noise_multiplier=0.7)
COMPOSED = Claim(releases=8, sampling_rate=0.25, noise_multiplier=0.8)
BOTH = pytest.mark.parametrize("claim", [PATH, COMPOSED])

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _claims_are_the_exact_profile(monkeypatch: Patch) -> None:
    """Save the time that accounting takes; the slow test of the whole command has it."""

    def exact(self: Claim, epsilon: float) -> float:
        ((first, second),) = self.tails([epsilon], added=True)
        return float(first - np.exp(epsilon) * second)

    monkeypatch.setattr(Claim, "delta", exact)
    monkeypatch.setattr(audits, "_PILOT_PATH", 30)


def audited(claim: Claim, runs: int = 0) -> AuditReport:
    runs = runs or (250 if claim is PATH else 10_000)
    return audit(runs_of_path=runs, runs_composed=runs, progress=lambda line: None, claims=[claim])


def largest_z(claim: Claim, runs: int = 0) -> float:
    return max(row.z for row in audited(claim, runs).rows)


@BOTH
def test_the_client_as_it_is_passes(claim: Claim) -> None:
    report = audited(claim, 100 if claim is PATH else 0)
    assert report.passed
    assert [row.epsilon for row in report.rows] == list(EPSILONS)
    for row in report.rows:  # an audit that sees nothing would pass, too
        assert row.z > -4.0
        assert row.empirical_delta > 0.3 or row.epsilon > 0


@BOTH
def test_half_the_noise_is_found(claim: Claim, monkeypatch: Patch) -> None:
    real = guard.noised_sum

    def half(sums: Parameters, *, noise_multiplier: float, **rest: Any) -> Parameters:
        return real(sums, noise_multiplier=noise_multiplier / 2, **rest)

    monkeypatch.setattr(guard, "noised_sum", half)
    assert largest_z(claim) > 5


@BOTH
def test_a_gradient_that_nobody_clips_is_found(claim: Claim, monkeypatch: Patch) -> None:
    monkeypatch.setattr(meta_gradient, "clip_factors", lambda squares, clip_norm: torch.ones_like(squares))
    assert largest_z(claim, runs=100 if claim is PATH else 0) > 5


def test_a_sampling_rate_that_is_accounted_too_low_is_found(monkeypatch: Patch) -> None:
    real: Callable[..., Any] = Noise.coins
    monkeypatch.setattr(Noise, "coins", lambda self, count, chance: real(self, count, 2 * chance))
    assert largest_z(COMPOSED) > 5


def test_noise_that_is_left_out_when_nobody_was_drawn_is_found(monkeypatch: Patch) -> None:
    real = guard.noised_sum

    def lazy(sums: Parameters, **rest: Any) -> Parameters:
        noised = real(sums, **rest)
        return {name: torch.where((sums[name] == 0).all(1, keepdim=True), 0.0, one) for name, one in noised.items()}

    monkeypatch.setattr(guard, "noised_sum", lazy)
    assert largest_z(COMPOSED) > 5


def test_a_count_of_drawn_users_in_the_reply_is_found(monkeypatch: Patch) -> None:
    real_draw, real_update, drawn = node.Nodes.draw, app.meta_update, []

    def watched(self: node.Nodes, request: Any) -> node.Drawn:
        drawn.append(real_draw(self, request))
        return drawn[-1]

    def counting(*args: Any) -> MetaUpdate:
        return dataclasses.replace(real_update(*args), users=len(drawn[-1].users), loss=0.0)

    monkeypatch.setattr(node.Nodes, "draw", watched)
    monkeypatch.setattr(app, "meta_update", counting)
    assert largest_z(PATH, runs=100) > 5


def test_an_error_in_place_of_a_reply_is_found(monkeypatch: Patch) -> None:
    real = node.Nodes.draw

    def fails_for_the_canary(self: node.Nodes, request: Any) -> node.Drawn:
        found = real(self, request)
        if len(found.users) > 1 and self.guard is not None and self.guard.terms.noise_multiplier:
            raise IndexError("index out of range")
        return found

    monkeypatch.setattr(node.Nodes, "draw", fails_for_the_canary)
    assert largest_z(PATH, runs=100) > 5


def test_one_array_without_noise_is_found(monkeypatch: Patch) -> None:
    real = guard.noised_sum

    def all_but_one(sums: Parameters, **rest: Any) -> Parameters:
        return {**real(sums, **rest), "head.bias": sums["head.bias"]}

    monkeypatch.setattr(guard, "noised_sum", all_but_one)
    assert largest_z(PATH, runs=100) > 5


def test_the_canary_is_clipped_to_exactly_the_clip_norm() -> None:
    site = audit_path._Site.of(PATH)
    assert np.linalg.norm(site.canary) == pytest.approx(CLIP_NORM * PATH.share, rel=1e-5)
    assert np.linalg.norm(site.base) > 0


def test_tails_of_one_round_are_those_of_two_gaussians() -> None:
    sigma, epsilons = PATH.noise_multiplier, np.array(EPSILONS)
    upper = torch.special.ndtr(torch.from_numpy(0.5 / sigma - epsilons * sigma)).numpy()
    lower = torch.special.ndtr(torch.from_numpy(-0.5 / sigma - epsilons * sigma)).numpy()
    for added in (True, False):
        np.testing.assert_allclose(PATH.tails(EPSILONS, added=added), np.stack([upper, lower], axis=1), rtol=2e-3)


def test_accounting_of_one_round_claims_the_exact_profile_to_two_percent(monkeypatch: Patch) -> None:
    monkeypatch.undo()
    tails = PATH.tails([1.0], added=True)[0]
    exact = tails[0] - np.e * tails[1]
    assert exact <= PATH.delta(1.0) <= 1.02 * exact


def test_audited_guards_charge_nobody() -> None:
    AuditGuard(PATH.terms()).charge(PATH.terms().meta_update(), 1)


@pytest.mark.parametrize("z", [3.9, 4.0])
def test_the_command_prints_and_writes_what_was_found_and_fails_where_the_audit_does(
    z: float, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = AuditRow(
        releases=1, sampling_rate=1.0, noise_multiplier=0.7, epsilon=0.5,
        claimed_delta=0.25, empirical_delta=0.2, z=z,
    )  # fmt: skip
    monkeypatch.setattr(audits, "audit", lambda **_: AuditReport(rows=(row,)))
    file = tmp_path / "audit.json"
    if z < 4:
        audit_command(file)
    else:
        with pytest.raises(typer.Exit) as caught:
            audit_command(file)
        assert caught.value.exit_code == 1
    assert json.loads(file.read_text()) == {"passed": z < 4, "rows": [dataclasses.asdict(row)]}
    assert ("passed" if z < 4 else "FAILED") in capsys.readouterr().out
