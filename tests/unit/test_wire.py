"""What travels between server and nodes survives the trip, and what does not fit is refused by name."""

from typing import Any, Literal

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
    Judged,
    MetaUpdate,
    TrainRequest,
)
from metarec_shared.split import Role

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(())}


def an_update(**changes: torch.Tensor) -> RecordDict:
    gradients = {"a": torch.ones(2, 3), "b": torch.tensor(2.0), **changes}
    return wire.pack_meta_update(MetaUpdate(gradients=gradients, weight=3.0, loss=1.5, users=3, nodes=2))


@pytest.mark.parametrize(
    "request_",
    [
        EnrollmentRequest(catalogue="abc"),
        TrainRequest(round_number=4, sampling_rate=0.25, rating_scale=RatingScale(low=1, high=5), catalogue="abc"),
        EvaluateRequest(
            role=Role.VALIDATION,
            orders=("random", "time", "time"),
            supports=(10, 1, 10),
            adapt=True,
            draws=3,
            sampling_rate=0.5,
            rating_scale=None,
            catalogue="abc",
        ),
    ],
)
def test_requests_survive_the_trip(request_: EnrollmentRequest | TrainRequest | EvaluateRequest) -> None:
    assert wire.unpack_request(type(request_), wire.pack_request(request_)) == request_


def test_answers_survive_the_trip() -> None:
    update = wire.unpack_meta_update(an_update(), LIKE)
    assert (update.weight, update.loss, update.users, update.nodes) == (3.0, 1.5, 3, 2)
    assert torch.equal(update.gradients["a"], torch.ones(2, 3))
    assert wire.unpack_evaluation(wire.pack_evaluation(an_evaluation()), (1, 2, 3)) == an_evaluation()
    scale = RatingScale(low=1.0, high=5.0)
    enrollment = an_enrollment(scale)
    returned = wire.unpack_enrollment(wire.pack_enrollment(enrollment), 3)
    assert (returned.rating_scale, returned.rating_sum, returned.rating_count) == (scale, 7.5, 3)
    for column in ("node_ids", "names", "training_users", "validation_users", "item_counts"):
        assert getattr(returned, column).tolist() == getattr(enrollment, column).tolist()


def an_evaluation() -> Evaluation:
    cells = [
        Judged(users=4, sums={"ndcg@10": [0.5], "mrr": [1.0]}),
        Judged(users=2, sums={"ndcg@10": [0.0, 1.5]}),
        Judged(users=0, sums={}),
    ]
    return Evaluation(cells=cells, nodes=3)


def an_enrollment(scale: RatingScale | None = None, **columns: np.ndarray) -> Enrollment:
    values = {
        "node_ids": np.array([7, 2**63 + 5], dtype=np.uint64),
        "names": np.array(["site", "Stätte 2"]),
        "training_users": np.array([5, 0]),
        "validation_users": np.array([1, 4]),
        "item_counts": np.array([0, 2, 5]),
        **columns,
    }
    return Enrollment(**values, rating_scale=scale, rating_sum=7.5, rating_count=3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"node_ids": np.array([1], dtype=np.uint64)}, "must name its nodes and give an id and two counts for each"),
        ({"training_users": np.array([1, -1])}, "training_users of an enrolment must be counts, got int64"),
        ({"validation_users": np.array([1.0, 2.0])}, "validation_users of an enrolment must be counts, got float64"),
        ({"names": np.array(["a", "b\nc"])}, "must name its nodes"),
        ({"names": np.array(["a", "b" * 300])}, "a node's name must have at most 256 bytes, got 300"),
        ({"training_users": np.array([2**62, 5])}, "training_users of an enrolment must be at most"),
        ({"item_counts": np.array([0, 2**62, 5])}, "item_counts exceed the 5 meta-training users"),
    ],
)
def test_an_enrolment_whose_columns_do_not_fit_is_refused(columns: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.unpack_enrollment(wire.pack_enrollment(an_enrollment(**columns)), 3)


@pytest.mark.parametrize(
    ("total", "count", "message"),
    [
        (float("nan"), 3, "3 ratings cannot sum to nan"),
        (4e6, 3, "3 ratings cannot sum to 4000000.0"),
        (1.0, 0, "0 ratings cannot sum to 1.0"),
        (1.0, -1, "a sum of ratings and their count, got 1.0 and -1"),
        (1.0, 2.0, "a sum of ratings and their count, got 1.0 and 2.0"),
    ],
)
def test_a_sum_that_is_none_of_so_many_ratings_is_refused(total: float, count: float, message: str) -> None:
    content = wire.pack_enrollment(an_enrollment())
    numbers = content["numbers"]
    assert isinstance(numbers, MetricRecord)
    numbers["rating_sum"], numbers["rating_count"] = total, count
    with pytest.raises(WireError, match=message):
        wire.unpack_enrollment(content, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rating_scale": ["a", "b"]}, "a rating scale must be"),
        ({"rating_scale": [1.0, 2.0, 3.0]}, "a rating scale must be"),
        ({"orders": "time", "supports": 3}, "EvaluateRequest.orders is missing or mistyped"),
        ({"orders": [], "supports": []}, "cells must be"),
        ({"orders": ["time"]}, "cells must be"),
        ({"supports": [3]}, "cells must be"),
        ({"orders": ["time", "alphabet"]}, "cells must be"),
        ({"orders": [1, 2]}, "cells must be"),
        ({"supports": [0, 3]}, "cells must be"),
        ({"supports": [3, 2**40]}, "cells must be"),
        ({"supports": [1.0, 3.0]}, "cells must be"),
        ({"orders": ["time", "time"], "supports": [3, 3]}, "cells must be"),
        ({"orders": ["time"] * 65, "supports": list(range(1, 66))}, "cells must be"),
        ({"draws": 0}, "draws must be from 1 to 64, and at most 512 over all cells, got 0 of each of 2"),
        ({"draws": 65}, "draws must be from 1 to 64, and at most 512 over all cells, got 65 of each of 2"),
        ({"draws": 9, "orders": ["time"] * 64, "supports": list(range(1, 65))}, "got 9 of each of 64"),
    ],
)
def test_an_evaluation_request_whose_scale_or_cells_are_none_is_refused(changes: dict[str, Any], message: str) -> None:
    request = EvaluateRequest(
        role=Role.VALIDATION, orders=("random", "time"), supports=(3, 3), adapt=True, draws=1, sampling_rate=1.0,
        rating_scale=None, catalogue="any",
    )  # fmt: skip
    content = wire.pack_request(request)
    assert wire.unpack_request(EvaluateRequest, content) == request
    content["request"] = ConfigRecord({**content.config_records["request"], **changes})
    with pytest.raises(WireError, match=message):
        wire.unpack_request(EvaluateRequest, content)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"users": 2, "ndcg@10": [0.5]}, "'ndcg@10' of cell 1 must be 2 finite numbers"),
        ({"users": 2, "ndcg@10": [0.5, 0.5, 0.5]}, "'ndcg@10' of cell 1 must be 2 finite numbers"),
        ({"users": 2, "ndcg@10": 0.5}, "'ndcg@10' of cell 1 must be 2 finite numbers"),
        ({"users": 2, "ndcg@10": [0.5, float("nan")]}, "'ndcg@10' of cell 1 must be 2 finite numbers"),
        ({"users": 2, "ndcg@10": [0.5, float("inf")]}, "'ndcg@10' of cell 1 must be 2 finite numbers"),
        ({"users": 2, "ndcg@10": [0.5, -0.5]}, "'ndcg@10' of cell 1 must be 2 finite numbers"),
        ({"ndcg@10": [0.5, 0.5]}, "users of cell 1 must be from 0"),
        ({"users": -2, "ndcg@10": [0.5, 0.5]}, "users of cell 1 must be from 0"),
        ({"users": 2.0, "ndcg@10": [0.5, 0.5]}, "users of cell 1 must be from 0"),
        ({"users": 2**40, "ndcg@10": [0.5, 0.5]}, "users of cell 1 must be from 0"),
    ],
)
def test_metrics_that_are_none_are_refused(numbers: dict[str, Any], message: str) -> None:
    content = wire.pack_evaluation(an_evaluation())
    content["cell 1"] = MetricRecord(numbers)
    with pytest.raises(WireError, match=message):
        wire.unpack_evaluation(content, (1, 2, 3))
    del content["cell 1"]
    with pytest.raises(WireError, match="lacks its MetricRecord 'cell 1'"):
        wire.unpack_evaluation(content, (1, 2, 3))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_meta_update_in_few_bits_survives_the_trip_within_a_step(bits: Literal[8, 16]) -> None:
    gradients = {"a": torch.linspace(-1, 2, 600).reshape(2, 300), "b": torch.tensor(0.3)}
    update = MetaUpdate(gradients=gradients, weight=3.0, loss=1.5, users=3, nodes=2)
    content = wire.pack_meta_update(update, bits, np.random.default_rng(0))
    returned = wire.unpack_meta_update(content, gradients).gradients
    for name, value in gradients.items():
        assert returned[name].shape == value.shape
        assert (returned[name] - value).abs().max() <= value.abs().max() / (2 ** (bits - 1) - 1) * 1.0001
    assert wire.content_bytes(content) < (601 * bits / 8) * 1.05 + 20
    assert wire.content_bytes(wire.pack_meta_update(update)) == 601 * 4


def test_quantized_arrays_that_do_not_fit_are_refused() -> None:
    gradients = {"a": torch.ones(2, 300)}
    update = MetaUpdate(gradients=gradients, weight=3.0, loss=1.5, users=3, nodes=2)
    content = wire.pack_meta_update(update, 8, np.random.default_rng(0))
    arrays = content.array_records["arrays"]
    arrays["a/scales"] = raw(np.array([np.nan, 1.0, 1.0], np.float32))
    with pytest.raises(WireError, match="scales of a must lie between"):
        wire.unpack_meta_update(content, gradients)
    arrays["a/scales"] = raw(np.ones(2, np.float32))
    with pytest.raises(WireError, match=r"scales of a must be float32 of shape \(3,\)"):
        wire.unpack_meta_update(content, gradients)


def raw(array: np.ndarray) -> Array:
    return Array(str(array.dtype), array.shape, "metarec.raw", array.tobytes())


def test_an_enrolment_with_a_rating_scale_that_is_none_is_refused() -> None:
    scale = RatingScale(low=1.0, high=float("nan"))
    with pytest.raises(WireError, match="a rating scale must be empty or two numbers"):
        wire.unpack_enrollment(wire.pack_enrollment(an_enrollment(scale)), 3)


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


def test_a_reason_comes_before_many_names_are_over() -> None:
    like = {f"layer.{number}": torch.zeros(2) for number in range(30)}
    update = MetaUpdate(gradients={n: v / 0 for n, v in like.items()}, weight=1.0, loss=None, users=None, nodes=1)
    with pytest.raises(WireError, match=r"of layer\.0, layer\.1, layer\.2 and 27 more holds"):
        wire.unpack_meta_update(wire.pack_meta_update(update), like)


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
    ("array", "message"),
    [
        (Array("float32", (2, 3), "metarec.raw", b"junk"), r"array a: 4 bytes cannot hold float32 of shape \(2, 3\)"),
        (Array("float32", (10**9, 10**9), "metarec.raw", b"j" * 60), "cannot hold float32"),
        (Array("float32", (1,) * 65, "metarec.raw", b"j" * 4), "cannot hold float32"),
        (Array("float32", (0, 2**31 - 1, 2**31 - 1, 2**31 - 1), "metarec.raw", b""), "cannot hold float32"),
        (Array("float32", (-2, -3), "metarec.raw", b"j" * 24), "24 bytes cannot hold float32"),
        (Array("float32", (2, 3), "numpy.ndarray", b"j" * 24), "cannot read float32 as numpy.ndarray; wanted metarec"),
        (Array("O", (2, 3), "metarec.raw", b"j" * 48), "cannot read O as metarec.raw"),
    ],
)
def test_bytes_that_are_no_array_are_refused(array: Array, message: str) -> None:
    content = an_update()
    content["arrays"] = ArrayRecord({"a": array, "b": raw(np.zeros((), np.float32))})
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


@pytest.mark.parametrize("missing", ["rating_scale", "round_number"])
def test_a_request_has_its_values_and_no_others(missing: str) -> None:
    request = TrainRequest(round_number=1, sampling_rate=0.5, rating_scale=None, catalogue="c")
    content = wire.pack_request(request)
    values = dict(content.config_records["request"])
    for wrong in ({k: v for k, v in values.items() if k != missing}, {**values, "clip_norm": 1e9}):
        content["request"] = ConfigRecord(wrong)
        with pytest.raises(WireError, match="TrainRequest must have"):
            wire.unpack_request(TrainRequest, content)


def test_an_enrolment_over_another_catalogue_is_refused() -> None:
    with pytest.raises(WireError, match="item_counts must be 4 counts, got float64 of shape"):
        wire.unpack_enrollment(wire.pack_enrollment(an_enrollment()), 4)


def test_the_bytes_of_a_message_are_those_of_its_arrays() -> None:
    parameters = {"a": torch.zeros(1000)}
    assert wire.content_bytes(RecordDict({"parameters": wire.pack_parameters(parameters)})) == pytest.approx(
        4000, abs=200
    )


@pytest.mark.parametrize(("items", "width", "most"), [(3, 4, "3"), (5000, 4097, "4,096")])
def test_a_regression_wider_than_the_catalogue_or_than_any_is_refused(items: int, width: int, most: str) -> None:
    arrays = {
        "neighbours": torch.zeros(items, width, dtype=torch.int32),
        "weights": torch.zeros(items, width),
        "decay": torch.ones(1, dtype=torch.float64),
    }
    blends = {"0": torch.zeros(1, 1)}
    content = RecordDict({"blends": wire.pack_parameters(blends), "regression 0": wire.pack_parameters(arrays)})
    with pytest.raises(WireError, match=f"must have at most {most} neighbours an item, got {width:,}"):
        wire.request_additions(content, [("time", 3)], items)
