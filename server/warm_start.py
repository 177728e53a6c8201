"""A public warm start: a run that begins where a run on public data ended, its catalogue another one if need be."""

from pathlib import Path

from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import CheckpointError
from metarec_shared.exchange import Parameters
from metarec_shared.settings import Settings
from metarec_shared.sources import ItemFeatures


def warm_parameters(settings: Settings, public: ItemFeatures) -> Parameters:
    """Return the parameters of the run in ``run.init`` for this run's catalogue.

    Items with the same text are the same items; one that the earlier run did not know has no ID vector, and the score
    bias that its text speaks for.

    Raises:
        CheckpointError: The run cannot be read, or its model or text encoder is another one.
    """
    folder = Path(settings.run.init)
    checkpoint = load_checkpoint(folder)
    if checkpoint.text_encoder != public.features.encoder:
        raise CheckpointError(
            f"{folder}: text vectors came from {checkpoint.text_encoder}, this run's from {public.features.encoder}; "
            "--init needs the same text encoder"
        )
    if checkpoint.settings.model != settings.model:
        raise CheckpointError(f"{folder}: made with {checkpoint.settings.model}, this run has {settings.model}")
    if checkpoint.settings.adaptation.parameters != settings.adaptation.parameters:
        raise CheckpointError(
            f"{folder}: made with adaptation.parameters = {checkpoint.settings.adaptation.parameters}, this run has "
            f"{settings.adaptation.parameters}"
        )
    here, there = public.items.known.shared_with(checkpoint.items.known)
    model = checkpoint.transferred(public.text, here, there)
    return {name: value.detach() for name, value in model.named_parameters()}
