"""How near a round comes to what the machine could do, and where the rest goes.

``python -m simulations.benchmarks.limit [--device cuda] [--json FILE]``

The floating-point operations of every matrix product of a whole round (a cohort drawn, answered for by the in-process
grid, packed, unpacked, one outer step) are counted. Then each product is repeated by itself, on tensors of the same
shapes and strides, which gives this machine's rate on the shapes that occur. The fraction is the time of the bare
products over the time of the round. A profile lists what else takes time. With ``--clip-norm`` users are clipped.
"""

import cProfile
import pstats
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from flwr.app import ConfigRecord
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from metarec_shared.memory import peak_bytes
from metarec_shared.settings import Settings
from metarec_shared.sources import load_item_features
from server.delivery import deliver
from server.federation import enroll_nodes, initial_parameters
from server.fedmaml import FedMAML
from server.outer_optimizer import OuterOptimizer
from simulations.benchmarks.cohort import HISTORY, ITEMS, TEXT_WIDTH
from simulations.benchmarks.measure import machine, print_table, timed, write_figures
from simulations.benchmarks.scale import Federation, write_data
from simulations.engines import in_process_grid

USERS = 2000
LISTED_SHARE = 0.02
_aten = torch.ops.aten
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.bmm, _aten.addmm_, _aten.baddbmm, _aten.addmv_)


_PURPOSES = {
    "packing, unpacking, Flower's messages": (
        "/flwr/",
        "wire.py",
        "delivery.py",
        "broadcast.py",
        "grid.py",
        "exchange.py",
    ),
    "drawing tasks": ("tasks.py", "population.py", "randomness.py", "node.py", "numpy"),
    "torch's and transformers' Python": ("/torch/", "/transformers/", "user_encoder.py"),
    "torch's operations": ("~ <built-in method torch", "~ <method", "~ <built-in method _foreach"),
}


class Product(NamedTuple):
    """A matrix product: sizes and strides of its two factors, as batches."""

    left: tuple[tuple[int, ...], tuple[int, ...]]
    right: tuple[tuple[int, ...], tuple[int, ...]]

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiplication and an addition counted as two."""
        rows = self.left[0]
        columns = self.right[0][-1] if len(self.right[0]) > 1 else 1
        size = 2 * columns
        for length in rows:
            size *= length
        return size


class ProductRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every matrix product that is computed while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and record it where it is a product."""
        if function.overloadpacket in _PRODUCTS:
            left, right = [arg for arg in args if isinstance(arg, Tensor)][-2:]
            self.counts[Product((tuple(left.shape), left.stride()), (tuple(right.shape), right.stride()))] += 1
        return function(*args, **(kwargs or {}))


def make_round(settings: Settings) -> Callable[[int], object]:
    """Return a function that runs round number so-and-so of a federation, as the server's strategy does."""
    public, grid = load_item_features(settings), in_process_grid(settings)
    roster = enroll_nodes(grid, settings, public)
    initial = initial_parameters(settings, public, roster)
    optimizer = OuterOptimizer(settings.outer, initial, settings.federation.rounds)
    strategy = FedMAML(settings, roster, optimizer, public.fingerprint)

    def one_round(number: int) -> object:
        messages = strategy.configure_train(number, strategy.arrays(number - 1), ConfigRecord(), grid)
        return strategy.aggregate_train(number, deliver(grid, messages, settings.federation.round_timeout))

    return one_round


def seconds_of(product: Product, device: torch.device, repetitions: int = 7) -> float:
    """Return the median seconds of one bare product."""
    left, right = _like(*product.left, device), _like(*product.right, device)
    torch.matmul(left, right)
    return statistics.median(timed(partial(torch.matmul, left, right), device) for _ in range(repetitions))


def _like(size: tuple[int, ...], stride: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a random tensor of this size and these strides."""
    extent = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    return torch.randn(max(1, extent), device=device).as_strided(size, stride)


def profile_of(one_round: Callable[[int], object], rounds: range, device: torch.device) -> list[dict[str, Any]]:
    """Return the share of a round's time that each kind of operation takes, the largest first."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        seconds = timed(lambda: [one_round(number) for number in rounds], device)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    shares = {event.key: getattr(event, key) / 1e6 / seconds for event in profiler.key_averages()}
    shares["Python, NumPy, Flower's messages"] = max(0.0, 1.0 - sum(shares.values()))
    found = sorted(shares.items(), key=lambda pair: -pair[1])
    return [{"operation": name, "share": share} for name, share in found if share >= LISTED_SHARE]


def python_profile_of(one_round: Callable[[int], object], rounds: range) -> list[dict[str, Any]]:
    """Return the share of a round's time by what it is spent for, as Python sees it, which inflates Python's own."""
    profiler = cProfile.Profile()
    profiler.enable()
    for number in rounds:
        one_round(number)
    profiler.disable()
    seconds: Counter[str] = Counter()
    for (file, _, name), (_, _, own, *_) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        seconds[_purpose(f"{file} {name}")] += own
    return [{"purpose": name, "share": value / seconds.total()} for name, value in seconds.most_common()]


def _purpose(place: str) -> str:
    """Return what a function is for, by its file and name."""
    for purpose, parts in _PURPOSES.items():
        if any(part in place for part in parts):
            return purpose
    return "the engine's Python, and the rest"


def measure(settings: Settings, rounds: int) -> dict[str, Any]:
    """Count, time and profile rounds."""
    device = torch.device("cuda" if settings.run.device == "cuda" else "cpu")
    one_round = make_round(settings)
    for number in (1, 2):
        one_round(number)
    recorder = ProductRecorder()
    with recorder:
        one_round(3)
    numbers = range(4, 4 + rounds)
    seconds = statistics.median(timed(partial(one_round, number), device) for number in numbers)
    bare = sum(count * seconds_of(product, device) for product, count in recorder.counts.items())
    flops = sum(count * product.flops for product, count in recorder.counts.items())
    return {
        "gflop_a_round": flops / 1e9,
        "milliseconds_a_round": 1e3 * seconds,
        "users_per_second": settings.federation.cohort / seconds,
        "gflops": flops / seconds / 1e9,
        "machine_gflops": flops / bare / 1e9,
        "fraction": bare / seconds,
        "peak_mb": peak_bytes(lambda: one_round(4 + rounds), device) / 1e6,
        "profile": profile_of(one_round, range(5 + rounds, 5 + 2 * rounds), device),
        "python_profile": python_profile_of(one_round, range(5 + 2 * rounds, 5 + 3 * rounds)),
    }


def main(
    cohort: Annotated[int, typer.Option(help="Users of a round.")] = 256,
    rounds: Annotated[int, typer.Option(help="Rounds that are timed.")] = 20,
    clip_norm: Annotated[float, typer.Option(help="Clip norm; 0: nobody is clipped.")] = 0.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Compare a round with this machine's rate of matrix products."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        write_data(Federation(devices=USERS, cohort=cohort, items=ITEMS, history=HISTORY), data)
        values = {
            "data.path": str(data),
            "text.encoder": "builtin",
            "text.builtin-steps": 5,
            "text.builtin-width": TEXT_WIDTH,
            "federation.cohort": cohort,
            "federation.clip-norm": clip_norm,
            "run.device": device,
            "run.precision": precision,
            "run.out": name,
        }
        figures = measure(Settings().with_values(values, "limit benchmark"), rounds)
    rows = [(key.replace("_", " "), value) for key, value in figures.items() if isinstance(value, float)]
    print_table(f"A round of about {cohort} users", ("what", "value"), rows, machine())
    parts = [(part["operation"], part["share"]) for part in figures["profile"]]
    print_table(f"Where a round's time goes (parts above {LISTED_SHARE:.0%})", ("operation", "share"), parts)
    purposes = [(part["purpose"], part["share"]) for part in figures["python_profile"]]
    print_table("The same, as Python's profiler sees it", ("purpose", "share"), purposes)
    write_figures(json_file, figures)


if __name__ == "__main__":
    typer.run(main)
