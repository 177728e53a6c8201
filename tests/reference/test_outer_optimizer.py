"""The outer optimizer against the update rules as their papers write them, in numpy."""

import numpy as np
import pytest
import torch

from metarec_shared.errors import CheckpointError
from metarec_shared.settings import OuterSettings
from server.outer_optimizer import OuterOptimizer, outer_learning_rate

ROUNDS = 6


def gradients() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(ROUNDS, 5)))


def torch_steps(settings: OuterSettings) -> np.ndarray:
    optimizer = OuterOptimizer(settings, {"w": torch.ones(5, dtype=torch.float64)}, ROUNDS)
    for number, gradient in enumerate(gradients(), start=1):
        optimizer.step({"w": torch.from_numpy(gradient)}, number)
    return optimizer.parameters["w"].numpy()


def test_sgd_with_momentum_and_weight_decay_follows_its_recursion() -> None:
    settings = OuterSettings(optimizer="sgd", momentum=0.8, weight_decay=0.01, learning_rate=0.1, warmup_rounds=2)
    w, velocity = np.ones(5), np.zeros(5)
    for number, gradient in enumerate(gradients(), start=1):
        velocity = 0.8 * velocity + gradient + 0.01 * w
        w = w - outer_learning_rate(settings, number, ROUNDS) * velocity
    np.testing.assert_allclose(torch_steps(settings), w, rtol=1e-12)


@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_and_adamw_follow_their_recursions(decoupled: bool) -> None:
    """Kingma and Ba (2015), algorithm 1; Loshchilov and Hutter (2019), algorithm 2."""
    name = "adamw" if decoupled else "adam"
    settings = OuterSettings(optimizer=name, weight_decay=0.1, learning_rate=0.1, warmup_rounds=2)  # type: ignore[arg-type]
    w, m, v = np.ones(5), np.zeros(5), np.zeros(5)
    for number, gradient in enumerate(gradients(), start=1):
        rate = outer_learning_rate(settings, number, ROUNDS)
        g = gradient if decoupled else gradient + 0.1 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**number)) / (np.sqrt(v / (1 - 0.999**number)) + 1e-8)
        w = (w * (1 - rate * 0.1) if decoupled else w) - rate * step
    np.testing.assert_allclose(torch_steps(settings), w, rtol=1e-10)


def test_learning_rate_warms_up_then_falls_as_half_a_cosine() -> None:
    settings = OuterSettings(learning_rate=2.0, warmup_rounds=10, schedule="cosine")
    rates = [outer_learning_rate(settings, number, 100) for number in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(1.0)
    assert rates[-1] < 0.001
    assert max(rates) == max(rates[9:11])
    constant = OuterSettings(learning_rate=2.0, warmup_rounds=0, schedule="constant")
    assert [outer_learning_rate(constant, number, 100) for number in (1, 50, 100)] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_loaded_optimizer_goes_on_bit_for_bit(name: str) -> None:
    settings = OuterSettings(optimizer=name)  # type: ignore[arg-type]
    start = {"w": torch.ones(5), "b": torch.zeros(2)}
    whole, first, second = (OuterOptimizer(settings, start, ROUNDS) for _ in range(3))
    steps = [{"w": torch.from_numpy(g).float(), "b": torch.from_numpy(g[:2]).float()} for g in gradients()]
    for number, step in enumerate(steps, start=1):
        whole.step(step, number)
    for number, step in enumerate(steps[:3], start=1):
        first.step(step, number)
    second.load(first.parameters, first.state())
    for number, step in enumerate(steps[3:], start=4):
        second.step(step, number)
    for key, value in whole.parameters.items():
        assert torch.equal(second.parameters[key], value)
        assert torch.equal(second.average[key], whole.average[key])


def test_parameters_of_another_model_are_refused() -> None:
    optimizer = OuterOptimizer(OuterSettings(), {"w": torch.ones(5)}, ROUNDS)
    with pytest.raises(CheckpointError, match="not those of this model"):
        optimizer.load({"v": torch.ones(5)}, {})


def test_the_average_is_exponential_and_forgets_the_first_rounds_sooner() -> None:
    settings = OuterSettings(optimizer="sgd", averaging=0.6)
    optimizer = OuterOptimizer(settings, {"w": torch.ones(5, dtype=torch.float64)}, ROUNDS)
    average = np.ones(5)
    for number, gradient in enumerate(gradients(), start=1):
        optimizer.step({"w": torch.from_numpy(gradient)}, number)
        kept = min(0.6, number / (number + 9))
        average = kept * average + (1 - kept) * optimizer.parameters["w"].numpy()
        np.testing.assert_allclose(optimizer.average["w"].numpy(), average, rtol=1e-12)


def test_without_averaging_the_average_is_the_last_round() -> None:
    optimizer = OuterOptimizer(OuterSettings(averaging=0.0), {"w": torch.ones(5)}, ROUNDS)
    optimizer.step({"w": torch.arange(5.0)}, 1)
    assert torch.equal(optimizer.average["w"], optimizer.parameters["w"])
