"""What a client keeps between messages: the model, the settings of the run and the catalogue they belong to."""

import torch
from jaxtyping import Bool
from torch import Tensor

from metarec_shared.checkpoint import load_parameters
from metarec_shared.device import resolve_device
from metarec_shared.errors import WireError
from metarec_shared.exchange import Parameters
from metarec_shared.model import BertRecommender
from metarec_shared.randomness import generator
from metarec_shared.settings import Settings

USERS_AT_ONCE = 512
"""Users of one backward or evaluation pass; more are taken in several passes of the same result."""


class Learner:
    """A recommender into which each message's parameters are loaded.

    Args:
        settings: The run's settings.
        catalogue: Fingerprint of the items and their text vectors.
        text: Frozen text vectors of the catalogue, [items, text].
    """

    def __init__(self, settings: Settings, catalogue: str, text: Tensor) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.device = resolve_device(settings.run.device)
        self.model = BertRecommender(text, settings.model, settings.adaptation).to(self.device)

    def check_catalogue(self, catalogue: str) -> None:
        """Refuse a message that belongs to another catalogue.

        Raises:
            WireError: The fingerprints differ.
        """
        if catalogue != self.catalogue:
            raise WireError(
                f"the server's items are {catalogue}, this node's {self.catalogue}: another catalogue or text encoder"
            )

    def load(self, parameters: Parameters) -> None:
        """Copy ``parameters`` into the model.

        Raises:
            WireError: Names or shapes are not the model's.
        """
        load_parameters(self.model, parameters, WireError)

    def id_mask(self, round_number: int) -> Bool[Tensor, " items"] | None:
        """Draw which items' ID vectors are on in a round; the draw is public, so it is one for all nodes."""
        rate = self.settings.tasks.id_dropout
        if not rate or self.model.item_ids is None:
            return None
        draws = generator(self.settings.run.seed, "id dropout", round_number).random(len(self.model.text))
        return torch.from_numpy(draws >= rate).to(self.device)
