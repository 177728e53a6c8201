"""Flower records for everything in ``exchange``; what comes in is checked before anybody uses it.

Content of a message: a ConfigRecord "request" down, records "arrays" (an ArrayRecord) and "numbers" (a MetricRecord)
up, "names" (a ConfigRecord) where an answer carries text, "parameters" (an ArrayRecord) where parameters travel.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from metarec_shared.dataset import RatingScale
from metarec_shared.errors import WireError
from metarec_shared.exchange import (
    Enrollment,
    EnrollmentRequest,
    EvaluateRequest,
    Evaluation,
    MetaUpdate,
    NodeSummary,
    Parameters,
    TrainRequest,
)
from metarec_shared.split import Role

_HEADER = 4096
"""Most bytes that the header of a serialized array may take."""

RequestT = TypeVar("RequestT", EnrollmentRequest, TrainRequest, EvaluateRequest)


def pack_parameters(parameters: Parameters) -> ArrayRecord:
    """Serialize named tensors."""
    return ArrayRecord({name: Array(value.detach().cpu().numpy()) for name, value in parameters.items()})


def unpack_parameters(record: ArrayRecord) -> Parameters:
    """Deserialize named tensors.

    Raises:
        WireError: An array cannot be decoded.
    """
    return {name: torch.from_numpy(_decode(name, array)) for name, array in record.items()}


def _decode(name: str, array: Array) -> NDArray[Any]:
    """Decode one array whose bytes may be anything at all."""
    try:
        size = int(np.prod(array.shape, dtype=np.float64)) * np.dtype(array.dtype).itemsize
        if not size <= len(array.data) <= size + _HEADER:
            raise WireError(f"array {name}: {len(array.data)} bytes cannot hold {array.dtype} of shape {array.shape}")
        value: NDArray[Any] = array.numpy()
    except WireError:
        raise
    except Exception as error:  # a hostile header can make the decoder raise nearly anything
        raise WireError(f"array {name} cannot be decoded: {type(error).__name__}") from error
    if value.dtype != np.dtype(array.dtype) or value.shape != tuple(array.shape):
        raise WireError(f"array {name}: declared {array.dtype} {array.shape}, holds {value.dtype} {value.shape}")
    return value


def pack_request(
    request: EnrollmentRequest | TrainRequest | EvaluateRequest, parameters: ArrayRecord | None = None
) -> RecordDict:
    """Return the content of a message to a node; ``parameters`` are shared between messages, not copied."""
    content = RecordDict(
        {"request": ConfigRecord({key.name: _flat(getattr(request, key.name)) for key in fields(request)})}
    )
    if parameters is not None:
        content["parameters"] = parameters
    return content


def _flat(value: Any) -> Any:
    """Return what stands for a value in a ConfigRecord."""
    match value:
        case RatingScale():
            return [value.low, value.high]
        case Role():
            return int(value)
        case None:
            return []
        case _:
            return value


def _scale(value: Any) -> RatingScale | None:
    if not isinstance(value, list) or len(value) not in (0, 2) or not np.isfinite(value).all():
        raise WireError(f"a rating scale must be empty or two numbers, got {value!r}")
    return RatingScale(low=float(value[0]), high=float(value[1])) if value else None


def unpack_request(kind: type[RequestT], content: RecordDict) -> RequestT:
    """Read a request of ``kind``.

    Raises:
        WireError: A value is missing or of the wrong type.
    """
    values: dict[str, Any] = dict(_record(content, "request", ConfigRecord))
    if "rating_scale" in values:
        values["rating_scale"] = _scale(values["rating_scale"])
    for key in fields(kind):
        if type(values.get(key.name)) not in _SCALARS.get(key.name, (str,)):
            raise WireError(f"{kind.__name__}.{key.name} is missing or mistyped, got {values.get(key.name)!r}")
    if kind is EvaluateRequest:
        if values["role"] not in list(Role) or values["order"] not in ("random", "time"):
            raise WireError(f"no role {values['role']} or no order {values['order']!r}")
        values["role"] = Role(values["role"])
    return kind(**values)


_SCALARS: dict[str, tuple[type, ...]] = {
    "round_number": (int,),
    "sampling_rate": (float,),
    "role": (int,),
    "adapt": (bool,),
    "draws": (int,),
    "rating_scale": (RatingScale, type(None)),
}


def request_parameters(content: RecordDict) -> Parameters:
    """Read the parameters that came with a request."""
    return unpack_parameters(_record(content, "parameters", ArrayRecord))


def pack_enrollment(enrollment: Enrollment) -> RecordDict:
    """Return the content of a node's answer."""
    nodes, scale = enrollment.nodes, enrollment.rating_scale
    return RecordDict(
        {
            "arrays": ArrayRecord({"item_counts": Array(enrollment.item_counts)}),
            "names": ConfigRecord({"names": [node.name for node in nodes]}),
            "numbers": MetricRecord(
                {
                    "nodes": len(nodes),
                    "node_ids": [node.node_id for node in nodes],
                    "training_users": [node.training_users for node in nodes],
                    "validation_users": [node.validation_users for node in nodes],
                    "rating_scale": [] if scale is None else [scale.low, scale.high],
                }
            ),
        }
    )


def unpack_enrollment(content: RecordDict, items: int) -> Enrollment:
    """Read an answer.

    Raises:
        WireError: It is not an enrolment over ``items`` items.
    """
    numbers = _record(content, "numbers", MetricRecord)
    names = _record(content, "names", ConfigRecord).get("names")
    columns = [names, *(numbers.get(name) for name in ("node_ids", "training_users", "validation_users"))]
    if not all(isinstance(column, list) and len(column) == len(names or ()) for column in columns):  # type: ignore[arg-type]
        raise WireError("an enrolment must name its nodes and give an id and two counts for each")
    nodes = tuple(
        NodeSummary(
            node_id=int(node_id), name=str(name), training_users=int(training), validation_users=int(validation)
        )
        for name, node_id, training, validation in zip(*cast("list[list[Any]]", columns), strict=True)
    )
    scale = _scale(numbers.get("rating_scale"))
    return Enrollment(nodes=nodes, item_counts=_item_counts(content, items), rating_scale=scale)


def _item_counts(content: RecordDict, items: int) -> NDArray[np.int64]:
    record = _record(content, "arrays", ArrayRecord)
    counts: NDArray[np.int64] = (
        _decode("item_counts", record["item_counts"]) if "item_counts" in record else np.empty(0, np.int64)
    )
    if counts.shape != (items,) or counts.dtype != np.int64 or (counts < 0).any():
        raise WireError(f"item_counts must be {items} counts, got {counts.dtype} of shape {counts.shape}")
    return counts


def pack_meta_update(update: MetaUpdate) -> RecordDict:
    """Return the content of a node's answer."""
    numbers = MetricRecord({"weight": update.weight, "loss": update.loss, "users": update.users, "nodes": update.nodes})
    return RecordDict({"arrays": pack_parameters(update.gradients), "numbers": numbers})


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
        if not torch.isfinite(gradient).all():
            raise WireError(f"meta-update of {name} holds a value that is not finite")
    weight, loss, users, nodes = _numbers(content, "weight", "loss", "users", "nodes")
    return MetaUpdate(gradients=gradients, weight=weight, loss=loss, users=int(users), nodes=int(nodes))


def pack_evaluation(evaluation: Evaluation) -> RecordDict:
    """Return the content of a node's answer."""
    numbers = {"users": evaluation.users, "nodes": evaluation.nodes}
    sums = {f"sum {name}": value for name, value in evaluation.sums.items()}
    return RecordDict({"numbers": MetricRecord({**numbers, **sums})})


def unpack_evaluation(content: RecordDict) -> Evaluation:
    """Read an evaluation.

    Raises:
        WireError: A number is missing or not finite.
    """
    record = _record(content, "numbers", MetricRecord)
    names = [name for name in record if name.startswith("sum ")]
    users, nodes, *sums = _numbers(content, "users", "nodes", *names)
    values = {name.removeprefix("sum "): value for name, value in zip(names, sums, strict=True)}
    return Evaluation(sums=values, users=int(users), nodes=int(nodes))


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
