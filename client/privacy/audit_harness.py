"""Many rounds of many runs of a site at once, by the functions that sample, clip, noise and weigh in a deployed node.

Every run is a node of its own with the same few users, so ``Nodes.draw`` tosses the coins of all runs together. Each
user's gradient has a direction of its own; the canary's is longer than the clip norm. The clipped sums of all runs are
one tensor: noise is drawn independently for each of its values, so noising it is noising every run's sum.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from client.node import Drawn, Nodes
from client.privacy import guard as guards
from client.privacy.audit_claim import CLIP_NORM, AuditGuard, Claim, Observed
from metarec_shared import meta_gradient
from metarec_shared.exchange import TrainRequest
from metarec_shared.interactions import Interactions
from metarec_shared.population import Population
from metarec_shared.split import Role

_LENGTHS = (0.5, 2.0, 1.0, 4.0)
"""Gradients of the users in units of the clip norm; the last is the canary's."""

_BARE = 1e-4
"""A value that is so close (in deviations of the noise) to what it would be without noise has none."""


def composed_rounds(claim: Claim, runs: int, *, canary: bool) -> Iterator[Observed]:
    """Yield what the replies of ``runs`` runs show, round after round.

    Args:
        claim: What the site does.
        runs: How many runs.
        canary: Whether the canary is one of the users.
    """
    lengths = np.array(_LENGTHS if canary else _LENGTHS[:-1])
    guard = AuditGuard(claim.terms())
    nodes = _nodes(len(lengths), runs, guard)
    for number in range(1, claim.releases + 1):
        drawn = nodes.draw(
            TrainRequest(round_number=number, sampling_rate=claim.sampling_rate, rating_scale=None, catalogue="audit")
        )
        weights = guard.weights(drawn.expected)
        shares = guards.reply_scales(weights, drawn.expected)
        sums = _clipped_sums(lengths, drawn, runs, float(shares[0]))
        reply = guards.protected(guard, {"sums": sums}, shares, iter(nodes.names), number)["sums"]
        yield _observed(claim, reply.double().numpy(), weights)


def _nodes(users: int, runs: int, guard: AuditGuard) -> Nodes:
    """Return a node for each run, all with the same users."""
    histories = Interactions(
        user_ids=np.array([f"audit {user}" for user in range(users)]),
        offsets=np.arange(users + 1) * 2,
        items=np.tile(np.arange(2, dtype=np.int32), users),
        ratings=np.full(2 * users, np.nan, dtype=np.float32),
        has_time=False,
    )
    roles = np.full(users, Role.TRAINING, dtype=np.int8)
    keys = np.arange(users, dtype=np.uint64)
    return Nodes(
        node_ids=np.arange(runs, dtype=np.uint64),
        names=("audit",),
        population=Population(interactions=histories, keys=keys, roles=roles, rating_scale=None, seed=0),
        users=np.tile(np.arange(users), runs),
        offsets=np.arange(runs + 1) * users,
        guard=guard,
    )


def _clipped_sums(lengths: NDArray[np.float64], drawn: Drawn, runs: int, share: float) -> torch.Tensor:
    """Return the sum of the drawn users' clipped gradients times their share, of each run, [runs, directions]."""
    gradients = torch.diag(torch.from_numpy(lengths)) * CLIP_NORM
    scale = meta_gradient.clip_factors(gradients.square().sum(dim=1), CLIP_NORM) * float(np.float32(share))
    taken = torch.zeros(runs, len(lengths), dtype=torch.float64)
    taken[torch.from_numpy(drawn.nodes), torch.from_numpy(drawn.users)] = 1.0
    sums = taken @ (gradients * scale[:, None])
    return torch.nn.functional.pad(sums, (0, len(_LENGTHS) - len(lengths)))


def _observed(claim: Claim, reply: NDArray[np.float64], weights: NDArray[np.float64]) -> Observed:
    values = reply / (CLIP_NORM * claim.share)
    near = _BARE * claim.noise_multiplier
    drawn = np.abs(values - np.minimum(_LENGTHS, 1.0)) < near
    bare = ((np.abs(values) < near) | drawn).all(axis=1)
    pattern = np.where(bare, drawn @ 2 ** np.arange(len(_LENGTHS)), -1)  # which users a reply without noise shows
    whole = np.isfinite(values).all(axis=1)
    table = np.stack(np.broadcast_arrays(weights, pattern, whole), axis=1)
    kinds, codes = np.zeros((1, 3)), np.zeros(len(table), dtype=np.int64)
    if (table == table[0]).all():
        kinds = table[:1]
    else:
        kinds, codes = np.unique(table, axis=0, return_inverse=True)
    return Observed(np.where(whole, values[:, -1], 0.0), [tuple(kind) for kind in kinds.tolist()], codes.reshape(-1))
