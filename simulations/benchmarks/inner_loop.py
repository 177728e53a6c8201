"""Meta-gradients of a cohort: the engine against the textbook loop of the same computation.

``python -m simulations.benchmarks.inner_loop [--json FILE]``

Both compute the same weighted sum of second-order meta-gradients for the same users, from the same parameters, dtype
and number of threads, then take one outer step. The textbook is ``textbook.py``; TorchOpt's differentiable optimizer
stands beside it on the same computation with fixed inner learning rates, which is all it offers. Memory is counted,
storage by storage, per user in flight: the textbook has one, the engine the whole cohort.

What is gained by computing something else (another loss, fewer trained parameters) is listed apart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from metarec_shared.candidates import draw_candidates
from metarec_shared.memory import peak_bytes
from metarec_shared.meta_gradient import cohort_meta_gradient
from metarec_shared.settings import Settings
from simulations.benchmarks.cohort import Cohort, make_cohort, with_adaptation
from simulations.benchmarks.measure import Ratio, machine, print_table, ratio, take_turns, write_figures
from simulations.benchmarks.textbook import State, textbook_meta_gradient

CHOICES = ("user-vector", "head", "lora", "all")
CLIP_NORM = 1.0
OUTER_RATE = 0.1
_OWN_PARAMETERS = ("lora", "all")

Gradient = Callable[[], State]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The engine against the textbook loop, for one choice of adapted parameters."""

    speedup: Ratio
    speedup_clipped: Ratio
    memory_ratio: float
    difference: float
    difference_clipped: float
    users_per_second: float
    torchopt_speedup: Ratio | None

    def figures(self) -> dict[str, Any]:
        """Return the figures as they stand in the JSON file."""
        return {
            "speedup": self.speedup.median,
            "speedup_clipped": self.speedup_clipped.median,
            "memory_ratio": self.memory_ratio,
            "speedup_range": [self.speedup.low, self.speedup.high],
            "speedup_clipped_range": [self.speedup_clipped.low, self.speedup_clipped.high],
            "difference": self.difference,
            "difference_clipped": self.difference_clipped,
            "users_per_second": self.users_per_second,
            "torchopt_speedup": None if self.torchopt_speedup is None else self.torchopt_speedup.median,
        }


def compare(choice: str, users: int, turns: int, device: torch.device) -> Comparison:
    """Measure one choice of adapted parameters."""
    settings = with_adaptation(Settings(), parameters=choice)
    cohort = make_cohort(settings, users, device=device)
    gradients: dict[str, Gradient] = {
        name: gradient
        for clip, ending in ((0.0, ""), (CLIP_NORM, "_clipped"))
        for name, gradient in (
            (f"engine{ending}", lambda clip=clip: engine(cohort, clip)),
            (f"textbook{ending}", lambda clip=clip: textbook(cohort, choice, clip)),
        )
    }
    torchopt = None
    if choice == Settings().adaptation.parameters:
        fixed = make_cohort(with_adaptation(settings, method="maml"), users, device=device)
        torchopt = _torchopt_gradient(fixed, choice)
        gradients |= {"fixed": lambda: engine(fixed, 0.0)} | ({} if torchopt is None else {"torchopt": torchopt})
    works = {name: _with_outer_step(cohort, gradient) for name, gradient in gradients.items()}
    seconds = take_turns(works, turns, device)
    few = Cohort(model=cohort.model, tasks=cohort.tasks.rows(0, 3), weights=cohort.weights[:3], id_mask=cohort.id_mask)
    in_flight = peak_bytes(lambda: engine(cohort, 0.0), device) / users
    return Comparison(
        speedup=ratio(seconds["textbook"], seconds["engine"]),
        speedup_clipped=ratio(seconds["textbook_clipped"], seconds["engine_clipped"]),
        memory_ratio=in_flight / peak_bytes(lambda: textbook(few, choice, 0.0), device),
        difference=largest_difference(engine(cohort, 0.0), textbook(cohort, choice, 0.0), users),
        difference_clipped=largest_difference(engine(cohort, CLIP_NORM), textbook(cohort, choice, CLIP_NORM), users),
        users_per_second=users / sorted(seconds["engine"])[turns // 2],
        torchopt_speedup=None if torchopt is None else ratio(seconds["torchopt"], seconds["fixed"]),
    )


def engine(cohort: Cohort, clip_norm: float, **changes: Any) -> State:
    """Return the engine's meta-gradient of a cohort."""
    batch = (cohort.tasks, cohort.weights)
    return cohort_meta_gradient(cohort.model, [batch], cohort.id_mask, clip_norm=clip_norm, **changes).gradients


def textbook(cohort: Cohort, choice: str, clip_norm: float) -> State:
    """Return the textbook loop's meta-gradient of a cohort."""
    return textbook_meta_gradient(cohort.model, cohort.tasks, cohort.weights, cohort.id_mask, choice, clip_norm)


def largest_difference(left: Mapping[str, Tensor], right: Mapping[str, Tensor], users: int) -> float:
    """Return the largest difference between two mean meta-gradients over all coordinates.

    Where a parameter's gradient has coordinates above 1, the difference is relative to the largest.
    """
    return max(
        float((left[name] - right[name]).abs().max()) / users / max(1.0, float(right[name].abs().max()) / users)
        for name in left
    )


def apart(users: int, turns: int, device: torch.device) -> list[tuple[str, Ratio]]:
    """Return how much faster the engine gets by computing something else."""
    usual = make_cohort(Settings(), users, device=device)
    candidates = draw_candidates(usual.model.item_bias, 400, 0, 1)
    small = [name for name, _ in usual.model.named_parameters() if name.startswith(("head", "adaptation", "item_norm"))]
    others = {
        "first order": with_adaptation(Settings(), method="fomaml"),
        "no inner loop": with_adaptation(Settings(), steps=0),
    }
    works: dict[str, Gradient] = {
        "the default": lambda: engine(usual, 0.0),
        "softmax over about 400 sampled candidates": lambda: engine(usual, 0.0, candidates=candidates),
        "head, inner learning rates and item norm trained": lambda: engine(usual, 0.0, released=small),
        "the same, clipped": lambda: engine(usual, CLIP_NORM, released=small),
    }
    for name, settings in others.items():
        cohort = make_cohort(settings, users, device=device)
        works[name] = lambda cohort=cohort: engine(cohort, 0.0)  # type: ignore[misc]
    seconds = take_turns(works, turns, device)
    return [(name, ratio(seconds["the default"], taken)) for name, taken in seconds.items() if name != "the default"]


def _with_outer_step(cohort: Cohort, gradient: Gradient) -> Callable[[], object]:
    """Return the work of one round: the gradient, and one outer step on a copy of the parameters."""
    parameters = {name: value.detach().clone() for name, value in cohort.model.named_parameters()}

    def work() -> None:
        found = gradient()
        stepping = [parameters[name] for name in found]
        torch._foreach_add_(stepping, list(found.values()), alpha=-OUTER_RATE / len(cohort.tasks))

    return work


def _torchopt_gradient(cohort: Cohort, choice: str) -> Gradient | None:
    """Return the textbook loop with TorchOpt's differentiable optimizer inside; None where it is not installed."""
    try:
        import torchopt
    except ImportError:
        return None
    rate = cohort.model.adaptation.default_learning_rate

    def step(state: State, gradients: State, _: float | Tensor) -> State:
        optimizer = torchopt.sgd(lr=rate)
        updates, _ = optimizer.update(gradients, optimizer.init(state), inplace=False)
        adapted: State = torchopt.apply_updates(state, updates, inplace=False)
        return adapted

    return lambda: textbook_meta_gradient(cohort.model, cohort.tasks, cohort.weights, cohort.id_mask, choice, step=step)


def main(
    users: Annotated[int, typer.Option(help="Users of the cohort.")] = 256,
    users_own: Annotated[int, typer.Option(help="The same where users have parameters of their own.")] = 32,
    turns: Annotated[int, typer.Option(help="Turns everything is measured in.")] = 5,
    choices: Annotated[str, typer.Option(help="Adapted parameters, by commas.")] = ",".join(CHOICES),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Compare the engine with the textbook loop of the same computation."""
    on, usual = torch.device(device), Settings().adaptation.parameters
    found = {c: compare(c, users_own if c in _OWN_PARAMETERS else users, turns, on) for c in choices.split(",")}
    columns = ("adapted", "speedup", "clipped", "memory a user", "difference", "clipped", "users/s", "to TorchOpt")
    rows = [
        (
            name,
            r.speedup,
            r.speedup_clipped,
            r.memory_ratio,
            r.difference,
            r.difference_clipped,
            r.users_per_second,
            r.torchopt_speedup or "-",
        )
        for name, r in found.items()
    ]
    sizes = f"{users} users ({users_own} with parameters of their own), {turns} turns"
    note = f"{sizes}; ratios: median (lowest-highest); {machine()}"
    print_table("Meta-gradients, the engine against the textbook loop of the same computation", columns, rows, note)
    figures = {name: result.figures() for name, result in found.items()}
    if usual in found:
        others = apart(users, turns, on)
        print_table("Gained by computing something else", ("what", "speedup over the default"), others)
        figures = {"default": {**figures[usual], "apart": {name: r.median for name, r in others}}, **figures}
    write_figures(json_file, figures)


if __name__ == "__main__":
    typer.run(main)
