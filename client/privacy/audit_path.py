"""Replies of a tiny site through the whole client: a request comes in, bytes go out and are read again.

The site has an ordinary user, and a canary by choice. The model, the request and the draws of tasks are the same in
every run, so a reply differs from run to run by its noise alone; what it would be without noise, with and without the
canary, is computed once, by the same path under terms without noise.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.app import answer
from client.learner import Learner
from client.node import Nodes
from client.privacy.audit_claim import CLIP_NORM, Claim, Observed
from client.privacy.audit_site import question_of_a_round, tiny_learner, tiny_nodes
from metarec_shared import wire
from metarec_shared.device import one_thread
from metarec_shared.errors import PrivacyError
from metarec_shared.exchange import Parameters
from metarec_shared.privacy.terms import Terms

_UNCLIPPED = 1e6

_BARE = 1e-4
"""An array that is so close (in deviations of the noise) to what it would be without noise has none."""


def path_replies(claim: Claim, runs: int, *, canary: bool) -> Observed:
    """Return what ``runs`` replies show.

    Args:
        claim: What the site does in one round.
        runs: How many replies.
        canary: Whether the canary is one of the users.
    """
    with one_thread():
        site, nodes = _Site.of(claim), tiny_nodes(claim.terms(), canary=canary)
        kinds: dict[Hashable, int] = {}
        x, codes = np.zeros(runs), np.zeros(runs, dtype=np.int64)
        for run in range(runs):
            x[run], public = site.read(site.reply(nodes))
            codes[run] = kinds.setdefault(public, len(kinds))
        return Observed(x, list(kinds), codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """What a reply is made with, and what it would be without noise.

    Attributes:
        base: A reply's numbers without canary and without noise, [numbers].
        canary: What the canary adds to them, [numbers].
        starts: Where each array starts in them.
        shapes: Names and shapes of the arrays.
        unit: The clip norm as it appears in a reply.
        near: What counts as no noise.
    """

    learner: Learner
    question: Any
    base: NDArray[np.float64]
    canary: NDArray[np.float64]
    starts: NDArray[np.int64]
    shapes: dict[str, tuple[int, ...]]
    unit: float
    near: float

    @classmethod
    def of(cls, claim: Claim) -> "_Site":
        """Set up a site whose canary is clipped.

        Raises:
            PrivacyError: The canary's gradient is not above the clip norm.
        """
        question, learner = question_of_a_round(claim), tiny_learner(CLIP_NORM)
        base, canary, like = _without_noise(learner, question, claim.terms(noise_multiplier=0.0))
        *_, raw, _ = _without_noise(
            tiny_learner(_UNCLIPPED), question, claim.terms(clip_norm=_UNCLIPPED, noise_multiplier=0.0)
        )
        if not float(np.linalg.norm(raw)) > 1.5 * CLIP_NORM * claim.share:
            raise PrivacyError("the audit's canary has a gradient within the clip norm, so clipping is not audited")
        sizes = [value.numel() for value in like.values()]
        return cls(
            learner=learner,
            question=question,
            base=base,
            canary=canary,
            starts=np.cumsum([0, *sizes[:-1]]),
            shapes={name: tuple(value.shape) for name, value in like.items()},
            unit=CLIP_NORM * claim.share,
            near=_BARE * claim.noise_multiplier * CLIP_NORM * claim.share,
        )

    def reply(self, nodes: Nodes) -> Any:
        """Return what a node sends; an error is an answer too."""
        try:
            return answer(self.learner, nodes, self.question, "train")
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def read(self, content: Any) -> tuple[float, Hashable]:
        """Return a reply's projection on the canary's direction, and all else that it shows."""
        if isinstance(content, str):
            return 0.0, content
        received, size = _travelled(content)
        arrays, public = _open(received)
        if {name: tuple(value.shape) for name, value in arrays.items()} != self.shapes:
            return 0.0, (size, public, "other arrays")
        rest = _flat(arrays) - self.base
        if not np.isfinite(rest).all():
            return 0.0, (size, public, tuple(np.isfinite(rest)))
        bare = (np.maximum.reduceat(np.abs(each), self.starts) < self.near for each in (rest, rest - self.canary))
        shown = tuple(tuple(each.tolist()) if each.any() else None for each in bare)  # arrays without noise
        return float(rest @ self.canary / np.linalg.norm(self.canary)) / self.unit, (size, public, shown)


def _travelled(content: Any) -> tuple[Any, int]:
    """Return what a Flower object is after it has travelled, and its size: all its parts as bytes, and read again."""
    children, size = {}, 0
    for identifier, child in (content.children or {}).items():
        children[identifier], more = _travelled(child)
        size += more
    data = content.deflate()
    return type(content).inflate(data, children or None), size + len(data)


def _open(content: Any) -> tuple[Parameters, Hashable]:
    """Return the tensors of a reply, and everything but their values."""
    arrays: Parameters = {}
    public: list[Hashable] = []
    for name, record in content.items():
        if name == "arrays":
            arrays = wire.unpack_parameters(record)
            public += [(key, one.dtype, tuple(one.shape), one.stype) for key, one in record.items()]
        else:
            public += [(name, type(record).__name__, key, repr(value)) for key, value in record.items()]
    return arrays, tuple(public)


def _without_noise(
    learner: Learner, question: Any, terms: Terms
) -> tuple[NDArray[np.float64], NDArray[np.float64], Parameters]:
    """Return a reply's numbers without canary and what the canary adds, and its tensors."""
    replies = [
        _open(answer(learner, tiny_nodes(terms, canary=canary), question, "train"))[0] for canary in (False, True)
    ]
    base, both = map(_flat, replies)
    return base, both - base, replies[0]


def _flat(arrays: Parameters) -> NDArray[np.float64]:
    return torch.cat([value.flatten() for value in arrays.values()]).double().numpy()
