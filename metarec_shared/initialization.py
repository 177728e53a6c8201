"""The first meta-initialization: drawn from the run's seed, so that server and nodes make the same one by themselves.

Parameters that are not trained therefore never have to travel. The exceptions are what the server learns from the nodes
at enrolment, which always goes down to them: the score bias, which starts at the log popularity, and a rating model's
mean.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from metarec_shared.catalogue import TrainingItems
from metarec_shared.errors import SettingsError
from metarec_shared.low_rank import add_adapters, is_frozen
from metarec_shared.model import BertRecommender
from metarec_shared.randomness import generator
from metarec_shared.rating_model import RatingModel
from metarec_shared.settings import Settings

ITEM_BIAS = "item_bias"
ITEM_IDS = "item_ids"
MEAN = "mean"
ENROLLED = frozenset({ITEM_BIAS, MEAN})
"""Parameters that start at what nodes report when they enroll."""


def initial_rating_model(settings: Settings, text: Float[Tensor, "items text"], items: TrainingItems) -> RatingModel:
    """Return the rating model with its first parameters, the same at every place for the same settings.

    Args:
        settings: The run's settings.
        text: Text vectors of the whole catalogue.
        items: The catalogue, and which of it training knows.
    """
    seed = int(generator(settings.run.seed, "initial parameters").integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RatingModel.over(items.catalogue, text, items.positions, settings.rating)


def initial_model(settings: Settings, text: Float[Tensor, "items text"]) -> BertRecommender:
    """Return the recommender with its first parameters, the same at every place for the same settings."""
    seed = int(generator(settings.run.seed, "initial parameters").integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertRecommender(text, settings.model, settings.adaptation)
        if settings.federation.lora_rank:
            add_adapters(model, settings.federation.lora_rank)
        return model


def released_names(settings: Settings, names: Iterable[str]) -> tuple[str, ...]:
    """Return which parameters are trained: those whose gradients leave the nodes, in the model's order.

    Args:
        settings: ``federation.released`` is ``all``, or beginnings of names separated by commas. Under terms of
            privacy ID vectors, which have a row an item, are not among them unless ``privacy.item-ids`` says so. With
            ``federation.lora-rank`` the encoder's are not, but its adapters'. A rating model's mean is among them under
            terms alone; without, nodes report it. Where nodes have items of their own, the score bias stays with them.
        names: All parameters of the model.

    Raises:
        SettingsError: No parameter's name begins so.
    """
    names, wanted = tuple(names), [part.strip() for part in settings.federation.released.split(",")]
    if settings.privacy.mode != "none" and not settings.privacy.item_ids:
        names = tuple(name for name in names if name != ITEM_IDS)
    if settings.privacy.mode == "none" and settings.model.target == "rating":
        names = tuple(name for name in names if name != MEAN)
    if settings.federation.lora_rank:
        names = tuple(name for name in names if not is_frozen(name))
    if settings.federation.own_catalogues:
        names = tuple(name for name in names if name != ITEM_BIAS)
    if wanted == ["all"]:
        return names
    for beginning in wanted:
        if not beginning or not any(name.startswith(beginning) for name in names):
            parts = sorted({name.partition(".")[0] for name in names})
            raise SettingsError(
                f"federation.released: no parameter begins with {beginning!r}; wanted all, or beginnings such as "
                f"{', '.join(parts)}"
            )
    return tuple(name for name in names if name.startswith(tuple(wanted)))


def travelling_names(settings: Settings, names: Iterable[str]) -> tuple[str, ...]:
    """Return which parameters the server sends: the released ones, and what it learned at enrolment in any case.

    From a warm start nodes cannot draw the others by themselves, so all are sent.
    """
    names = tuple(names)
    stay = {ITEM_BIAS} if settings.federation.own_catalogues else set()
    if settings.run.init:
        return tuple(name for name in names if name not in stay)
    released = set(released_names(settings, names)) | ENROLLED - stay
    return tuple(name for name in names if name in released)
