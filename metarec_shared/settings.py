"""The settings of a run: one typed tree, parsed once, frozen afterwards.

TOML keys are kebab-case (``[outer] learning-rate``), attributes snake_case (``settings.outer.learning_rate``).
Defaults stand here and nowhere else; ``[tool.flwr.app.config]`` in pyproject.toml repeats them because Flower
overrides only keys that exist there, and a test holds the two equal.
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from metarec_shared.errors import SettingsError
from metarec_shared.settings_checks import check_together

Scalar = bool | int | float | str

Mode = Literal["none", "site", "central", "local"]
"""Of privacy: nobody is protected; a site clips and noises; devices clip, the server noises; every device noises."""


def setting(
    default: Any, doc: str, *, low: float | None = None, high: float | None = None, infinite: bool = False
) -> Any:
    """Declare one setting: its default, what it means, the closed range of its value, and whether that may be inf."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "infinite": infinite})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What this run is and where it runs."""

    seed: int = setting(0, "seed of every draw, the split of users into training, validation and test included", low=0)
    out: str = setting(
        "", "folder of the run; empty: metarec-runs/<time>, under Flower's engines ~/.metarec/runs/<time>"
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where tensors live; auto: cuda where there is one")
    init: str = setting(
        "", "folder of a run to start from (a public warm start); empty: the first parameters are drawn"
    )
    resume: bool = setting(False, "go on from the last checkpoint in `out`")
    memory_gb: float = setting(
        0.0, "memory the process may take, in GB; larger cohorts are computed in parts; 0: most of what is free", low=0
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "numbers that matrix products are computed in; bfloat16 is meant for GPUs"
    )
    trackers: str = setting(
        "tensorboard", "who is told a run's figures, by commas: tensorboard, wandb (offline), mlflow (a local store)"
    )
    tracking_folder: str = setting(
        "", "where wandb and mlflow keep the figures, for several runs together; empty: the folder of the run"
    )

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The names in ``trackers``, each once."""
        return _names(self.trackers)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Where interactions and the catalogue come from."""

    path: str = setting("", "folder with the data; empty: a generated catalogue and generated users")
    catalogue: str = setting("", "folder with the items; empty: data.path")
    on_bad_rows: Literal["error", "skip"] = setting("error", "what to do with rows that cannot be read")
    hold_out_items: float = setting(
        0.0, "share of items hidden from training, for cold-item evaluation", low=0, high=0.9
    )
    item_vectors: str = setting(
        "",
        "file of further item vectors by item id (.npz, .npy, .csv, .parquet), beside those of the text; empty: none",
    )
    user_attributes: str = setting(
        "",
        "columns of the data's file of users, by commas, that users choose to tell the model; empty: it is not read",
    )
    rating_low: float = setting(0.0, "lowest rating of the scale; equal to rating-high: as the layout says")
    rating_high: float = setting(0.0, "highest rating of the scale; equal to rating-low: as the layout says")

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The columns in ``user_attributes``, each once."""
        return _names(self.user_attributes)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """The generated data set that stands in where no data is given."""

    users: int = setting(1200, "generated users", low=10)
    items: int = setting(400, "generated items", low=20)
    interactions: int = setting(40, "mean history length of a generated user", low=4)
    seed: int = setting(0, "seed of the generator, apart from the run's seed", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How item text becomes a vector."""

    encoder: str = setting("auto", "auto | builtin | random | a folder with a transformers BERT | a model hub name")
    revision: str = setting("", "revision of a hub model; empty: the pinned one for auto, else the newest")
    max_tokens: int = setting(64, "tokens of an item's text that are read", low=4, high=512)
    batch: int = setting(64, "texts encoded in one pass", low=1)
    adapt_steps: int = setting(
        0, "steps in which a pre-trained encoder goes on by masked language modelling on the items' texts", low=0
    )
    builtin_width: int = setting(128, "width of the built-in BERT", low=8)
    builtin_layers: int = setting(2, "layers of the built-in BERT", low=1)
    builtin_vocabulary: int = setting(4000, "word pieces of the built-in tokenizer", low=100)
    builtin_steps: int = setting(300, "steps of masked-language-model pre-training of the built-in BERT", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The recommender."""

    target: Literal["ranking", "rating"] = setting(
        "ranking", "what is predicted: which items a user meets next, or how he rates items"
    )
    encoder: Literal["bert", "gpt2"] = setting(
        "bert", "what reads a support set: bert, as a set; gpt2, causally, oldest item first"
    )
    width: int = setting(64, "width of item vectors, of the user encoder and of the user vector", low=4)
    layers: int = setting(2, "layers of the user encoder", low=1)
    heads: int = setting(2, "attention heads of the user encoder", low=1)
    intermediate: int = setting(256, "width of the feed-forward layers of the user encoder", low=4)
    item_ids: bool = setting(True, "learn an ID vector an item beside its text")
    feedback: bool = setting(False, "add an embedding of the rating to each support item")
    order_aware: bool = setting(True, "read histories in time order with a state token of their own")
    recency: bool = setting(False, "add an embedding of the rank in time to each support item that bert reads")
    rating_weight: float = setting(
        0.0, "weight in the query loss of the squared error of predicted ratings, from 0 to 1; 0: none are", low=0
    )
    attribute_buckets: int = setting(
        0,
        "rows of the table of user attributes, by hash: ten times the values, lest many share one; 0: bert reads none",
        low=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """How a user's history becomes a support set and a query set in meta-training."""

    support: int = setting(10, "largest support set", low=1)
    query: int = setting(40, "largest query set", low=1)
    time_share: float = setting(
        0.5,
        "share of tasks that are interactions in a row, where the data has time; the others are in random order",
        low=0,
        high=1,
    )
    time_query: int = setting(10, "largest query set of a task in time order", low=1)
    start_share: float = setting(
        0.5, "share of tasks in time order that begin where the history does, as a new user's will", low=0, high=1
    )
    vary_support: float = setting(0.8, "share of tasks whose support size is drawn from 1..support", low=0, high=1)
    support_dropout: float = setting(0.0, "chance of a support item to be hidden from its task", low=0, high=0.95)
    feature_dropout: float = setting(0.2, "dropout on the user encoder's inputs and output", low=0, high=0.95)
    attribute_dropout: float = setting(0.2, "chance of a user attribute to be hidden from its task", low=0, high=1)
    id_dropout: float = setting(0.2, "chance of an item's ID vector to be off for a round", low=0, high=0.95)
    reorder: float = setting(
        0.0, "share of tasks half of whose support set swaps its ranks in time; where the encoder reads them",
        low=0, high=1,
    )  # fmt: skip
    substitute: float = setting(0.0, "chance of a support item to be replaced by one of similar text", low=0, high=0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationSettings:
    """The inner loop."""

    method: Literal["meta-sgd", "maml", "fomaml", "anil", "reptile", "proximal", "hypernetwork"] = setting(
        "meta-sgd", "the meta-learner: how users adapt, and what the meta-initialization learns from it"
    )
    parameters: Literal["user-vector", "head", "lora", "all"] = setting("user-vector", "what the inner loop adapts")
    steps: int = setting(1, "adaptation steps; 0: no inner loop; a hypernetwork takes none", low=0, high=100)
    learning_rate: float = setting(
        0.0, "inner learning rate, the initial one where it is learned; 0: the default of what is adapted", low=0
    )
    evidence: bool = setting(
        True, "meta-sgd on user-vector or head: learn how much less a step is worth on a smaller support set"
    )
    proximal: float = setting(1.0, "proximal: how strongly users are held at the initialization", low=1e-3)
    pseudo_labels: int = setting(
        0, "self-training: likely items that join the support set before users adapt once more; 0: none", low=0
    )
    pseudo_weight: float = setting(0.3, "self-training: weight of the likeliest one over a support item's", low=0.001)
    perturbation: float = setting(
        0.0, "adversarial training: how far support items are read from where they are; 0: not at all", low=0
    )
    lora_rank: int = setting(4, "rank of the adapted update where parameters = lora", low=1)
    candidates: int = setting(
        0, "items a round's softmax is over, about, drawn by popularity; 0: the whole catalogue", low=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionSettings:
    """The linear meta-learner in closed form that is added to the adapted model's scores; off under privacy."""

    enabled: bool = setting(True, "fit it after meta-training, on second moments of all meta-training users' tasks")
    support: int = setting(0, "support items of its tasks in random order, at most; 0: tasks.support", low=0)
    penalty: float = setting(
        0.5,
        "of its squared weights, over the mean diagonal of the moments; multiples are tried in random order",
        low=1e-6,
    )
    decay: float = setting(
        0.8, "in time order: what an interaction counts for over one that is nearer by one", low=0.01, high=0.95
    )
    neighbours: int = setting(200, "weights kept of each support item", low=1, high=4096)
    most_items: int = setting(8192, "items it is solved for at most, the most frequent ones", low=1)
    by_text: bool = setting(True, "predict from their text the weights of items that training does not know")
    text_kernel: float = setting(
        128.0, "what support items that training does not know count for items of like text, at least", low=0
    )
    text_kernel_sharpness: float = setting(8.0, "of that likeness, exp(sharpness (cosine - 1))", low=0, high=1e4)
    text_blend: bool = setting(
        True, "let support items speak for items of like text, known or not, as much as validation users choose"
    )
    start_prior: bool = setting(True, "add the log of how many users had an item after as many first interactions")


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingSettings:
    """The model that is trained where model.target = rating, and its tasks."""

    width: int = setting(16, "width of a user's vector, beside its bias", low=1)
    content: bool = setting(False, "read the words of item texts and the years of titles beside the text vectors")
    support: int = setting(60, "most ratings that are given in a task of meta-training", low=1)
    query: int = setting(40, "most ratings that are asked for in one", low=1)
    hidden: float = setting(0.2, "share of tasks in which items have nothing of their own, text alone", low=0, high=1)
    decay: float = setting(0.003, "penalty of what is an item's own, each time it appears in a task", low=0)
    text_decay: float = setting(0.001, "penalty of what texts say of the ratings of their items, in each task", low=0)
    kernel: float = setting(
        0.0,
        "share of items alike by a kernel in what is said of items that nobody rated, the rest is linear",
        low=0,
        high=1,
    )
    user_kernel: float = setting(
        0.0,
        "how far a user's taste in texts may differ from all that features hold, over the noise of a rating, where "
        "ratings are predicted; 0: not at all",
        low=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingSettings:
    """What the first rounds train before meta-learning: the same model, by another loss of every user's history."""

    objective: Literal["none", "masked-item", "autoregressive", "contrastive"] = setting(
        "none", "loss of pre-training; autoregressive needs model.encoder = gpt2, masked-item bert"
    )
    rounds: int = setting(0, "rounds of pre-training, the first of federation.rounds", low=0)
    length: int = setting(30, "items of a history that are read in a round, a stretch of it in time", low=2, high=60)
    masked: float = setting(0.3, "masked-item: chance of an item to be masked", low=0.01, high=0.99)
    crop: float = setting(0.6, "contrastive: share of the history that each of the two crops keeps", low=0.05, high=1)
    temperature: float = setting(0.5, "contrastive: what cosine similarities are divided by", low=0.01)
    negatives: int = setting(
        256, "contrastive: histories drawn from the catalogue that a user's must differ from", low=1
    )
    coherence: float = setting(
        5.0, "contrastive: how much more such a history holds items of similar text; 0: popularity alone", low=0
    )

    def trains(self, round_number: int) -> bool:
        """Return whether a round, counted from 1, is one of pre-training."""
        return self.objective != "none" and round_number <= self.rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSettings:
    """The outer loop's optimizer, on the server."""

    optimizer: Literal["adamw", "adam", "sgd"] = setting("adamw", "torch.optim optimizer of the outer loop")
    learning_rate: float = setting(4e-3, "peak outer learning rate", low=0)
    schedule: Literal["cosine", "constant"] = setting("constant", "outer learning rate after the warm-up")
    warmup_rounds: int = setting(100, "rounds in which the outer learning rate rises linearly", low=0)
    weight_decay: float = setting(0.3, "decoupled for adamw, else an L2 penalty", low=0)
    averaging: float = setting(
        0.99, "share of the average kept a round; 0: the last round counts alone", low=0, high=0.9999
    )
    momentum: float = setting(0.9, "momentum of sgd", low=0, high=0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationSettings:
    """Rounds, nodes and what the server does when nodes fail."""

    rounds: int = setting(1000, "rounds of meta-training", low=1)
    cohort: int = setting(256, "users a round, over all sampled nodes", low=1)
    nodes: int = setting(0, "simulated nodes; 0: one a user", low=0)
    partition: Literal["even", "skewed"] = setting("even", "how users are spread where nodes are fewer than users")
    weighting: Literal["users", "nodes"] = setting("users", "every user weighs the same, or every node")
    evaluate_every: int = setting(25, "rounds between evaluations on validation users", low=1)
    patience: int = setting(0, "evaluations without a better one before the run stops early; 0: never", low=0)
    checkpoint_every: int = setting(25, "rounds between checkpoints a run can be resumed from", low=1)
    min_nodes: int = setting(1, "nodes that must be connected, and answer, for a round to count", low=1)
    released: str = setting(
        "all", "parameters that are trained, whose gradients leave the nodes: all, or beginnings of names, by commas"
    )
    lora_rank: int = setting(
        0,
        "rank of the updates that are trained in place of the encoder, from a warm start; 0: the encoder itself",
        low=0,
    )
    clip_norm: float = setting(0.0, "largest norm of one user's meta-gradient; 0: nobody is clipped", low=0)
    max_failures: float = setting(0.5, "share of sampled nodes that may fail before the run stops", low=0, high=1)
    round_timeout: float = setting(600.0, "seconds the server waits for nodes and for replies", low=0.1)
    catalogues: Literal["one", "own"] = setting(
        "one",
        "one: all nodes know the same items; own: each has its own, known by their text, and nothing that has a row an "
        "item travels",
    )
    sites: str = setting("", "file with the names that nodes were enrolled under; empty: a node says its own")
    aggregation: Literal["mean", "trimmed-mean", "median", "krum"] = setting(
        "mean",
        "how updates become one; all but mean bear single nodes that lie, hold all updates of a round in memory, and "
        "give every node one vote",
    )
    trim: float = setting(
        0.2, "trimmed-mean: share of nodes left out at either end of every coordinate", low=0, high=0.5
    )
    byzantine: int = setting(1, "krum: nodes that may lie, f of at least 2 f + 3 that answer", low=0)

    @property
    def own_catalogues(self) -> bool:
        """Whether every node has items of its own."""
        return self.catalogues == "own"

    @property
    def fewest_updates(self) -> int:
        """Updates below which the aggregation rule means nothing: one node of a few outvotes or is all of the rest."""
        match self.aggregation:
            case "mean":
                return 1
            case "median":
                return 3
            case "trimmed-mean":
                some = max(3, math.ceil(1 / self.trim))
                return some if int(self.trim * some) else some + 1  # a 161st of 161 rounds to none
            case _:
                return 2 * self.byzantine + 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """Differential privacy of one user's whole history; the clip norm is ``federation.clip-norm``.

    In a deployment these are what the coordinator asks for: every node compares them with a file of its own and refuses
    what is laxer.
    """

    mode: Literal["none", "site", "central", "local"] = setting(
        "none", "who clips and who adds noise: nobody, the site, the server, or every device"
    )
    epsilon: float = setting(
        0.0, "target over all releases of the run, for which the noise is solved; inf: clip alone", low=0, infinite=True
    )
    delta: float = setting(1e-5, "chance that epsilon does not hold", low=1e-12, high=0.1)
    noise_multiplier: float = setting(0.0, "noise of meta-updates over their sensitivity; 0: from epsilon", low=0)
    sampling_rate: float = setting(0.0, "chance of a user to take part in a round; 0: cohort / users", low=0, high=1)
    popularity_share: float = setting(0.1, "share of epsilon that noised item counts may cost", low=0, high=0.9)
    popularity_noise: float = setting(0.0, "noise of item counts over their sensitivity; 0: from the share", low=0)
    popularity_norm: float = setting(10.0, "largest norm of one user's item counts", low=0.01)
    item_ids: bool = setting(False, "release gradients of ID vectors, one row an item, too")
    randomness: Literal["secure", "simulated"] = setting(
        "secure", "where noise and sampling come from: the system's entropy, or the run's seed"
    )
    allow_mixed: bool = setting(False, "take noised and raw updates in one run")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSettings:
    """How many bits of a number travel; rounding is random and unbiased."""

    update_bits: Literal[32, 16, 8] = setting(32, "bits of a number in a meta-update, from node to server")
    parameter_bits: Literal[32, 16, 8] = setting(32, "bits of a number in a meta-initialization, from server to node")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """The cold-user protocol by which checkpoints are selected and results are reported."""

    support: int = setting(10, "support items of a cold-start user", low=1)
    query: int = setting(10, "query items, those that follow the support set", low=1)
    k: int = setting(10, "cut-off of the ranking metrics", low=1)
    validation_draws: int = setting(
        4, "random orders a validation user is judged in, so that less chance selects", low=1, high=64
    )
    users: int = setting(
        10_000, "validation users, and test users, that are judged at most: the same ones every time", low=1
    )
    select_by: Literal["random", "time"] = setting("random", "order of the validation users' interactions")
    onto: str = setting("", "benchmark cross-domain: folder of the data set that test users come from")
    negatives: Literal["drawn", "files"] = setting(
        "drawn", "benchmark leave-one-out: negatives are drawn; or test items and negatives of the data folder's files"
    )
    hold_out_validation: bool = setting(
        True, "benchmark leave-one-out: methods never see a test user's validation item; false: test users adapt to it"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of a run."""

    run: RunSettings = field(default_factory=RunSettings)
    data: DataSettings = field(default_factory=DataSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    text: TextSettings = field(default_factory=TextSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    tasks: TaskSettings = field(default_factory=TaskSettings)
    adaptation: AdaptationSettings = field(default_factory=AdaptationSettings)
    regression: RegressionSettings = field(default_factory=RegressionSettings)
    rating: RatingSettings = field(default_factory=RatingSettings)
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    outer: OuterSettings = field(default_factory=OuterSettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    traffic: TrafficSettings = field(default_factory=TrafficSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def flat(self) -> dict[str, Scalar]:
        """Return every setting as ``{"table.key": value}``, the form Flower's run configuration has."""
        return {
            f"{table.name}.{_kebab(key.name)}": getattr(getattr(self, table.name), key.name)
            for table in dataclasses.fields(self)
            for key in dataclasses.fields(table.type)  # type: ignore[arg-type]
        }

    def with_values(self, values: Mapping[str, Any], source: str) -> "Settings":
        """Return settings in which ``values`` (``{"table.key": value}``) replace what stood there.

        Raises:
            SettingsError: A key is unknown, or a value has the wrong type or lies outside its range.
        """
        changed: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            table, _, name = key.partition(".")
            changed.setdefault(table, {})[name] = value
        tables = {}
        for table, entries in changed.items():
            if table not in _TABLES:
                raise SettingsError(f"{source}: unknown table {table!r}; the tables are {', '.join(_TABLES)}")
            tables[table] = parse_table(getattr(self, table), table, entries, source)
        settings = dataclasses.replace(self, **tables)
        check_together(settings, source)
        return settings

    def to_json(self) -> str:
        """Return the settings as JSON text, tables of kebab-case keys."""
        nested: dict[str, dict[str, Scalar]] = {}
        for key, value in self.flat().items():
            table, _, name = key.partition(".")
            nested.setdefault(table, {})[name] = "inf" if value == math.inf else value  # JSON has no infinity
        return json.dumps(nested, indent=2)


PRIVATE_DEFAULTS: Mapping[str, Scalar] = {
    "privacy.randomness": "simulated",
    "privacy.sampling-rate": 0.1,
    "federation.clip-norm": 1.0,
    "federation.rounds": 100,
    "outer.optimizer": "adam",
    "outer.learning-rate": 3e-3,
    "outer.weight-decay": 0.0,
    "outer.warmup-rounds": 0,
    "outer.averaging": 0.9,
    "tasks.time-share": 0.0,
    "tasks.vary-support": 0.0,
    "model.order-aware": False,
}
"""What a simulation with privacy changes of the defaults; chosen on public data (docs/privacy.md)."""

RATING_DEFAULTS: Mapping[str, Scalar] = {
    "federation.rounds": 1500,
    "federation.cohort": 64,
    "outer.optimizer": "adam",
    "outer.learning-rate": 0.005,
    "outer.schedule": "cosine",
    "outer.weight-decay": 0.0,
    "outer.warmup-rounds": 0,
    "outer.averaging": 0.0,
    "rating.content": True,
    "rating.kernel": 0.5,
    "rating.user-kernel": 0.4,
}
"""What a simulation with model.target = rating changes of the defaults."""

_TABLES = {table.name: table.type for table in dataclasses.fields(Settings)}


def load_toml(path: Path) -> dict[str, Any]:
    """Read a settings file of tables and scalars into ``{"table.key": value}``.

    Raises:
        SettingsError: The file is missing, is no TOML, or holds something that is no table of scalars.
    """
    return flatten(read_toml(path, "settings"), str(path))


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        what: What kind of file it is, for the error.

    Raises:
        SettingsError: The file is missing, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot read the {what} file: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error


def flatten(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Turn tables of scalars into ``{"table.key": value}``."""
    flat = {}
    for table, entries in document.items():
        if not isinstance(entries, Mapping):
            raise SettingsError(f"{source}: {table!r} must be a table such as [federation], got {entries!r}")
        flat.update({f"{table}.{key}": value for key, value in entries.items()})
    return flat


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read ``table.key=value`` assignments; values are TOML, and what is no TOML value is a string."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or "." not in key:
            raise SettingsError(f"--set {assignment}: wanted table.key=value")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


def parse_table(current: Any, table: str, entries: Mapping[str, Any], source: str) -> Any:
    """Return the dataclass ``current`` with ``entries`` (kebab-case keys) in place of what stood there.

    Raises:
        SettingsError: A key is unknown, or a value has the wrong type or lies outside its range.
    """
    types = get_type_hints(type(current))
    known = {_kebab(key.name): key for key in dataclasses.fields(current)}
    values = {}
    for name, value in entries.items():
        if name not in known:
            raise SettingsError(f"{source}: unknown setting {table}.{name}; {table} has {', '.join(known)}")
        key = known[name]
        values[key.name] = _parse_value(value, types[key.name], key.metadata, f"{source}: {table}.{name}")
    return dataclasses.replace(current, **values)


def _parse_value(value: Any, wanted: Any, limits: Mapping[str, Any], where: str) -> Scalar:
    if get_origin(wanted) is Literal:
        choices = get_args(wanted)
        if type(value) is not type(choices[0]) or value not in choices:
            raise SettingsError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}")
        return value  # type: ignore[no-any-return]
    if value == "inf" and limits.get("infinite"):
        value = math.inf
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise SettingsError(f"{where} must be a {_TYPE_NAMES[wanted]}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value) and not (value == math.inf and limits.get("infinite")):
        raise SettingsError(f"{where} must be finite, got {value!r}")
    low, high = limits["low"], limits["high"]
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        wish = f"at least {low}" if high is None else f"between {low} and {high}"
        raise SettingsError(f"{where} must be {wish}, got {value!r}")
    return value  # type: ignore[no-any-return]


_TYPE_NAMES = {int: "whole number", float: "number", str: "string", bool: "boolean (true or false)"}


def _names(by_commas: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in by_commas.split(",") if name.strip()))


def _kebab(name: str) -> str:
    return name.replace("_", "-")
