"""Small runs with all that a model can have, and histories to try them on."""

from dataclasses import replace

import numpy as np
import torch

from client.history import Item, Profile
from metarec_shared.attributes import attribute_hash
from metarec_shared.catalogue import Catalogue, TrainingItems
from metarec_shared.checkpoint import Checkpoint
from metarec_shared.dataset import RatingScale
from metarec_shared.settings import AdaptationSettings, ModelSettings, Settings
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskRegression, TextWeights
from tests.small import ITEMS, SMALL_MODEL, TEXT, small_model

ALL = ITEMS + 3
"""Items of the catalogue; training knew ``ITEMS`` of them."""

EVERYTHING = replace(SMALL_MODEL, recency=True, attribute_buckets=16)
TWO_STEPS = AdaptationSettings(steps=2)


def exportable(
    sizes: ModelSettings = EVERYTHING, adaptation: AdaptationSettings = TWO_STEPS, *, additions: bool = True
) -> Checkpoint:
    """Return a run whose parameters and additions are all away from zero."""
    random = torch.Generator().manual_seed(3)
    model = small_model(adaptation, sizes=sizes, dtype=torch.float32)
    plain = Checkpoint(
        parameters={name: value.detach() for name, value in model.named_parameters()},
        settings=Settings(model=sizes, adaptation=adaptation),
        items=TrainingItems(
            catalogue=Catalogue(
                item_ids=tuple(f"id {i}" for i in range(ALL)),
                titles=tuple(f"Tïtle {i}" for i in range(ALL)),
                texts=tuple(f"text {i}" for i in range(ALL)),
            ),
            positions=np.arange(ITEMS),
        ),
        text=torch.cat([model.text, torch.randn(ALL - ITEMS, TEXT, generator=random)]),
        text_encoder="builtin",
        rating_scale=RatingScale(low=1.0, high=5.0),
        round_number=7,
        validation=0.25,
    )
    if not additions:
        return plain

    def regression(decay: float, *, by_text: bool) -> TaskRegression:
        says = TextWeights(
            coefficients=torch.randn(ITEMS, TEXT, generator=random),
            intercept=torch.randn(ITEMS, generator=random),
            positions=torch.zeros(0, dtype=torch.int64),
            text=torch.zeros(0, TEXT),
        )
        return TaskRegression(
            neighbours=torch.rand(ITEMS, ITEMS, generator=random).topk(12, dim=1).indices,
            weights=torch.randn(ITEMS, 12, generator=random),
            blends={1: 0.5, 3: 1.5, 6: 2.0},
            decay=decay,
            by_text=says if by_text else None,
        )

    return replace(
        plain,
        regressions={
            "random": [regression(1.0, by_text=True)],
            "time": [regression(0.8, by_text=True), regression(0.5, by_text=False)],
        },
        start_prior=StartPrior(sizes=(1, 3, 5), logs=torch.randn(3, ITEMS, generator=random), blends=(1.0, 0.6, 0.2)),
        text_blends={"random": {2: 1.0, 4: 3.0}, "time": {1: 2.0}},
    )


def some_profiles(*, attributes: bool = True) -> list[Profile]:
    """Return histories of 0 to 12 items in either order, known and unknown items, with and without attributes."""
    rng = np.random.default_rng(5)
    told = [attribute_hash("gender", "f"), attribute_hash("age", "25")]
    return [
        Profile(
            items=[
                Item(position=int(position), feedback=int(rng.integers(0, 11)))
                for position in rng.permutation(ALL)[:length]
            ],
            in_time=in_time,
            attributes=told[: index % 3] if attributes else [],
        )
        for index, (length, in_time) in enumerate((n, t) for n in (0, 1, 2, 3, 5, 8, 12) for t in (False, True))
    ]
