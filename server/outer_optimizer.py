"""The outer loop's optimizer: torch.optim on the meta-initialization, its state kept across rounds and resumes."""

import math

import torch
from torch import Tensor, nn

from metarec_shared.errors import CheckpointError
from metarec_shared.exchange import Parameters
from metarec_shared.settings import OuterSettings


def outer_learning_rate(settings: OuterSettings, round_number: int, rounds: int) -> float:
    """Return the outer learning rate of a round (from 1): a linear warm-up, then constant or a half cosine to zero."""
    warmup = min(1.0, round_number / settings.warmup_rounds) if settings.warmup_rounds else 1.0
    decay = 0.5 * (1.0 + math.cos(math.pi * (round_number - 1) / rounds)) if settings.schedule == "cosine" else 1.0
    return settings.learning_rate * warmup * decay


class OuterOptimizer:
    """Takes one outer step a round on a copy of the parameters it was given.

    Args:
        settings: Which optimizer, and its constants.
        parameters: The meta-initialization to start from.
        rounds: Length of the learning-rate schedule.
    """

    def __init__(self, settings: OuterSettings, parameters: Parameters, rounds: int) -> None:
        self._settings = settings
        self._rounds = rounds
        self._parameters = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
        self._optimizer = _build(settings, list(self._parameters.values()))

    @property
    def parameters(self) -> Parameters:
        """The meta-initialization as it stands."""
        return {name: value.detach() for name, value in self._parameters.items()}

    def step(self, gradients: Parameters, round_number: int) -> float:
        """Take one step along the mean meta-gradient; return the learning rate it was taken with."""
        rate = outer_learning_rate(self._settings, round_number, self._rounds)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return rate

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's state as named tensors, ``"<quantity>/<parameter>"``."""
        names = list(self._parameters)
        per_parameter = self._optimizer.state_dict()["state"]
        return {
            f"{quantity}/{names[index]}": torch.as_tensor(value)
            for index, quantities in per_parameter.items()
            for quantity, value in quantities.items()
            if value is not None
        }

    def load(self, parameters: Parameters, state: dict[str, Tensor]) -> None:
        """Go back to parameters and state taken earlier from an optimizer with the same settings.

        Raises:
            CheckpointError: They belong to other parameters.
        """
        if parameters.keys() != self._parameters.keys():
            raise CheckpointError("the checkpoint's parameters are not those of this model")
        positions = {name: index for index, name in enumerate(self._parameters)}
        for name, value in parameters.items():
            self._parameters[name].data.copy_(value)
        per_parameter: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            quantity, _, name = key.partition("/")
            per_parameter.setdefault(positions[name], {})[quantity] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})


def _build(settings: OuterSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=settings.momentum)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
