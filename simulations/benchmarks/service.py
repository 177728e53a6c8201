"""The service under load: throughput and latency against the number of callers, and its memory over a soak.

``python -m simulations.benchmarks.service --model RUN [--concurrency 1,2,4,8,16,32,64,128] [--seconds 5] [--turns 3]
[--soak 300] [--json FILE]``

``metarec serve`` runs in a process of its own, this one is the load: so many callers, each of which asks for ten items
for a history of 0 to 20 items and asks again when it is answered. Numbers of callers take turns; what is reported
beside calls a second is how many times as many as one caller at a time gets, turn by turn. Both processes share the
machine, so with few cores the callers take a good part of the service's time.
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer

from client.service.proto.metarec.v1 import recommender_pb2 as pb
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import ServiceError
from simulations.benchmarks.measure import machine, print_table, ratio, resident_megabytes, write_figures

METHOD = "/metarec.v1.Recommender/Recommend"
HISTORIES, LONGEST = 500, 20
PATIENCE = 60.0
"""Seconds after which a call has failed."""

SOAK_CALLERS, SOAK_WARM_UP = 32, 0.1
SECONDS_TO_START = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What callers saw.

    Attributes:
        callers: How many asked at a time.
        seconds: For how long.
        latencies: Of each call that was answered, in seconds.
        failures: Calls that were not, by status code.
    """

    callers: int
    seconds: float
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answered calls a second."""
        return len(self.latencies) / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One number of callers: calls a second of each turn, milliseconds of all turns, calls that failed."""

    callers: int
    rates: list[float]
    p50: float
    p95: float
    p99: float
    failed: int

    @classmethod
    def of(cls, loads: Sequence[Load]) -> "Level":
        """Sum up the turns."""
        p50, p95, p99 = np.percentile([1000 * second for load in loads for second in load.latencies], [50, 95, 99])
        return cls(
            callers=loads[0].callers,
            rates=[load.rate for load in loads],
            p50=float(p50),
            p95=float(p95),
            p99=float(p99),
            failed=sum(load.failures.total() for load in loads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """Memory of the service in MB: when it was warm, at the end, at most; growth of a line through it, MB a minute."""

    seconds: float
    calls: int
    failed: int
    before: float
    after: float
    most: float
    growth: float


def main(
    model: Annotated[Path, typer.Option(help="Folder of a run.", metavar="RUN")],
    concurrency: Annotated[str, typer.Option(help="Numbers of callers, by commas; the first is compared with.")] = (
        "1,2,4,8,16,32,64,128"
    ),
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each number of callers and turn.")] = 5.0,
    turns: Annotated[int, typer.Option(min=1, help="Turns.")] = 3,
    soak: Annotated[float, typer.Option(min=0, help="Seconds of the soak; 0: none.")] = 0.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Of the service.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="Of the service.")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Measure the service under load."""
    numbers = [int(part) for part in concurrency.split(",")]
    requests = make_requests(model)
    with tempfile.TemporaryDirectory(prefix="metarec-service-") as folder:
        log, options = Path(folder) / "service.log", ("--max-batch", max_batch, "--max-wait-ms", max_wait_ms)
        with running(model, log, *options) as (process, address):
            levels, whole = asyncio.run(_measure(process.pid, address, requests, numbers, seconds, turns, soak))
    _print(levels, whole, seconds, turns)
    figures = [{**asdict(one), "ratio": asdict(ratio(one.rates, levels[0].rates))} for one in levels]
    write_figures(json_file, {"levels": figures, "soak": None if whole is None else asdict(whole)})


def make_requests(model: Path, seed: int = 0) -> list[bytes]:
    """Return requests of users with random histories, serialized."""
    rng, items = np.random.default_rng(seed), load_checkpoint(model).items.catalogue.item_ids
    histories = (
        rng.choice(len(items), min(size, len(items)), replace=False) for size in rng.integers(0, LONGEST + 1, HISTORIES)
    )
    return [
        pb.RecommendRequest(
            history=pb.History(interactions=[pb.Interaction(item=items[place]) for place in history])
        ).SerializeToString()
        for history in histories
    ]


@contextlib.contextmanager
def running(model: Path, log: Path, *options: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run ``metarec serve`` on a free port; return its process and its address."""
    command = [str(Path(sys.executable).parent / "metarec"), "serve", "--model", str(model), "--listen", "127.0.0.1:0"]
    command += [str(option) for option in options]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:  # noqa: S603
        try:
            yield process, _address(process, log)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


async def load(channel: grpc.aio.Channel, requests: Sequence[bytes], callers: int, seconds: float) -> Load:
    """Let so many callers ask for so long; each waits for its answer before it asks again."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    found = Load(callers=callers, seconds=seconds)
    ending = time.perf_counter() + seconds

    async def ask(first: int) -> None:
        place = first
        while (began := time.perf_counter()) < ending:
            try:
                await call(requests[place % len(requests)], timeout=PATIENCE)
            except grpc.aio.AioRpcError as error:
                found.failures[error.code().name] += 1
            else:
                found.latencies.append(time.perf_counter() - began)
            place += callers

    await asyncio.gather(*(ask(first) for first in range(callers)))
    return found


async def soaked(channel: grpc.aio.Channel, requests: Sequence[bytes], pid: int, seconds: float) -> Soak:
    """Load the service for long, and look at its memory every second."""
    samples: list[tuple[float, float]] = []
    began = time.perf_counter()

    async def watch() -> None:
        while True:
            samples.append((time.perf_counter() - began, resident_megabytes([pid])))
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    found = await load(channel, requests, SOAK_CALLERS, seconds)
    watching.cancel()
    warm = [(at, memory) for at, memory in samples if at >= SOAK_WARM_UP * seconds] or samples
    times, memory = np.array(warm).T
    slope = float(np.polyfit(times, memory, 1)[0]) if len(warm) > 1 else 0.0
    return Soak(
        seconds=seconds,
        calls=len(found.latencies),
        failed=found.failures.total(),
        before=float(memory[0]),
        after=float(memory[-1]),
        most=float(memory.max()),
        growth=60 * slope,
    )


async def _measure(
    pid: int, address: str, requests: Sequence[bytes], numbers: Sequence[int], seconds: float, turns: int, soak: float
) -> tuple[list[Level], Soak | None]:
    async with grpc.aio.insecure_channel(address) as channel:
        await load(channel, requests, max(numbers), min(seconds, 2.0))
        loads: dict[int, list[Load]] = {number: [] for number in numbers}
        for turn in range(turns):
            for number in numbers:
                typer.echo(f"turn {turn + 1} of {turns}: {number} callers", err=True)
                loads[number].append(await load(channel, requests, number, seconds))
        whole = await soaked(channel, requests, pid, soak) if soak else None
    return [Level.of(found) for found in loads.values()], whole


def _print(levels: Sequence[Level], soak: Soak | None, seconds: float, turns: int) -> None:
    rows = [
        [
            one.callers,
            float(np.median(one.rates)),
            ratio(one.rates, levels[0].rates),
            one.p50,
            one.p95,
            one.p99,
            one.failed,
        ]
        for one in levels
    ]
    print_table(
        "Recommend, by the number of callers",
        ["callers", "calls/s", f"to {levels[0].callers}", "p50, ms", "p95, ms", "p99, ms", "failed"],
        rows,
        f"{turns} turns of {seconds:g} s; ratios: median (lowest-highest); {machine()}",
    )
    if soak is not None:
        print_table(
            f"{soak.seconds:g} s with {SOAK_CALLERS} callers",
            ["calls", "failed", "MB, warm", "MB, at the end", "MB, most", "MB a minute"],
            [[f"{soak.calls:,}", soak.failed, soak.before, soak.after, soak.most, soak.growth]],
        )


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the service listens; return where."""
    deadline, mark = time.monotonic() + SECONDS_TO_START, "listening on "
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if mark in text:
            return text.partition(mark)[2].partition(";")[0]
        time.sleep(0.05)
    raise ServiceError(f"metarec serve does not listen: {log.read_text(encoding='utf-8', errors='replace')[-500:]}")


if __name__ == "__main__":
    typer.run(main)
