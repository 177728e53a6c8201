"""Calls that wait together are computed together, and nobody's who waits no more."""

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest

from client.service.batcher import Batcher
from client.service.refusal import RefusedError


class Model:
    """Squares numbers, a batch at a time, when it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may = threading.Event()
        self.began = threading.Event()

    def __call__(self, asked: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(asked))
        self.began.set()
        assert self.may.wait(20)
        if 13 in asked:
            raise RuntimeError("unlucky")
        return [ValueError("negative") if one < 0 else one * one for one in asked]


def check(test: Callable[[Batcher[int, int], Model], Awaitable[None]], **values: Any) -> Model:
    model = Model()
    batcher: Batcher[int, int] = Batcher(model, **{"max_batch": 8, "max_wait": 0.5, "max_waiting": 100, **values})
    try:
        asyncio.run(asyncio.wait_for(_whole(test, batcher, model), 20))
    finally:
        model.may.set()
        batcher.close()
    return model


async def _whole(test: Any, batcher: Batcher[int, int], model: Model) -> None:
    await test(batcher, model)


async def begun(model: Model, call: Awaitable[int]) -> "asyncio.Task[int]":
    """Return a call that the model is busy with."""
    task = asyncio.ensure_future(call)
    assert await asyncio.to_thread(model.began.wait, 20)
    return task


def test_what_waits_while_the_model_is_busy_is_one_batch() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = await begun(model, batcher.submit(1, math.inf))
        others = [asyncio.create_task(batcher.submit(n, math.inf)) for n in range(2, 8)]
        while batcher.waiting < 6:
            await asyncio.sleep(0.001)
        model.may.set()
        assert await asyncio.gather(first, *others) == [n * n for n in range(1, 8)]

    assert check(test).batches == [[1], [2, 3, 4, 5, 6, 7]]


def test_a_batch_holds_so_many_and_no_more() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = await begun(model, batcher.submit(1, math.inf))
        others = [asyncio.create_task(batcher.submit(n, math.inf)) for n in range(100, 120)]
        while batcher.waiting < 20:
            await asyncio.sleep(0.001)
        model.may.set()
        await asyncio.gather(first, *others)

    assert [len(batch) for batch in check(test).batches] == [1, 8, 8, 4]


def test_one_caller_at_a_time_never_waits_for_a_batch_to_fill() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        model.may.set()
        began = time.monotonic()
        for n in range(5):
            assert await batcher.submit(n, math.inf) == n * n
        assert time.monotonic() - began < 5

    assert check(test, max_wait=10.0).batches == [[0], [1], [2], [3], [4]]


def test_what_is_wrong_with_one_is_raised_for_him_alone() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = await begun(model, batcher.submit(1, math.inf))
        others = [asyncio.create_task(batcher.submit(n, math.inf)) for n in (2, -3, 13, 4)]
        while batcher.waiting < 4:
            await asyncio.sleep(0.001)
        model.may.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [found[0], found[1], found[4]] == [1, 4, 16]
        assert isinstance(found[2], ValueError)
        assert isinstance(found[3], RuntimeError)

    assert check(test).batches == [[1], [2, -3, 13, 4], [2], [-3], [13], [4]]


def test_who_is_late_or_gone_is_not_computed() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = await begun(model, batcher.submit(1, math.inf))
        late = asyncio.create_task(batcher.submit(2, time.monotonic() + 0.01))
        gone = asyncio.create_task(batcher.submit(3, math.inf))
        there = asyncio.create_task(batcher.submit(4, math.inf))
        while batcher.waiting < 3:
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0.02)
        model.may.set()
        with pytest.raises(RefusedError, match="the deadline passed") as refused:
            await late
        assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert [await first, await there] == [1, 16]

    assert check(test).batches == [[1], [4]]


def test_only_so_many_wait() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = await begun(model, batcher.submit(1, math.inf))
        others = [asyncio.create_task(batcher.submit(n, math.inf)) for n in (2, 3)]
        while batcher.waiting < 2:
            await asyncio.sleep(0.001)
        for call in (batcher.submit(4, math.inf), batcher.run(lambda: 5, math.inf)):
            with pytest.raises(RefusedError, match="got 2, wanted fewer than 2") as refused:
                await call
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        model.may.set()
        assert await asyncio.gather(first, *others) == [1, 4, 9]

    check(test, max_waiting=2)


def test_other_work_takes_turns_with_batches() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = await begun(model, batcher.submit(1, math.inf))
        order: list[str] = []
        work = [asyncio.create_task(batcher.run(lambda n=n: order.append(f"work {n}"), math.inf)) for n in range(2)]
        others = [asyncio.create_task(batcher.submit(n, math.inf)) for n in (2, 3)]
        while batcher.waiting < 4:
            await asyncio.sleep(0.001)
        model.may.set()
        await asyncio.gather(first, *work, *others)
        assert order == ["work 0", "work 1"]

    assert check(test).batches == [[1], [2, 3]]


def test_what_waits_when_it_closes_is_computed_and_nothing_more_is_taken() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        first = await begun(model, batcher.submit(1, math.inf))
        second = asyncio.create_task(batcher.submit(2, math.inf))
        while batcher.waiting < 1:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        await asyncio.sleep(0.02)
        with pytest.raises(RefusedError, match="is stopping") as refused:
            await batcher.submit(3, math.inf)
        assert refused.value.code is grpc.StatusCode.UNAVAILABLE
        model.may.set()
        assert [await first, await second] == [1, 4]
        await closing

    check(test)


def test_several_threads_compute_at_the_same_time() -> None:
    async def test(batcher: Batcher[int, int], model: Model) -> None:
        calls = [asyncio.create_task(batcher.submit(n, math.inf)) for n in range(20, 60)]
        while len(model.batches) < 3:
            await asyncio.sleep(0.001)
        model.may.set()
        assert await asyncio.gather(*calls) == [n * n for n in range(20, 60)]

    check(test, workers=3)
