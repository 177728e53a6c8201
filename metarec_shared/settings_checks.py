"""What settings must be together: what one of them asks for and another one cannot do."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from metarec_shared.errors import SettingsError

if TYPE_CHECKING:
    from metarec_shared.settings import AdaptationSettings, Settings

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Who a run's figures can be told to; server.tracking writes to each."""

ADAPTED_BY_METHOD: Mapping[str, tuple[str, ...]] = {
    "anil": ("user-vector", "head"),
    "reptile": ("user-vector",),
    "proximal": ("user-vector",),
    "hypernetwork": ("user-vector",),
}
"""What a meta-learner can adapt, where it cannot adapt everything."""


def check_together(settings: "Settings", source: str) -> None:
    """Check that the settings' tables fit each other.

    Args:
        settings: To be checked.
        source: Where they come from, for the error.

    Raises:
        SettingsError: They do not.
    """
    model, data, adaptation = settings.model, settings.data, settings.adaptation
    if unknown := [name for name in settings.run.tracker_names if name not in TRACKERS]:
        raise SettingsError(
            f"{source}: run.trackers must be some of {', '.join(TRACKERS)}, by commas, got {', '.join(unknown)}"
        )
    if model.width % model.heads:
        raise SettingsError(
            f"{source}: model.width must be a multiple of model.heads, got {model.width} and {model.heads}"
        )
    _check_adaptation(adaptation, source)
    if settings.run.precision != "float32" and settings.federation.clip_norm:
        raise SettingsError(f"{source}: federation.clip-norm needs run.precision = float32: norms are a promise")
    if adaptation.candidates and settings.federation.clip_norm:
        raise SettingsError(f"{source}: give either adaptation.candidates or federation.clip-norm")
    if model.rating_weight and adaptation.pseudo_labels and settings.federation.clip_norm:
        raise SettingsError(
            f"{source}: with federation.clip-norm give either model.rating-weight or adaptation.pseudo-labels: a "
            "pseudo-label may be a rated query item, and ghost norms count items once"
        )
    _check_aggregation(settings, source)
    _check_catalogues(settings, source)
    _check_target(settings, source)
    _check_encoder(settings, source)
    _check_pretraining(settings, source)
    _check_low_rank(settings, source)
    if data.rating_high < data.rating_low:
        raise SettingsError(
            f"{source}: data.rating-high must not be below data.rating-low ({data.rating_low}), got {data.rating_high}"
        )


def _check_adaptation(adaptation: "AdaptationSettings", source: str) -> None:
    """Refuse what a meta-learner, or what it adapts, cannot do."""
    method, adapted = adaptation.method, adaptation.parameters
    if adapted not in ADAPTED_BY_METHOD.get(method, (adapted,)):
        raise SettingsError(
            f"{source}: adaptation.method = {method} needs adaptation.parameters = "
            f"{' or '.join(ADAPTED_BY_METHOD[method])}, got {adapted}"
        )
    for name, wanted in (("candidates", adaptation.candidates), ("pseudo-labels", adaptation.pseudo_labels)):
        if wanted and adapted not in ("user-vector", "head"):
            raise SettingsError(
                f"{source}: adaptation.{name} needs adaptation.parameters = user-vector or head, got {adapted}"
            )
    if adaptation.candidates:
        if method in ("reptile", "proximal", "hypernetwork"):
            raise SettingsError(
                f"{source}: adaptation.candidates needs adaptation.method meta-sgd, maml, fomaml or anil, got {method}"
            )
        if adaptation.pseudo_labels or adaptation.perturbation:
            raise SettingsError(
                f"{source}: give either adaptation.candidates or adaptation.pseudo-labels and adaptation.perturbation"
            )


def _check_aggregation(settings: "Settings", source: str) -> None:
    """Refuse a rule that compares nodes where it means nothing."""
    limits, mode = settings.federation, settings.privacy.mode
    rule = f"federation.aggregation = {limits.aggregation}"
    if limits.aggregation == "mean":
        return
    if mode in ("central", "local"):
        why = "the server's noise is calibrated for a sum" if mode == "central" else "one device is mostly noise"
        raise SettingsError(f"{source}: {rule} needs privacy.mode = none or site, got {mode}: {why}")
    if limits.aggregation == "trimmed-mean" and not 1e-6 <= limits.trim < 0.5:
        raise SettingsError(f"{source}: {rule} needs federation.trim above 0 and below 0.5, got {limits.trim:g}")
    for name, value in (("min-nodes", limits.min_nodes), ("cohort", limits.cohort)):
        if value < limits.fewest_updates:
            raise SettingsError(
                f"{source}: {rule} needs federation.{name} of at least {limits.fewest_updates}, got {value}"
            )


def _check_catalogues(settings: "Settings", source: str) -> None:
    """Refuse what has a row an item where nodes have different items."""
    if not settings.federation.own_catalogues:
        return
    wanted: tuple[tuple[str, object, object], ...] = (
        ("model.item-ids", settings.model.item_ids, False),
        ("model.target", settings.model.target, "ranking"),
        ("adaptation.candidates", settings.adaptation.candidates, 0),
        ("data.item-vectors", settings.data.item_vectors, ""),
        ("text.adapt-steps", settings.text.adapt_steps, 0),
    )
    for name, got, need in wanted:
        if got != need:
            raise SettingsError(f"{source}: federation.catalogues = own needs {name} = {need!r}, got {got!r}")
    if settings.text.encoder in ("auto", "builtin", "random"):
        raise SettingsError(
            f"{source}: federation.catalogues = own needs one text encoder for all nodes: text.encoder must "
            f"name a folder or a hub model, got {settings.text.encoder}"
        )


def _check_target(settings: "Settings", source: str) -> None:
    """Refuse what only the ranking model can do of the rating model."""
    if settings.model.target == "ranking":
        return
    for name, given in (("run.init", settings.run.init), ("pretraining.objective", settings.pretraining.rounds)):
        if given:
            raise SettingsError(f"{source}: {name} needs model.target = ranking, got rating")
    if settings.run.precision != "float32":
        raise SettingsError(f"{source}: model.target = rating needs run.precision = float32")


def _check_encoder(settings: "Settings", source: str) -> None:
    """Refuse what only one of the encoders can do of the other."""
    encoder, objective = settings.model.encoder, settings.pretraining.objective
    wanted = {"masked-item": "bert", "autoregressive": "gpt2"}.get(objective, encoder)
    if encoder != wanted:
        raise SettingsError(
            f"{source}: pretraining.objective = {objective} needs model.encoder = {wanted}, got {encoder}"
        )
    if encoder == "gpt2" and settings.model.recency:
        raise SettingsError(f"{source}: model.recency is for model.encoder = bert; gpt2 reads in time order anyway")
    if encoder == "gpt2" and settings.model.attribute_buckets:
        raise SettingsError(f"{source}: model.attribute-buckets needs model.encoder = bert, got gpt2")
    if settings.data.attribute_names and not settings.model.attribute_buckets:
        raise SettingsError(
            f"{source}: data.user-attributes needs a table to look them up in: set model.attribute-buckets, 256 say"
        )
    if encoder == "gpt2" and settings.adaptation.parameters == "lora":
        raise SettingsError(f"{source}: adaptation.parameters = lora needs model.encoder = bert, got gpt2")
    if objective != "none" and settings.run.precision != "float32":
        raise SettingsError(f"{source}: pretraining.objective needs run.precision = float32")


def _check_low_rank(settings: "Settings", source: str) -> None:
    """Refuse low-rank updates of what nobody trained, and of what every user has a copy of."""
    if not settings.federation.lora_rank:
        return
    if not settings.run.init:
        raise SettingsError(f"{source}: federation.lora-rank needs run.init: it fine-tunes an encoder that was trained")
    if settings.adaptation.parameters not in ("user-vector", "head"):
        raise SettingsError(
            f"{source}: federation.lora-rank needs adaptation.parameters = user-vector or head, got "
            f"{settings.adaptation.parameters}"
        )


def _check_pretraining(settings: "Settings", source: str) -> None:
    """Refuse an objective without rounds, rounds without an objective, and more of them than there are."""
    objective, rounds, most = settings.pretraining.objective, settings.pretraining.rounds, settings.federation.rounds
    if (objective == "none") != (rounds == 0):
        raise SettingsError(
            f"{source}: give both pretraining.objective and pretraining.rounds, got {objective} and {rounds}"
        )
    if rounds > most:
        raise SettingsError(f"{source}: pretraining.rounds are the first of federation.rounds, got {rounds} of {most}")
