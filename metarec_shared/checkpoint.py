"""A model on disk: all that a device or a site needs to adapt and recommend, and nothing about any user.

``model.safetensors`` is authoritative: parameters, text vectors, and in its header a JSON description.
``model.json`` repeats the description for people, ``catalogue.json`` holds the public items, ``README.md`` is the model
card. Each file is written atomically.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from metarec_shared.catalogue import Catalogue, TrainingItems
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import CheckpointError, MetaRecError
from metarec_shared.exchange import Parameters
from metarec_shared.files import write_atomically, write_json, write_text
from metarec_shared.model import BertRecommender
from metarec_shared.model_card import model_card
from metarec_shared.rating_model import RatingModel
from metarec_shared.settings import Scalar, Settings, flatten
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskRegression, TextWeights
from metarec_shared.tasks import Order
from metarec_shared.text_kernel import KernelBlends, TextKernel
from metarec_shared.text_ridge import fit_text_ridge

FORMAT = 5
_BEFORE: dict[int, dict[str, Scalar]] = {
    1: {
        "model.order-aware": False,
        "tasks.time-share": 0.0,
        "adaptation.evidence": False,
        "regression.text-kernel": 0.0,
        "regression.text-blend": False,
    },
    2: {"adaptation.evidence": False, "regression.text-kernel": 0.0, "regression.text-blend": False},
    3: {"regression.text-kernel": 0.0, "regression.text-blend": False},
    4: {"regression.text-blend": False},
}
"""What earlier formats could not do, so that their settings do not say it; their regressions have no decay."""
_STATES_BEFORE = 2
"""State tokens up to format 2."""
_STATES = "encoder.embeddings.word_embeddings.weight"
MODEL_FILE = "model.safetensors"
CATALOGUE_FILE = "catalogue.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A meta-initialization with everything it was trained for.

    Attributes:
        parameters: The meta-initialization.
        settings: The settings of the run.
        items: The whole catalogue, and which of it training knew.
        text: Frozen text vectors of the whole catalogue, [items, text].
        text_encoder: What made them.
        rating_scale: Scale of the ratings the model was trained with.
        round_number: Round after which the checkpoint was taken.
        validation: Its validation metric; None where none was measured.
        regressions: Task regressions that are added to the scores, by the order in which histories are read.
        start_prior: What is added where the support set begins a history; None: nothing.
        text_blends: What support items count for in the text kernel.
    """

    parameters: Parameters
    settings: Settings
    items: TrainingItems
    text: torch.Tensor
    text_encoder: str
    rating_scale: RatingScale | None
    round_number: int
    validation: float | None
    regressions: Mapping[Order, Sequence[TaskRegression]] = field(default_factory=dict)
    start_prior: StartPrior | None = None
    text_blends: KernelBlends = field(default_factory=dict)

    @property
    def has_additions(self) -> bool:
        """Whether anything is added to the model's scores."""
        return bool(self.regressions or self.text_blends) or self.start_prior is not None

    def model(self, device: torch.device | None = None) -> BertRecommender:
        """Return the recommender over the items that training knew.

        Raises:
            CheckpointError: It predicts ratings.
        """
        self._check_target("ranking")
        text = self.text[torch.from_numpy(self.items.positions)]
        model = BertRecommender(text, self.settings.model, self.settings.adaptation)
        load_parameters(model, self.parameters, CheckpointError)
        place = device or torch.device("cpu")
        model.regressions = {order: [one.to(place) for one in found] for order, found in self.regressions.items()}
        model.start_prior = None if self.start_prior is None else self.start_prior.to(place)
        if self.text_blends:
            sharpness = self.settings.regression.text_kernel_sharpness
            model.text_kernel = TextKernel.over(text, sharpness, blends=self.text_blends).to(place)
        return model.to(place).eval()

    def rating_model(self, *, full: bool = False) -> RatingModel:
        """Return the rating model, over the items that training knew or the whole catalogue.

        An item training did not know comes by its text alone, as one that nobody rated does; with ``rating.kernel``
        what items of similar text are like is part of that (``RatingModel.tell``).

        Raises:
            CheckpointError: It ranks.
        """
        self._check_target("rating")
        known = torch.from_numpy(self.items.positions)
        parameters = dict(self.parameters)
        if full:
            for name in ("item_bias", "item_ids"):
                value = parameters[name]
                parameters[name] = value.new_zeros(len(self.text), *value.shape[1:]).index_copy(0, known, value)
        positions = np.arange(len(self.text)) if full else self.items.positions
        model = RatingModel.over(self.items.catalogue, self.text, positions, self.settings.rating)
        load_parameters(model, parameters, CheckpointError)
        model.tell(self.settings.rating.kernel)
        return model.eval()

    def _check_target(self, wanted: str) -> None:
        if self.settings.model.target != wanted:
            raise CheckpointError(
                f"the run was made with model.target = {self.settings.model.target}; wanted one with {wanted}"
            )

    def full_model(self) -> BertRecommender:
        """Return the recommender over the whole catalogue: an item training did not know comes by its text alone."""
        return self.transferred(self.text, self.items.positions, np.arange(len(self.items.positions)))

    def transferred(
        self, text: torch.Tensor, positions: NDArray[np.int64], known: NDArray[np.int64]
    ) -> BertRecommender:
        """Return the recommender over another catalogue: an item training did not know comes by its text alone.

        Such an item has no ID vector. Its score bias, and what task regressions and the start prior say of it, are
        predicted from its text as those of the known items are from theirs. In a support set it speaks for items of
        like text as much as a known one does or more (``text_kernel``).

        Args:
            text: Text vectors of that catalogue, by the same encoder, [items, text].
            positions: Where in that catalogue the items stand that training knew too.
            known: Which of training's items those are.
        """
        self._check_target("ranking")
        at, of = torch.from_numpy(positions), torch.from_numpy(known)
        model = BertRecommender(text, self.settings.model, self.settings.adaptation)
        parameters = dict(self.parameters)
        bias = self.parameters["item_bias"]
        expected = self._bias_by_text(text) if len(positions) < len(text) else bias.new_empty(len(text))
        parameters["item_bias"] = expected.index_put((at,), bias[of])
        if model.item_ids is not None:
            ids = self.parameters["item_ids"]
            parameters["item_ids"] = ids.new_zeros(len(text), ids.shape[1]).index_put((at,), ids[of])
        load_parameters(model, parameters, CheckpointError)
        model.regressions = {
            order: [one.transferred(len(text), at, of, text) for one in found]
            for order, found in self.regressions.items()
        }
        if self.start_prior is not None:
            model.start_prior = self.start_prior.transferred(len(text), at, of, (self._known_text, text))
        sizes, unknown = self.settings.regression, torch.ones(len(text), dtype=torch.bool).index_fill(0, at, False)
        if self.text_blends or (sizes.text_kernel and unknown.any()):
            model.text_kernel = TextKernel.over(
                text, sizes.text_kernel_sharpness, blends=self.text_blends, unknown=unknown, weight=sizes.text_kernel
            )
        return model.eval()

    @property
    def _known_text(self) -> torch.Tensor:
        return self.text[torch.from_numpy(self.items.positions)]

    def _bias_by_text(self, text: torch.Tensor) -> torch.Tensor:
        return fit_text_ridge(self._known_text, self.parameters["item_bias"][:, None]).predictions(text)[:, 0]

    def describe(self) -> dict[str, Any]:
        """Return the description that stands in the file's header."""
        scale, prior = self.rating_scale, self.start_prior
        return {
            "format": FORMAT,
            "round": self.round_number,
            "validation": self.validation,
            "text_encoder": self.text_encoder,
            "rating_scale": None if scale is None else [scale.low, scale.high],
            "catalogue": self.items.catalogue.fingerprint,
            "regressions": {
                order: [{"decay": one.decay, "blends": _by_size(one.blends)} for one in found]
                for order, found in self.regressions.items()
            },
            "text_blends": {order: _by_size(blends) for order, blends in self.text_blends.items()},
            "start_prior": None if prior is None else {"sizes": prior.sizes, "blends": prior.blends},
            "settings": json.loads(self.settings.to_json()),
        }


def load_parameters(
    model: nn.Module, parameters: Parameters, error: type[MetaRecError], names: Iterable[str] | None = None
) -> None:
    """Copy ``parameters`` into ``model``.

    Args:
        model: Where to.
        parameters: By name.
        error: What to raise.
        names: Which parameters must be given, the others stay; None: all.

    Raises:
        MetaRecError: As ``error``: names or shapes are not the model's.
    """
    own = dict(model.named_parameters())
    if names is not None:
        own = {name: own[name] for name in names}
    if own.keys() != parameters.keys():
        odd = ", ".join(sorted(own.keys() ^ parameters.keys()))
        raise error(f"parameters do not fit the model; missing or unknown: {odd}")
    for name, value in parameters.items():
        if own[name].shape != value.shape:
            raise error(f"parameter {name}: got shape {tuple(value.shape)}, wanted {tuple(own[name].shape)}")
    with torch.no_grad():
        torch._foreach_copy_([own[name] for name in parameters], list(parameters.values()))


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint to ``folder``; an older one there is replaced file by file."""
    description = checkpoint.describe()
    tensors = {f"parameters/{name}": value.detach().cpu() for name, value in checkpoint.parameters.items()}
    for order, found in checkpoint.regressions.items():
        for place, regression in enumerate(found):
            tensors |= _regression_tensors(regression, _regression_prefix(order, place))
    if checkpoint.start_prior is not None:
        tensors["start/logs"] = checkpoint.start_prior.logs
    tensors["text"] = checkpoint.text.contiguous()
    tensors["known_items"] = torch.from_numpy(checkpoint.items.positions)
    catalogue = checkpoint.items.catalogue
    columns = {"item_ids": catalogue.item_ids, "titles": catalogue.titles, "texts": catalogue.texts}
    write_text(folder / CATALOGUE_FILE, json.dumps(columns, ensure_ascii=False) + "\n")
    save_tensors(folder / MODEL_FILE, tensors, description)
    write_json(folder / "model.json", description)
    write_text(folder / "README.md", model_card({}, description["settings"]))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: There is none, it is cut short, of another format, or its files do not belong together.
    """
    tensors, description = load_tensors(folder / MODEL_FILE)
    if description.get("format") not in (FORMAT, *_BEFORE):
        raise CheckpointError(
            f"{folder / MODEL_FILE}: format {description.get('format')!r} is not the format {FORMAT} this version reads"
        )
    catalogue = _load_catalogue(folder / CATALOGUE_FILE)
    if catalogue.fingerprint != description["catalogue"]:
        raise CheckpointError(f"{folder / CATALOGUE_FILE} is not the catalogue that {MODEL_FILE} was trained on")
    values = _today(description["format"], flatten(description["settings"], MODEL_FILE))
    settings = Settings().with_values(values, str(folder / MODEL_FILE))
    scale = description["rating_scale"]
    parameters = tensors_below(tensors, "parameters/")
    states = parameters.get(_STATES)
    if settings.model.order_aware and states is not None and len(states) == _STATES_BEFORE:
        parameters[_STATES] = states[[0, 1, 1]]  # histories from the start were read as any in time order
    return Checkpoint(
        parameters=parameters,
        settings=settings,
        items=TrainingItems(catalogue=catalogue, positions=tensors["known_items"].numpy().astype(np.int64)),
        text=tensors["text"],
        text_encoder=description["text_encoder"],
        rating_scale=None if scale is None else RatingScale(low=scale[0], high=scale[1]),
        round_number=description["round"],
        validation=description["validation"],
        regressions={
            order: [
                _load_regression(tensors, _regression_prefix(order, place), described)
                for place, described in enumerate(found if isinstance(found, list) else [{"blends": found}])
            ]
            for order, found in description.get("regressions", {}).items()
        },
        start_prior=_load_start_prior(tensors, description.get("start_prior")),
        text_blends={order: _sized(blends) for order, blends in description.get("text_blends", {}).items()},
    )


def _today(written: int, values: dict[str, Any]) -> dict[str, Any]:
    """Return settings that a checkpoint of format ``written`` holds, as this version names them.

    Up to format 2 the meta-learner was two settings. One that learned inner rates adapts as Meta-SGD does, whether it
    was trained in first or second order.
    """
    values = _BEFORE.get(written, {}) | values
    order, learned = values.pop("adaptation.order", None), values.pop("adaptation.learned", None)
    if order is not None:
        values["adaptation.method"] = "meta-sgd" if learned else {"second": "maml"}.get(order, "fomaml")
    return values


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Write tensors and a JSON description in one safetensors file, atomically."""
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"metarec": json.dumps(description, allow_nan=False)}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Raises:
        CheckpointError: The file is missing, cut short, or was written by something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; wanted the folder of a run")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads(file.metadata()["metarec"])
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, cut short, or not written by MetaRec: {error}") from error


def tensors_below(tensors: dict[str, torch.Tensor], prefix: str) -> Parameters:
    """Return the tensors whose name begins with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _regression_prefix(order: str, place: int) -> str:
    """Return what the names of a regression's tensors begin with; up to format 4 an order had one regression."""
    return f"{order}/" if place == 0 else f"{order}/{place}/"


def _regression_tensors(regression: TaskRegression, prefix: str) -> dict[str, torch.Tensor]:
    tensors = {"neighbours": regression.neighbours.to(torch.int32), "weights": regression.weights}
    if regression.by_text is not None:
        tensors["text-coefficients"] = regression.by_text.coefficients
        tensors["text-intercept"] = regression.by_text.intercept
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _by_size(blends: Mapping[int, float]) -> dict[str, float]:
    return {str(size): blend for size, blend in blends.items()}


def _sized(blends: Mapping[str, float]) -> dict[int, float]:
    return {int(size): blend for size, blend in blends.items()}


def _load_regression(tensors: dict[str, torch.Tensor], prefix: str, described: dict[str, Any]) -> TaskRegression:
    """Read a regression; up to format 2 it had one blend for support sets of any size, up to format 4 no decay."""
    coefficients, by_text, blends = tensors.get(f"{prefix}text-coefficients"), None, described["blends"]
    if coefficients is not None:
        by_text = TextWeights(
            coefficients=coefficients,
            intercept=tensors[f"{prefix}text-intercept"],
            positions=torch.zeros(0, dtype=torch.int64),
            text=coefficients[:0],
        )
    return TaskRegression(
        neighbours=tensors[f"{prefix}neighbours"].long(),
        weights=tensors[f"{prefix}weights"],
        blends=_sized(blends) if isinstance(blends, dict) else {1: blends},
        decay=described.get("decay", 1.0),
        by_text=by_text,
    )


def _load_start_prior(tensors: dict[str, torch.Tensor], described: dict[str, list[Any]] | None) -> StartPrior | None:
    if described is None:
        return None
    sizes, blends = (tuple(described[name]) for name in ("sizes", "blends"))
    return StartPrior(sizes=sizes, logs=tensors["start/logs"], blends=blends)


def _load_catalogue(path: Path) -> Catalogue:
    try:
        columns = json.loads(path.read_text(encoding="utf-8"))
        item_ids, titles, texts = (tuple(columns[name]) for name in ("item_ids", "titles", "texts"))
        if not len(item_ids) == len(titles) == len(texts):
            raise ValueError(f"{len(item_ids)} ids, {len(titles)} titles and {len(texts)} texts")
        return Catalogue(item_ids=item_ids, titles=titles, texts=texts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot read the catalogue of the model: {error}") from error
