"""What travels between server and nodes survives the trip, and what does not fit is refused by name."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from metarec_shared import wire
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import WireError
from metarec_shared.exchange import (
    Enrollment,
    EnrollmentRequest,
    EvaluateRequest,
    Evaluation,
    MetaUpdate,
    NodeSummary,
    TrainRequest,
)
from metarec_shared.split import Role

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(())}


def np_bytes(array: np.ndarray) -> bytes:
    return Array(array).data


def an_update(**changes: torch.Tensor) -> RecordDict:
    gradients = {"a": torch.ones(2, 3), "b": torch.tensor(2.0), **changes}
    return wire.pack_meta_update(MetaUpdate(gradients=gradients, weight=3.0, loss=1.5, users=3, nodes=2))


@pytest.mark.parametrize(
    "request_",
    [
        EnrollmentRequest(catalogue="abc"),
        TrainRequest(round_number=4, sampling_rate=0.25, rating_scale=RatingScale(low=1, high=5), catalogue="abc"),
        EvaluateRequest(role=Role.VALIDATION, order="time", adapt=True, draws=3, rating_scale=None, catalogue="abc"),
    ],
)
def test_requests_survive_the_trip(request_: EnrollmentRequest | TrainRequest | EvaluateRequest) -> None:
    assert wire.unpack_request(type(request_), wire.pack_request(request_)) == request_


def test_answers_survive_the_trip() -> None:
    update = wire.unpack_meta_update(an_update(), LIKE)
    assert (update.weight, update.loss, update.users, update.nodes) == (3.0, 1.5, 3, 2)
    assert torch.equal(update.gradients["a"], torch.ones(2, 3))
    evaluation = Evaluation(sums={"ndcg@10": 0.5, "mrr": 1.0}, users=4, nodes=3)
    assert wire.unpack_evaluation(wire.pack_evaluation(evaluation)) == evaluation
    node = NodeSummary(node_id=7, name="site", training_users=5, validation_users=1)
    scale = RatingScale(low=1.0, high=5.0)
    enrollment = Enrollment(nodes=(node,), item_counts=np.array([0, 2, 5]), rating_scale=scale)
    returned = wire.unpack_enrollment(wire.pack_enrollment(enrollment), 3)
    assert (returned.nodes, returned.rating_scale) == (enrollment.nodes, scale)
    assert (returned.item_counts == enrollment.item_counts).all()


def test_an_enrolment_with_a_rating_scale_that_is_none_is_refused() -> None:
    scale = RatingScale(low=1.0, high=float("nan"))
    enrollment = Enrollment(nodes=(), item_counts=np.array([0]), rating_scale=scale)
    with pytest.raises(WireError, match="a rating scale must be empty or two numbers"):
        wire.unpack_enrollment(wire.pack_enrollment(enrollment), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": torch.zeros(1)}, "missing or unknown: c"),
        ({"a": torch.zeros(3, 2)}, r"meta-update of a: got torch.float32 \(3, 2\), wanted torch.float32 \(2, 3\)"),
        ({"a": torch.zeros(2, 3).double()}, r"got torch.float64"),
        ({"a": torch.full((2, 3), torch.nan)}, "meta-update of a holds a value that is not finite"),
        ({"b": torch.tensor(torch.inf)}, "meta-update of b holds a value that is not finite"),
    ],
)
def test_a_meta_update_that_does_not_fit_is_refused_by_name(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.unpack_meta_update(an_update(**changes), LIKE)


def test_a_meta_update_without_numbers_or_with_odd_ones_is_refused() -> None:
    content = an_update()
    content["numbers"] = MetricRecord({"weight": -1.0, "loss": 0.0, "users": 1, "nodes": 1})
    with pytest.raises(WireError, match=r"number 'weight' must be finite and not negative, got -1\.0"):
        wire.unpack_meta_update(content, LIKE)
    with pytest.raises(WireError, match="lacks its MetricRecord 'numbers'"):
        wire.unpack_meta_update(RecordDict({"arrays": content["arrays"]}), LIKE)
    with pytest.raises(WireError, match="lacks its ArrayRecord 'arrays'"):
        wire.unpack_meta_update(RecordDict(), LIKE)


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ((2, 3), b"junk", r"array a: 4 bytes cannot hold float32 of shape \(2, 3\)"),
        ((2, 3), b"j" * 60, "array a cannot be decoded: ValueError"),
        ((2, 3), b"PK\x03\x04" + b"j" * 60, "array a cannot be decoded: BadZipFile"),
        ((10**9, 10**9), b"j" * 60, "cannot hold float32"),
        ((3, 2), np_bytes(np.zeros((2, 3), np.float32)), r"declared float32 \(3, 2\), holds float32 \(2, 3\)"),
    ],
)
def test_bytes_that_are_no_array_are_refused(shape: tuple[int, ...], data: bytes, message: str) -> None:
    content = an_update()
    content["arrays"] = ArrayRecord({"a": Array("float32", shape, "numpy.ndarray", data), "b": Array(np.zeros(()))})
    with pytest.raises(WireError, match=message):
        wire.unpack_meta_update(content, LIKE)


@pytest.mark.parametrize(
    ("name", "value"), [("round_number", "4"), ("sampling_rate", 1), ("catalogue", 3), ("round_number", True)]
)
def test_a_request_with_a_mistyped_value_is_refused(name: str, value: object) -> None:
    request = TrainRequest(round_number=4, sampling_rate=0.25, rating_scale=None, catalogue="abc")
    content = wire.pack_request(request)
    content["request"] = ConfigRecord({**content.config_records["request"], name: value})  # type: ignore[dict-item]
    with pytest.raises(WireError, match=f"TrainRequest.{name} is missing or mistyped"):
        wire.unpack_request(TrainRequest, content)


def test_an_enrolment_over_another_catalogue_is_refused() -> None:
    enrollment = Enrollment(nodes=(), item_counts=np.array([0, 2, 5]), rating_scale=None)
    with pytest.raises(WireError, match="item_counts must be 4 counts, got int64 of shape"):
        wire.unpack_enrollment(wire.pack_enrollment(enrollment), 4)


def test_the_bytes_of_a_message_are_those_of_its_arrays() -> None:
    parameters = {"a": torch.zeros(1000)}
    assert wire.content_bytes(RecordDict({"parameters": wire.pack_parameters(parameters)})) == pytest.approx(
        4000, abs=200
    )
