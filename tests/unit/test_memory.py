"""Counting bytes, and staying within a bound of them."""

import numpy as np
import pytest
import torch

from client import learner as module
from client.learner import Learner
from metarec_shared.errors import NodeError
from metarec_shared.memory import is_out_of_memory, peak_bytes, room
from metarec_shared.meta_gradient import Batch
from tests.small import small_settings

CPU = torch.device("cpu")
BATCH = 4 * 1000


def test_the_peak_counts_what_lives_at_one_time() -> None:
    def work() -> None:
        first = torch.ones(1000)
        second = first + 1
        del first
        third = second * 2
        second.add_(third)

    assert peak_bytes(work, CPU) == 2 * BATCH


def test_what_autograd_keeps_counts_and_views_do_not() -> None:
    def work() -> None:
        value = torch.ones(1000, requires_grad=True)
        product = (value.view(10, 100) * 2).exp()
        product.sum().backward()

    assert 3 * BATCH <= peak_bytes(work, CPU) <= 5 * BATCH


def test_nothing_that_was_there_before_counts() -> None:
    there = torch.ones(1000)
    assert peak_bytes(lambda: there.mul_(2), CPU) == 0


def test_room_is_the_bound_less_what_the_process_has() -> None:
    assert room(1000.0, CPU) < 600e9
    assert room(1000.0, CPU) - room(999.0, CPU) == pytest.approx(0.6e9, abs=1e8)
    assert room(0.0, CPU) > 0


def test_only_errors_of_memory_are_taken_for_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def a_learner(**values: object) -> Learner:
    text = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 16), dtype=np.float32))
    return Learner(small_settings(**values), "catalogue", text)


@pytest.mark.parametrize("choice", ["user-vector", "head", "lora", "all"])
def test_the_number_of_users_at_a_time_follows_the_bound(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = a_learner(adaptation__parameters=choice)
    each, fixed = learner._measured_memory
    assert each > 1000
    monkeypatch.setattr(module, "room", lambda bound, device: fixed + 7.5 * each)
    assert learner.users_at_once == 7


def test_a_bound_that_does_not_do_for_one_user_is_an_error_that_says_so() -> None:
    with pytest.raises(
        NodeError, match=r"one user takes 0\.00 GB, and of the memory -.* wanted a larger run.memory-gb"
    ):
        assert a_learner(run__memory_gb=0.001).users_at_once


def test_a_cohort_that_memory_does_not_do_for_is_halved_until_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learner, tried = a_learner(), []
    real = Learner._cohort

    def small_machine(self: Learner, batches: list[Batch], round_number: int) -> object:
        batches = list(batches)
        tried.append(max(len(weights) for _, weights in batches))
        if tried[-1] > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(self, batches, round_number)

    assert learner.users_at_once > 16
    monkeypatch.setattr(Learner, "_cohort", small_machine)

    def batches_of(size: int) -> object:
        tasks, weights = learner._probe(16)
        return iter([(tasks.rows(i, i + size), weights[i : i + size]) for i in range(0, 16, size)])

    found = learner.meta_gradient(batches_of, 16, 1)  # type: ignore[arg-type]
    assert len(found.losses) == 16
    assert tried[-1] <= 3
    assert learner.users_at_once <= 3
    assert "memory ran out; going on with" in caplog.text


def test_another_error_is_not_taken_for_want_of_memory() -> None:
    def batches_of(size: int) -> object:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        a_learner().meta_gradient(batches_of, 16, 1)  # type: ignore[arg-type]


def test_memory_that_does_not_do_for_a_measurement_leaves_one_user_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = Learner._cohort

    def tiny_machine(self: Learner, batches: list[Batch], round_number: int) -> object:
        batches = list(batches)
        if max(len(weights) for _, weights in batches) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batches, round_number)

    monkeypatch.setattr(Learner, "_cohort", tiny_machine)
    assert a_learner().users_at_once == 1
    assert "going on with one at a time" in caplog.text


def test_what_is_computed_once_for_all_users_is_counted_for_none() -> None:
    learner = a_learner(federation__clip_norm=1.0)
    first = learner._measured_memory
    del learner.__dict__["_measured_memory"]
    assert learner._measured_memory == first
    assert first[0] > 1000
