"""Flower records for everything in ``exchange``; what comes in is checked before anybody uses it.

Content of a message: a ConfigRecord "request" down, records "arrays" (an ArrayRecord) and "numbers" (a MetricRecord)
up, "parameters" (an ArrayRecord) where parameters travel. What is added to scores comes as "blends" and "regression N"
(ArrayRecords), "text-kernel" (a ConfigRecord) and "start-prior" (an ArrayRecord); metrics of users come as "cell N"
(MetricRecords).
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import scipy.sparse as sp
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import AlreadyAnswered, BudgetSpent, Refusal, WireError
from metarec_shared.exchange import (
    Additions,
    Cell,
    Enrollment,
    EnrollmentRequest,
    EvaluateRequest,
    Evaluation,
    Judged,
    MetaUpdate,
    Moments,
    MomentsRequest,
    Parameters,
    TrainRequest,
    all_finite,
)
from metarec_shared.privacy.terms import Terms
from metarec_shared.quantization import checked, dequantize, quantize
from metarec_shared.settings import Mode
from metarec_shared.split import Role
from metarec_shared.start_prior import StartPrior
from metarec_shared.task_regression import TaskMoments, TaskRegression
from metarec_shared.tasks import ORDERS

Bits = Literal[8, 16, 32]

_RAW = "metarec.raw"
"""How arrays are serialized: their bytes, little-endian, in C order."""

_DTYPES = frozenset({"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint64"})

_LONGEST_NAME = 256
_NEWLINE = 10
_MOST_USERS = 2**31
"""Users that one node may claim: sums over any number of nodes stay far from what 64 bits hold."""

_MOST_RATINGS = 2**53
"""Ratings of one answer, so that their number is exact in 64 bits of either kind."""

_LARGEST_RATING = 1e6
"""A scale beyond it would overflow where ratings are read on it, for some users and not for others."""

_MOST_BLENDS = 256
_LARGEST_BLEND = 1e9
_MOST_REGRESSIONS = 16
_SHARPEST = 1e4
_MOST_SIZES = 64
_MOST_CELLS = 64
_MOST_DRAWS = 64
_MOST_JUDGED = 512
"""Draws times cells of one request: so often every user is adapted to and all items are scored."""

_MOST_NEIGHBOURS = 4096
_LARGEST_SUPPORT = 2**20

_SCALES = "/scales"
"""A quantized tensor travels as two arrays, its codes under its own name and their scales under this ending."""

RequestT = TypeVar("RequestT", EnrollmentRequest, MomentsRequest, TrainRequest, EvaluateRequest)


def pack_parameters(parameters: Parameters, bits: Bits = 32, rng: np.random.Generator | None = None) -> ArrayRecord:
    """Serialize named tensors.

    Args:
        parameters: The tensors.
        bits: 32 as they are; 8 or 16: rounded at random so that the expected value is exact (``quantization``).
        rng: Draws the rounding.
    """
    record = ArrayRecord()
    for name, tensor in parameters.items():
        value = tensor.detach().cpu().numpy()
        if bits == 32 or rng is None:
            record[name] = _encode(value)
            continue
        codes = quantize(value, bits, rng)
        record[name], record[name + _SCALES] = _encode(codes.codes), _encode(codes.scales)
    return record


def unpack_parameters(record: ArrayRecord) -> Parameters:
    """Deserialize named tensors.

    Raises:
        WireError: An array cannot be decoded.
    """
    parameters = {}
    for name, array in record.items():
        if name.endswith(_SCALES):
            continue
        value = _decode(name, array)
        if name + _SCALES in record:
            value = _dequantized(name, value, _decode(name + _SCALES, record[name + _SCALES]))
        parameters[name] = torch.from_numpy(value)
    return parameters


def _dequantized(name: str, codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.float32]:
    bits: Literal[8, 16] = 16 if codes.dtype == np.int16 else 8
    return dequantize(checked(name, codes, scales, codes.shape, bits))


def _encode(value: NDArray[Any]) -> Array:
    """Encode one array as its bytes; dtype and shape stand beside them, so nothing has to be parsed."""
    if sys.byteorder == "big":
        value = value.astype(value.dtype.newbyteorder("<"))
    return Array(value.dtype.name, value.shape, _RAW, value.tobytes())


def _decode(name: str, array: Array) -> NDArray[Any]:
    """Decode one array whose bytes may be anything at all; the result is writable."""
    if array.stype != _RAW or array.dtype not in _DTYPES:
        raise WireError(f"array {name}: cannot read {array.dtype} as {array.stype}; wanted {_RAW}")
    dtype, shape = np.dtype(array.dtype).newbyteorder("<"), tuple(array.shape)
    if min(shape, default=0) < 0 or len(array.data) != math.prod(shape) * dtype.itemsize:
        raise WireError(f"array {name}: {len(array.data)} bytes cannot hold {array.dtype} of shape {shape}")
    try:
        return np.frombuffer(array.data, dtype).reshape(shape).astype(array.dtype)
    except ValueError as error:  # more dimensions, or longer empty ones, than NumPy has
        raise WireError(f"array {name}: {len(array.data)} bytes cannot hold {array.dtype} of shape {shape}") from error


def pack_request(
    request: EnrollmentRequest | MomentsRequest | TrainRequest | EvaluateRequest,
    parameters: ArrayRecord | None = None,
    additions: Additions | None = None,
) -> RecordDict:
    """Return the content of a message to a node; ``parameters`` are shared between messages, not copied."""
    content = RecordDict(
        {"request": ConfigRecord({key.name: _flat(getattr(request, key.name)) for key in fields(request)})}
    )
    if parameters is not None:
        content["parameters"] = parameters
    if additions is not None:
        _pack_additions(additions, content)
    return content


def _pack_additions(additions: Additions, content: RecordDict) -> None:
    content["blends"] = pack_parameters({str(place): ways for place, ways in enumerate(additions.blends.values())})
    for place, regression in enumerate(additions.regressions):
        arrays = {
            "neighbours": regression.neighbours.to(torch.int32),
            "weights": regression.weights,
            "decay": torch.tensor([regression.decay], dtype=torch.float64),
        }
        content[f"regression {place}"] = pack_parameters(arrays)
    if additions.sharpness is not None:
        content["text-kernel"] = ConfigRecord({"sharpness": additions.sharpness})
    prior = additions.start_prior
    if prior is not None:
        sizes = torch.tensor(prior.sizes, dtype=torch.int64)
        content["start-prior"] = pack_parameters({"sizes": sizes, "logs": prior.logs})


def _flat(value: Any) -> Any:
    """Return what stands for a value in a ConfigRecord."""
    match value:
        case RatingScale():
            return [value.low, value.high]
        case Role():
            return int(value)
        case None:
            return []
        case tuple():
            return list(value)
        case _:
            return value


def _scale(value: Any) -> RatingScale | None:
    numbers = isinstance(value, list) and all(type(limit) in (int, float) for limit in value)
    if not numbers or len(value) not in (0, 2) or not (np.abs(value) <= _LARGEST_RATING).all():
        raise WireError(f"a rating scale must be empty or two numbers of at most {_LARGEST_RATING:g}, got {value!r}")
    return RatingScale(low=float(value[0]), high=float(value[1])) if value else None


def unpack_request(kind: type[RequestT], content: RecordDict) -> RequestT:
    """Read a request of ``kind``.

    Raises:
        WireError: A value is missing or of the wrong type.
    """
    values: dict[str, Any] = dict(_record(content, "request", ConfigRecord))
    wanted = {key.name for key in fields(kind)}
    if values.keys() != wanted:
        raise WireError(f"{kind.__name__} must have {sorted(wanted)}, got {sorted(values)}")
    if "rating_scale" in values:
        values["rating_scale"] = _scale(values["rating_scale"])
    for name in _LISTS & wanted:
        if values[name] == []:  # an empty list has no type of its own
            values[name] = ()
    for key in fields(kind):
        if type(values.get(key.name)) not in _SCALARS.get(key.name, (str,)):
            raise WireError(f"{kind.__name__}.{key.name} is missing or mistyped, got {values.get(key.name)!r}")
    if kind is EvaluateRequest:
        if values["role"] not in list(Role):
            raise WireError(f"no role {values['role']}")
        _check_cells(values["orders"], values["supports"])
        _check_draws(values["draws"], len(values["orders"]))
        values["role"] = Role(values["role"])
    if kind is MomentsRequest:
        _check_sizes(values["start_sizes"])
    for name in _LISTS & wanted:
        values[name] = tuple(values[name])
    return kind(**values)


def _check_sizes(sizes: Sequence[Any]) -> None:
    ascending = all(type(size) is int for size in sizes) and list(sizes) == sorted(set(sizes))
    if len(sizes) > _MOST_SIZES or not ascending or (sizes and not 1 <= sizes[0] <= sizes[-1] <= _LARGEST_SUPPORT):
        raise WireError(
            f"sizes of support sets must be at most {_MOST_SIZES} whole numbers from 1 to {_LARGEST_SUPPORT:,}, "
            f"ascending, got {sizes!r}"
        )


def _check_cells(orders: Sequence[Any], supports: Sequence[Any]) -> None:
    sizes_fit = all(type(size) is int and 1 <= size <= _LARGEST_SUPPORT for size in supports)
    distinct = len(set(zip(orders, supports, strict=False))) == len(orders) == len(supports)
    if not 1 <= len(orders) <= _MOST_CELLS or not distinct or not sizes_fit or not set(orders) <= set(ORDERS):
        raise WireError(
            f"cells must be 1 to {_MOST_CELLS} different pairs of an order of {', '.join(ORDERS)} and as many support "
            f"items, from 1 to {_LARGEST_SUPPORT:,}, got {orders!r} and {supports!r}"
        )


def _check_draws(draws: int, cells: int) -> None:
    if not 1 <= draws <= _MOST_DRAWS or draws * cells > _MOST_JUDGED:
        raise WireError(
            f"draws must be from 1 to {_MOST_DRAWS}, and at most {_MOST_JUDGED} over all cells, got {draws} of each of "
            f"{cells}"
        )


_LISTS = {"start_sizes", "orders", "supports"}
"""Fields of requests that are lists on the wire."""


_SCALARS: dict[str, tuple[type, ...]] = {
    "round_number": (int,),
    "sampling_rate": (float,),
    "role": (int,),
    "adapt": (bool,),
    "popularity": (bool,),
    "draws": (int,),
    "rating_scale": (RatingScale, type(None)),
    "start_sizes": (list, tuple),
    "orders": (list, tuple),
    "supports": (list, tuple),
}


def request_parameters(content: RecordDict) -> Parameters:
    """Read the parameters that came with a request."""
    return unpack_parameters(_record(content, "parameters", ArrayRecord))


def request_additions(content: RecordDict, cells: Sequence[Cell], items: int) -> Additions | None:
    """Read what came with a request to be added to scores; None where nothing did.

    Args:
        content: Of the message.
        cells: Of the request.
        items: Size of the catalogue.

    Raises:
        WireError: Something is not over ``items`` items, or blends are not a number for every part in each cell.
    """
    if "blends" not in content:
        parts_alone = [name for name in content if name.startswith(("regression ", "text-kernel", "start-prior"))]
        if parts_alone:
            raise WireError(f"what is added must come with blends, got {', '.join(sorted(parts_alone))} alone")
        return None
    names = [name for name in (f"regression {place}" for place in range(_MOST_REGRESSIONS)) if name in content]
    parts = len(names) + ("text-kernel" in content) + ("start-prior" in content)
    return Additions(
        regressions=[_regression(content, name, items) for name in names],
        blends=_blends(content, cells, parts),
        sharpness=_sharpness(content) if "text-kernel" in content else None,
        start_prior=_start_prior(content, items) if "start-prior" in content else None,
    )


def _blends(content: RecordDict, cells: Sequence[Cell], parts: int) -> dict[Cell, torch.Tensor]:
    blends = unpack_parameters(_record(content, "blends", ArrayRecord))
    wanted = [str(place) for place in range(len(cells))]
    if blends.keys() != set(wanted):
        raise WireError(f"blends must be of cells {', '.join(wanted)}, got {', '.join(sorted(blends)) or 'none'}")
    for ways in blends.values():
        if ways.dtype != torch.float32 or ways.dim() != 2 or ways.shape[1] != parts:
            raise WireError(f"blends must be float32, [ways, {parts}], got {ways.dtype} {tuple(ways.shape)}")
        if not 1 <= len(ways) <= _MOST_BLENDS or not (ways.abs() <= _LARGEST_BLEND).all():
            raise WireError(
                f"blends must be numbers of at most {_LARGEST_BLEND:g}, in 1 to {_MOST_BLENDS} ways, got {len(ways)}"
            )
    return {cell: blends[name] for cell, name in zip(cells, wanted, strict=True)}


def _sharpness(content: RecordDict) -> float:
    sharpness = dict(_record(content, "text-kernel", ConfigRecord)).get("sharpness")
    if type(sharpness) is not float or not 0 <= sharpness <= _SHARPEST:
        raise WireError(f"the sharpness of a text kernel must be a number from 0 to {_SHARPEST:g}, got {sharpness!r}")
    return sharpness


def _regression(content: RecordDict, name: str, items: int) -> TaskRegression:
    arrays = unpack_parameters(_record(content, name, ArrayRecord))
    neighbours, weights = arrays.get("neighbours"), arrays.get("weights")
    if neighbours is None or weights is None or neighbours.dtype != torch.int32 or weights.dtype != torch.float32:
        raise WireError("a task regression must have neighbours (int32) and weights (float32)")
    if neighbours.dim() != 2 or neighbours.shape != weights.shape or len(weights) != items:
        got = f"{tuple(neighbours.shape)} and {tuple(weights.shape)}"
        raise WireError(f"neighbours and weights of a task regression must be [{items}, any], got {got}")
    if neighbours.shape[1] > min(items, _MOST_NEIGHBOURS):
        most = min(items, _MOST_NEIGHBOURS)
        raise WireError(f"a task regression must have at most {most:,} neighbours an item, got {neighbours.shape[1]:,}")
    if ((neighbours < 0) | (neighbours >= items)).any() or not weights.isfinite().all():
        raise WireError(f"a task regression must have neighbours from 0 to {items - 1} and finite weights")
    decay = arrays.get("decay")
    if decay is None or decay.dtype != torch.float64 or decay.shape != (1,) or not 0 < float(decay) <= 1:
        raise WireError("a task regression must have a decay above 0, up to 1")
    return TaskRegression(neighbours=neighbours.long(), weights=weights, decay=float(decay))


def _start_prior(content: RecordDict, items: int) -> StartPrior:
    arrays = unpack_parameters(_record(content, "start-prior", ArrayRecord))
    sizes, logs = arrays.get("sizes"), arrays.get("logs")
    if sizes is None or logs is None or sizes.dtype != torch.int64 or logs.dtype != torch.float32 or sizes.dim() != 1:
        raise WireError("a start prior must have sizes (int64, [sizes]) and logs (float32)")
    _check_sizes(sizes.tolist())
    if not len(sizes) or logs.shape != (len(sizes), items) or not logs.isfinite().all():
        raise WireError(f"logs of a start prior must be finite, [{len(sizes)}, {items}], got {tuple(logs.shape)}")
    return StartPrior(sizes=tuple(sizes.tolist()), logs=logs, blends=(0.0,) * len(sizes))


def pack_moments(answer: Moments) -> RecordDict:
    """Return the content of a node's answer: sparse matrices, row by row."""
    columns: dict[str, NDArray[Any]] = {}
    matrices = {"start": answer.starts}
    for order, moments in answer.moments.items():
        matrices |= {f"{order} support": moments.support, f"{order} query": moments.query}
    for name, matrix in matrices.items():
        columns |= {
            f"{name}.starts": matrix.indptr.astype(np.int64),
            f"{name}.items": matrix.indices.astype(np.int32),
            f"{name}.values": matrix.data.astype(np.float32),
        }
    arrays = ArrayRecord({name: _encode(column) for name, column in columns.items()})
    return RecordDict({"arrays": arrays, "numbers": MetricRecord({"nodes": answer.nodes})})


def unpack_moments(content: RecordDict, items: int, start_sizes: int = 0) -> Moments:
    """Read an answer.

    Args:
        content: Of the message.
        items: Size of the catalogue.
        start_sizes: Sizes of support sets after which items were to be counted.

    Raises:
        WireError: It holds no second moments over ``items`` items, or no such counts.
    """
    record = _record(content, "arrays", ArrayRecord)
    (nodes,) = _numbers(content, "nodes")
    moments = {
        order: TaskMoments(
            support=_sparse_matrix(record, f"{order} support", items, items),
            query=_sparse_matrix(record, f"{order} query", items, items),
        )
        for order in ORDERS
    }
    starts = _sparse_matrix(record, "start", start_sizes, items)
    if starts.data.min(initial=0.0) < 0 or starts.data.max(initial=0.0) > _MOST_USERS:
        raise WireError(f"start moments must be counts of at most {_MOST_USERS:,} users")
    return Moments(moments=moments, starts=starts, nodes=int(nodes))


def _sparse_matrix(record: ArrayRecord, name: str, rows: int, items: int) -> sp.csr_array:
    parts = {
        part: _decode(f"{name}.{part}", record[f"{name}.{part}"])
        for part in ("starts", "items", "values")
        if f"{name}.{part}" in record
    }
    kinds = {part: (column.dtype.name, column.ndim) for part, column in parts.items()}
    if kinds != {"starts": ("int64", 1), "items": ("int32", 1), "values": ("float32", 1)}:
        raise WireError(f"{name} moments must be starts (int64), items (int32) and values (float32), got {kinds}")
    starts, columns, values = parts["starts"], parts["items"], parts["values"]
    inside = starts.min(initial=0) >= 0 and starts.max(initial=0) <= len(values)  # differences must not overflow
    rows_fit = inside and len(starts) == rows + 1 and starts[0] == 0 and (np.diff(starts) >= 0).all()
    if not rows_fit or not starts[-1] == len(columns) == len(values):
        raise WireError(f"{name} moments must have {rows} rows that hold {len(values)} values")
    if len(columns) and not (columns.min() >= 0 and columns.max() < items and np.isfinite(values).all()):
        raise WireError(f"{name} moments must be finite and of items from 0 to {items - 1}")
    return sp.csr_array((values, columns, starts), shape=(rows, items))


def pack_enrollment(enrollment: Enrollment) -> RecordDict:
    """Return the content of a node's answer."""
    scale = enrollment.rating_scale
    columns: dict[str, NDArray[Any]] = {
        "item_counts": enrollment.item_counts.astype(np.float64),
        "node_ids": enrollment.node_ids,
        "names": np.frombuffer("\n".join(enrollment.names.tolist()).encode(), dtype=np.uint8),
        "training_users": enrollment.training_users,
        "validation_users": enrollment.validation_users,
    }
    limits = [] if scale is None else [scale.low, scale.high]
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: _encode(column) for name, column in columns.items()}),
            "numbers": MetricRecord(
                {
                    "nodes": len(enrollment.node_ids),
                    "rating_scale": limits,
                    "rating_sum": enrollment.rating_sum,
                    "rating_count": enrollment.rating_count,
                }
            ),
        }
    )
    if enrollment.terms is not None:
        content["terms"] = ConfigRecord(asdict(enrollment.terms))
    return content


def unpack_enrollment(content: RecordDict, items: int) -> Enrollment:
    """Read an answer.

    Raises:
        WireError: It is not an enrolment over ``items`` items.
    """
    numbers, record = _record(content, "numbers", MetricRecord), _record(content, "arrays", ArrayRecord)
    node_ids: NDArray[Any] = _decode("node_ids", record["node_ids"]) if "node_ids" in record else np.empty(0)
    names = _names(record, len(node_ids) if node_ids.ndim else 0)
    training, validation = (_column(record, name) for name in ("training_users", "validation_users"))
    if node_ids.dtype != np.uint64 or any(column.shape != names.shape for column in (node_ids, training, validation)):
        raise WireError("an enrolment must name its nodes and give an id and two counts for each")
    for name, users in (("training_users", training), ("validation_users", validation)):
        if users.max(initial=0) > _MOST_USERS:
            raise WireError(f"{name} of an enrolment must be at most {_MOST_USERS:,}, got {users.max():,}")
    counts = _item_counts(record, items)
    if counts.max(initial=0) > training.sum():  # nobody has an item twice
        raise WireError(f"item_counts exceed the {training.sum():,} meta-training users, got {counts.max():,.0f}")
    rating_sum, rating_count = _rating_sum(numbers)
    if rating_count and "terms" in content:
        raise WireError("an enrolment under terms of privacy must not tell ratings, got their sum")
    return Enrollment(
        node_ids=node_ids,
        training_users=training,
        validation_users=validation,
        names=names,
        item_counts=counts,
        rating_scale=_scale(numbers.get("rating_scale")),
        rating_sum=rating_sum,
        rating_count=rating_count,
        terms=_terms(content) if "terms" in content else None,
    )


def _rating_sum(numbers: MetricRecord) -> tuple[float, int]:
    """Read the sum of ratings and how many they are; the sum must be that of as many ratings."""
    total, count = numbers.get("rating_sum"), numbers.get("rating_count")
    if type(total) is not float or type(count) is not int or not 0 <= count <= _MOST_RATINGS:
        raise WireError(f"an enrolment must give a sum of ratings and their count, got {total!r} and {count!r}")
    if not abs(total) <= count * _LARGEST_RATING:  # false of NaN, too
        raise WireError(f"{count:,} ratings cannot sum to {total!r}")
    return total, count


def _terms(content: RecordDict) -> Terms:
    """Read a node's terms of privacy; a server that relies on them must not take odd ones."""
    values: dict[str, Any] = dict(_record(content, "terms", ConfigRecord))
    wanted = {key.name for key in fields(Terms)}
    words = {"mode": get_args(Mode)[1:], "randomness": ("secure", "simulated")}
    if values.keys() != wanted:
        raise WireError(f"terms of privacy must have {sorted(wanted)}, got {sorted(values)}")
    for name, value in values.items():
        number = type(value) is float and np.isfinite(value) and value >= 0
        if not (value in words[name] if name in words else number):
            raise WireError(f"terms of privacy: {name} cannot be {value!r}")
    return Terms(**values)


def pack_refusal(refusal: Refusal) -> RecordDict:
    """Return the content of the answer of a node that refuses, for its users' privacy."""
    return RecordDict({"refusal": ConfigRecord({"kind": type(refusal).__name__, "reason": str(refusal)})})


def check_refusal(content: RecordDict) -> None:
    """Raise what a node's answer refuses with, if it is a refusal.

    Raises:
        Refusal: It is; ``BudgetSpent`` where the node's privacy budget does not do for what was asked,
            ``AlreadyAnswered`` where it was answered before.
    """
    if "refusal" not in content:
        return
    record = _record(content, "refusal", ConfigRecord)
    kinds: dict[object, type[Refusal]] = {kind.__name__: kind for kind in (BudgetSpent, AlreadyAnswered)}
    raise kinds.get(record.get("kind"), Refusal)(str(record.get("reason")))


def _names(record: ArrayRecord, nodes: int) -> NDArray[np.str_]:
    """Read as many names as there are nodes; lengths are checked before room is made for all at the longest."""
    column = _decode("names", record["names"]) if "names" in record else np.empty(0, np.float32)
    try:
        if column.dtype != np.uint8 or column.ndim != 1:
            raise WireError(f"the names of an enrolment must be bytes, got {column.dtype} of shape {column.shape}")
        names = column.tobytes().split(b"\n") if np.count_nonzero(column == _NEWLINE) + 1 == nodes else []
        longest = max(map(len, names), default=0)
        if not names:
            raise WireError("an enrolment must name its nodes and give an id and two counts for each")
        if longest > _LONGEST_NAME:
            raise WireError(f"a node's name must have at most {_LONGEST_NAME} bytes, got {longest}")
        return np.array([name.decode() for name in names], dtype=np.str_)
    except UnicodeDecodeError as error:
        raise WireError(f"the names of an enrolment are no UTF-8 at byte {error.start}") from error


def _column(record: ArrayRecord, name: str) -> NDArray[np.int64]:
    column: NDArray[np.int64] = _decode(name, record[name]) if name in record else np.empty(0, np.int64)
    if column.dtype != np.int64 or column.ndim != 1 or (column < 0).any():
        raise WireError(f"{name} of an enrolment must be counts, got {column.dtype} of shape {column.shape}")
    return column


def _item_counts(record: ArrayRecord, items: int) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = (
        _decode("item_counts", record["item_counts"]) if "item_counts" in record else np.empty(0)
    )
    if counts.dtype != np.float64 or counts.shape != (items,) or not (np.isfinite(counts) & (counts >= 0)).all():
        raise WireError(f"item_counts must be {items} counts, got {counts.dtype} of shape {counts.shape}")
    return counts


def pack_meta_update(update: MetaUpdate, bits: Bits = 32, rng: np.random.Generator | None = None) -> RecordDict:
    """Return the content of a node's answer, its gradients in 8, 16 or 32 bits (``pack_parameters``)."""
    numbers = MetricRecord({"weight": update.weight, "nodes": update.nodes})
    if update.loss is not None and update.users is not None:
        numbers["loss"], numbers["users"] = update.loss, update.users
    return RecordDict({"arrays": pack_parameters(update.gradients, bits, rng), "numbers": numbers})


def unpack_meta_update(content: RecordDict, like: Mapping[str, torch.Tensor]) -> MetaUpdate:
    """Read a meta-update for parameters shaped ``like`` these.

    Raises:
        WireError: Names, shapes or numbers are wrong, or a value is not finite.
    """
    gradients = unpack_parameters(_record(content, "arrays", ArrayRecord))
    if gradients.keys() != like.keys():
        odd = sorted(gradients.keys() ^ like.keys())
        raise WireError(f"a meta-update must hold {len(like)} named arrays; missing or unknown: {', '.join(odd)}")
    for name, gradient in gradients.items():
        if gradient.shape != like[name].shape or gradient.dtype != like[name].dtype:
            got, wanted = (f"{t.dtype} {tuple(t.shape)}" for t in (gradient, like[name]))
            raise WireError(f"meta-update of {name}: got {got}, wanted {wanted}")
    if not all_finite(gradients.values()):
        odd = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        if odd:
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            raise WireError(f"meta-update of {', '.join(odd[:3])}{more} holds a value that is not finite")
    weight, nodes = _numbers(content, "weight", "nodes")
    update = MetaUpdate(gradients=gradients, weight=weight, loss=None, users=None, nodes=int(nodes))
    if "users" not in _record(content, "numbers", MetricRecord):
        return update
    loss, users = _numbers(content, "loss", "users")
    return replace(update, loss=loss, users=int(users))


def pack_evaluation(evaluation: Evaluation) -> RecordDict:
    """Return the content of a node's answer."""
    content = RecordDict({"numbers": MetricRecord({"nodes": evaluation.nodes})})
    for place, cell in enumerate(evaluation.cells):
        sums = {name: list(values) for name, values in cell.sums.items()}
        content[f"cell {place}"] = MetricRecord({**sums, "users": cell.users})
    return content


def unpack_evaluation(content: RecordDict, ways: Sequence[int]) -> Evaluation:
    """Read an evaluation.

    Args:
        content: Of the message.
        ways: Ways to blend that were asked for, of each cell.

    Raises:
        WireError: A cell or a number is missing, or a number is not finite or negative.
    """
    (nodes,) = _numbers(content, "nodes")
    return Evaluation(
        cells=[_judged(content, f"cell {place}", count) for place, count in enumerate(ways)], nodes=int(nodes)
    )


def _judged(content: RecordDict, name: str, ways: int) -> Judged:
    record = _record(content, name, MetricRecord)
    users = record.get("users")
    if type(users) is not int or not 0 <= users <= _MOST_USERS:
        raise WireError(f"users of {name} must be from 0 to {_MOST_USERS:,}, got {users!r}")
    sums: dict[str, Sequence[float]] = {}
    for metric, values in record.items():
        if metric == "users":
            continue
        if not isinstance(values, list) or len(values) != ways or not all(0 <= value < np.inf for value in values):
            raise WireError(f"{metric!r} of {name} must be {ways} finite numbers, not negative, got {values!r}")
        sums[metric] = values
    return Judged(users=users, sums=sums)


def content_bytes(content: RecordDict) -> int:
    """Return the bytes of the arrays in a message, which is nearly all that travels."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _numbers(content: RecordDict, *names: str) -> list[float]:
    record = _record(content, "numbers", MetricRecord)
    values = []
    for name in names:
        value = record.get(name)
        if not isinstance(value, int | float) or not np.isfinite(value) or (name != "loss" and value < 0):
            raise WireError(f"number {name!r} must be finite and not negative, got {value!r}")
        values.append(float(value))
    return values


RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord, MetricRecord)


def _record(content: RecordDict, name: str, kind: type[RecordT]) -> RecordT:
    record = content.get(name)
    if not isinstance(record, kind):
        raise WireError(f"the message lacks its {kind.__name__} {name!r}")
    return record
