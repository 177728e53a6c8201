"""A site that is as small as can be and has all that a real one has: an ordinary user, and a canary by choice."""

from typing import Any

import numpy as np
import torch

from client.learner import Learner
from client.node import Nodes
from client.privacy.audit_claim import CLIP_NORM, AuditGuard, Claim
from metarec_shared import wire
from metarec_shared.exchange import TrainRequest
from metarec_shared.initialization import travelling_names
from metarec_shared.interactions import Interactions
from metarec_shared.population import Population
from metarec_shared.privacy.terms import Terms
from metarec_shared.randomness import generator, user_keys
from metarec_shared.settings import Settings
from metarec_shared.split import Role

_ITEMS, _TEXT, _HISTORY, _NAME = 24, 6, 8, "audit"


def tiny_learner(clip_norm: float) -> Learner:
    """Return a recommender that is as small as can be and has all its layers."""
    settings = Settings().with_values(
        {
            "run.device": "cpu",
            "model.width": 8,
            "model.layers": 1,
            "model.heads": 1,
            "model.intermediate": 8,
            "tasks.support": 4,
            "tasks.query": 4,
            "adaptation.steps": 1,
            "federation.clip-norm": clip_norm,
            "privacy.mode": "site",
            "privacy.noise-multiplier": 1.0,
        },
        _NAME,
    )
    text = generator(0, _NAME, "text").standard_normal((_ITEMS, _TEXT)).astype(np.float32)
    return Learner(settings, _NAME, torch.from_numpy(text))


def question_of_a_round(claim: Claim) -> Any:
    """Return the request of a round."""
    learner = tiny_learner(CLIP_NORM)
    own = dict(learner.model.named_parameters())
    parameters = {name: own[name].detach() for name in travelling_names(learner.settings, own)}
    request = TrainRequest(round_number=1, sampling_rate=claim.sampling_rate, rating_scale=None, catalogue=_NAME)
    return wire.pack_request(request, wire.pack_parameters(parameters))


def tiny_nodes(terms: Terms, *, canary: bool) -> Nodes:
    """Return the site; its users are all in the meta-training role."""
    users = 2 if canary else 1
    histories = [generator(0, _NAME, "history", user).permutation(_ITEMS)[:_HISTORY] for user in range(users)]
    interactions = Interactions(
        user_ids=np.array([f"{_NAME} {user}" for user in range(users)]),
        offsets=np.arange(users + 1) * _HISTORY,
        items=np.concatenate(histories).astype(np.int32),
        ratings=np.full(users * _HISTORY, np.nan, dtype=np.float32),
        has_time=False,
    )
    population = Population(
        interactions=interactions,
        keys=user_keys(0, interactions.user_ids),
        roles=np.full(users, Role.TRAINING, dtype=np.int8),
        rating_scale=None,
        seed=0,
    )
    return Nodes(
        node_ids=np.ones(1, dtype=np.uint64),
        names=(_NAME,),
        population=population,
        users=np.arange(users),
        offsets=np.array([0, users]),
        guard=AuditGuard(terms),
    )
