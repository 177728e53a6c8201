"""A simulation from data to result: meta-train, train the ablation, evaluate, report."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.history import Item, Profile
from client.recommend import recommend
from metarec_shared.checkpoint import Checkpoint, load_checkpoint
from metarec_shared.dataset import Dataset
from metarec_shared.errors import CheckpointError
from metarec_shared.files import write_json, write_text
from metarec_shared.fingerprint import data_fingerprint
from metarec_shared.model_card import model_card
from metarec_shared.rating_model import rating_errors
from metarec_shared.rating_tasks import evaluation_rating_tasks
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from metarec_shared.split import Role
from server.result import RESULT_FILE, describe
from server.run_folder import RESUME_FILE, check_folder
from simulations.engines import ENGINES
from simulations.protocols import (
    Cell,
    Say,
    cold_item,
    cold_user,
    model_methods,
    orders_of,
    popularity_baseline,
    tuned_baselines,
)
from simulations.report import SampleRecommendation, write_report
from simulations.run_data import training_population, whole_population

DATA_FILE = "data.json"
ABLATION_FOLDER = "not_adapted"
SAMPLE_USERS = 3


def simulate(settings: Settings, engine: str, say: Say, *, baselines: bool = True) -> dict[str, Any]:
    """Run a whole simulation and leave everything in ``run.out``.

    Args:
        settings: The run's settings, ``run.out`` set.
        engine: Name of an engine in ``ENGINES``.
        say: Told, in a line each, what happens next.
        baselines: Whether to train the ablation without inner loop and fit the centralized baselines.

    Returns:
        The content of result.json.

    Raises:
        MetaRecError: The data, the settings or the nodes do not allow the run.
    """
    folder = Path(settings.run.out)
    dataset = train(settings, engine, say)
    ablation = None
    rates = settings.model.target == "rating"
    if baselines and not rates and settings.adaptation.steps and settings.privacy.mode == "none":
        say("training the same model without an inner loop (not_adapted)")
        ENGINES[engine](_ablation_settings(settings))
        ablation = load_checkpoint(folder / ABLATION_FOLDER)
    checkpoint = load_checkpoint(folder)
    result = describe(settings, engine, _facts(dataset), folder)
    if rates:
        result |= evaluate_ratings(settings, checkpoint, say)
    else:
        result |= evaluate_run(settings, checkpoint, ablation, say, baselines=baselines)
    write_json(folder / RESULT_FILE, result)
    write_text(folder / "README.md", model_card(result, json.loads(settings.to_json())))
    write_report(folder, [] if rates else sample_recommendations(settings, checkpoint))
    return result


def train(settings: Settings, engine: str, say: Say) -> Dataset:
    """Run the rounds of a simulation, pre-training and meta-learning as the settings say, and return its data.

    Args:
        settings: The run's settings, ``run.out`` set.
        engine: Name of an engine in ``ENGINES``.
        say: Told, in a line each, what happens next.

    Raises:
        MetaRecError: The data, the settings or the nodes do not allow the run.
    """
    dataset = load_dataset(settings)
    for problem in dataset.problems:
        say(f"warning: {problem}")
    _check_data(Path(settings.run.out), dataset, resume=settings.run.resume)
    pretraining = settings.pretraining
    if pretraining.rounds:
        say(f"pre-training ({pretraining.objective}, {pretraining.rounds} rounds) on {_sizes(dataset)}")
    if pretraining.rounds < settings.federation.rounds:
        say(f"meta-training on {_sizes(dataset)}")
    ENGINES[engine](settings)
    return dataset


def evaluate_run(
    settings: Settings, checkpoint: Checkpoint, ablation: Checkpoint | None, say: Say, *, baselines: bool
) -> dict[str, Any]:
    """Evaluate a run on its test users: cold users in every order, cold items where items were held out."""
    population, items = training_population(checkpoint, settings), len(checkpoint.items.known)
    sizes = settings.evaluation
    users = population.judged(Role.TEST, sizes.users)
    result: dict[str, Any] = {"cold_user": {"random": None, "time": None}, "cold_item": None}
    cells = [
        Cell(order=order, support=sizes.support, query=sizes.query, k=sizes.k)
        for order in orders_of(population.interactions)
    ]
    if baselines:
        tuned = tuned_baselines(population, items, cells, sizes.users, say)
    else:
        tuned = dict.fromkeys(cells, popularity_baseline(population, items))
    methods = model_methods(checkpoint, ablation)
    for cell in cells:
        say(f"evaluating {len(users)} test users, {cell.order} order")
        result["cold_user"][cell.order] = cold_user(population, users, cell, {**methods, **tuned.get(cell, {})})
    if settings.data.hold_out_items:
        everything = whole_population(checkpoint, settings)
        result["cold_item"] = cold_item(
            checkpoint, everything, everything.judged(Role.TEST, sizes.users), sizes.support, sizes.k
        )
    return result


def evaluate_ratings(settings: Settings, checkpoint: Checkpoint, say: Say) -> dict[str, Any]:
    """Predict ratings of test users from some of theirs, with and without a user's vector."""
    population, sizes = training_population(checkpoint, settings), settings.evaluation
    users = population.judged(Role.TEST, sizes.users)
    result: dict[str, Any] = {"cold_user": {"random": None, "time": None}, "cold_item": None, "ratings": None}
    tasks = evaluation_rating_tasks(
        population, users, sizes.support, sizes.query, checkpoint.rating_scale, draws=1
    )  # fmt: skip
    if not len(tasks):
        return result
    say(f"evaluating ratings of {len(tasks)} test users")
    model = checkpoint.rating_model()
    figures: dict[str, Any] = {"support": sizes.support, "query": sizes.query, "users": len(tasks)}
    for name, adapt in (("metarec", True), ("unadapted", False)):
        errors = rating_errors(model, tasks, checkpoint.rating_scale, adapt=adapt)
        figures[name] = {metric: float(values.mean()) for metric, values in errors.items()}
    return result | {"ratings": figures}


def sample_recommendations(settings: Settings, checkpoint: Checkpoint) -> list[SampleRecommendation]:
    """Recommend for the first test users with enough history, for people to look at."""
    population = training_population(checkpoint, settings)
    support = settings.evaluation.support
    users = population.users(Role.TEST, shortest=support)[:SAMPLE_USERS]
    model, catalogue, histories = checkpoint.model(), checkpoint.items.known, population.interactions
    samples = []
    for user in users:
        task = population.evaluation_task(int(user), "random", support, 0, population.rating_scale)
        profile = Profile(
            items=[Item(position=int(p), feedback=int(f)) for p, f in zip(task.support, task.feedback, strict=True)]
        )
        ranked = recommend(model, profile, 10)
        samples.append(
            SampleRecommendation(
                support=[(catalogue.titles[p], _shown(histories.rating(int(user), int(p)))) for p in task.support],
                recommended=[(catalogue.titles[p], score) for p, score in ranked],
            )
        )
    return samples


def _check_data(folder: Path, dataset: Dataset, *, resume: bool) -> None:
    """Remember which data the run is made with; refuse to resume it with other data.

    Raises:
        CheckpointError: The data is not that of the run to resume.
    """
    path, fingerprint = folder / DATA_FILE, data_fingerprint(dataset)
    if not resume or not path.exists():
        check_folder(folder, resume=resume)
        write_json(path, {"fingerprint": fingerprint})
    elif json.loads(path.read_text(encoding="utf-8")).get("fingerprint") != fingerprint:
        raise CheckpointError(f"{folder}: the run was made with other data; --resume needs the same")


def _shown(rating: float) -> float | None:
    return None if math.isnan(rating) else rating


def _ablation_settings(settings: Settings) -> Settings:
    folder = Path(settings.run.out) / ABLATION_FOLDER
    resume = (folder / RESUME_FILE).exists()
    return replace(
        settings,
        run=replace(settings.run, out=str(folder), resume=resume),
        adaptation=replace(settings.adaptation, steps=0),
    )


def _facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "users": len(dataset.interactions),
        "items": len(dataset.catalogue),
        "interactions": len(dataset.interactions.items),
        "fingerprint": data_fingerprint(dataset),
    }


def _sizes(dataset: Dataset) -> str:
    return (
        f"{dataset.name}: {len(dataset.interactions):,} users, {len(dataset.catalogue):,} items, "
        f"{len(dataset.interactions.items):,} interactions"
    )
