"""Dynamic batching: calls that wait at the same time are computed together, by one thread, in one pass of the model.

A call that finds the model idle is computed at once. While the model computes, others gather; it takes as many as a
batch holds. Where the last batch held more than one call it waits a moment for the next to fill, since those who were
just answered are likely to ask again. Nobody waits whose deadline has passed or who has gone: such calls are dropped
before they are computed. Work that cannot be batched is done one at a time, in turn with the batches.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from client.service.refusal import RefusedError

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What waits: a request, or work of its own; until when, on the monotonic clock; and who waits for the answer."""

    asked: Any
    deadline: float
    answer: "asyncio.Future[Any]"


class Batcher(Generic[Asked, Answer]):
    """Threads that compute, and the calls that wait for them.

    Args:
        compute: Answers several requests at once; an answer that is an exception is raised where it was asked for.
        max_batch: Most requests of a batch.
        max_wait: Most seconds that a batch waits to fill.
        max_waiting: Most calls that wait; further ones are refused.
        workers: Threads.
        computed: Told the size of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Asked]], Sequence[Answer | Exception]],
        *,
        max_batch: int,
        max_wait: float,
        max_waiting: int,
        workers: int = 1,
        computed: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._compute, self._computed = compute, computed
        self._max_batch, self._max_wait, self._max_waiting = max_batch, max_wait, max_waiting
        self._jobs: deque[_Job] = deque()
        self._alone: deque[_Job] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"model-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._jobs) + len(self._alone)

    async def submit(self, asked: Asked, deadline: float) -> Answer:
        """Answer a request in the next batch.

        Args:
            asked: The request.
            deadline: Until when the caller waits, on the monotonic clock, seconds.

        Raises:
            RefusedError: Too many wait, or the deadline passed before it was computed.
        """
        answer: Answer = await self._wait_for(self._jobs, asked, deadline)
        return answer

    async def run(self, work: Callable[[], Result], deadline: float) -> Result:
        """Do work that cannot be batched, in the threads that compute.

        Args:
            work: The work.
            deadline: As ``submit``.

        Raises:
            RefusedError: As ``submit``.
        """
        result: Result = await self._wait_for(self._alone, work, deadline)
        return result

    def close(self) -> None:
        """Compute what waits, then end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    async def _wait_for(self, queue: deque[_Job], asked: Any, deadline: float) -> Any:
        job = _Job(asked=asked, deadline=deadline, answer=asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closing:
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the service is stopping; try again")
            if self.waiting >= self._max_waiting:
                raise RefusedError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"calls waiting: got {self.waiting:,}, wanted fewer than {self._max_waiting:,}; try again later",
                )
            queue.append(job)
            if queue is self._alone or len(queue) == 1 or len(queue) >= self._max_batch:
                self._changed.notify()
        return await job.answer

    def _work(self) -> None:
        last = 0
        while True:
            jobs, alone = self._take(last)
            if not jobs and alone is None and self._closing and not self.waiting:
                return
            if jobs := _living(jobs):
                self._computed(len(jobs))
                _deliver(list(zip(jobs, self._answers(jobs), strict=True)))
            last = len(jobs)
            if alone is not None and _living([alone]):
                _deliver([(alone, _attempt(alone.asked))])

    def _take(self, last: int) -> tuple[list[_Job], _Job | None]:
        """Wait for calls; return a batch of them, and one that is computed alone.

        Args:
            last: Size of the batch before.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.waiting or self._closing)
            if last > 1 and not self._alone:
                self._changed.wait_for(
                    lambda: len(self._jobs) >= self._max_batch or self._alone or self._closing, self._max_wait
                )
            jobs = [self._jobs.popleft() for _ in range(min(self._max_batch, len(self._jobs)))]
            alone = self._alone.popleft() if self._alone else None
            if self.waiting:
                self._changed.notify()
            return jobs, alone

    def _answers(self, jobs: Sequence[_Job]) -> Sequence[Any]:
        """Return the answers; where a batch fails for a reason that nobody foresaw, one by one."""
        answers = _attempt(lambda: self._compute([job.asked for job in jobs]))
        if not isinstance(answers, Exception):
            return answers  # type: ignore[no-any-return]
        return [answers] if len(jobs) == 1 else [self._answers([job])[0] for job in jobs]


def _attempt(work: Callable[[], Any]) -> Any:
    """Return what ``work`` does, or raises."""
    try:
        return work()
    except Exception as error:  # whoever asked gets it
        return error


def _living(jobs: Sequence[_Job]) -> list[_Job]:
    """Return those whose callers still wait; tell the others, if they are there to hear it."""
    now = time.monotonic()
    late = [job for job in jobs if job.deadline <= now]
    if late:
        error = RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before this call's turn came")
        _deliver([(job, error) for job in late])
    return [job for job in jobs if job.deadline > now and not job.answer.cancelled()]


def _deliver(answers: Sequence[tuple[_Job, Any]]) -> None:
    """Hand answers to the loop that waits for them; one that is closed waits no more."""
    loop = answers[0][0].answer.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(_set, answers)


def _set(answers: Sequence[tuple[_Job, Any]]) -> None:
    for job, answer in answers:
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
