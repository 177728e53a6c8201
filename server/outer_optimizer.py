"""The outer loop's optimizer: torch.optim on the meta-initialization, its state kept across rounds and resumes."""

import math

import torch
from torch import Tensor, nn

from metarec_shared.errors import CheckpointError
from metarec_shared.exchange import Parameters
from metarec_shared.settings import OuterSettings

_AVERAGE = "average"
_AVERAGING_DELAY = 9
"""Round n keeps at most n / (n + 9) of the average before it, so that the first rounds are soon forgotten."""


def outer_learning_rate(settings: OuterSettings, round_number: int, rounds: int) -> float:
    """Return the outer learning rate of a round (from 1): a linear warm-up, then constant or a half cosine to zero."""
    warmup = min(1.0, round_number / settings.warmup_rounds) if settings.warmup_rounds else 1.0
    decay = 0.5 * (1.0 + math.cos(math.pi * (round_number - 1) / rounds)) if settings.schedule == "cosine" else 1.0
    return settings.learning_rate * warmup * decay


class OuterOptimizer:
    """Takes one outer step a round on a copy of the parameters it was given, and averages where it has been.

    The average is exponential over rounds (Polyak averaging): what one cohort moved too far, others move back.

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
        self._average = {name: value.detach().clone() for name, value in self._parameters.items()}

    @property
    def parameters(self) -> Parameters:
        """The meta-initialization as it stands."""
        return {name: value.detach() for name, value in self._parameters.items()}

    @property
    def average(self) -> Parameters:
        """The exponential moving average of the meta-initializations so far: what is evaluated and kept."""
        return dict(self._average)

    def step(self, gradients: Parameters, round_number: int) -> float:
        """Take one step along the mean meta-gradient; return the learning rate it was taken with."""
        rate = outer_learning_rate(self._settings, round_number, self._rounds)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        kept = min(self._settings.averaging, round_number / (round_number + _AVERAGING_DELAY))
        torch._foreach_lerp_(list(self._average.values()), list(self.parameters.values()), 1.0 - kept)
        return rate

    def state(self) -> dict[str, Tensor]:
        """Return all that is not the parameters themselves as named tensors, ``"<quantity>/<parameter>"``."""
        average = {f"{_AVERAGE}/{name}": value for name, value in self._average.items()}
        names = list(self._parameters)
        per_parameter = self._optimizer.state_dict()["state"]
        return average | {
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
        shapes, own = ({name: value.shape for name, value in p.items()} for p in (parameters, self._parameters))
        if shapes != own:
            raise CheckpointError("the checkpoint's parameters are not those of this model")
        positions = {name: index for index, name in enumerate(self._parameters)}
        for name, value in parameters.items():
            self._parameters[name].data.copy_(value)
        per_parameter: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            quantity, _, name = key.partition("/")
            if quantity == _AVERAGE:
                self._average[name].copy_(value)
                continue
            per_parameter.setdefault(positions[name], {})[quantity] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})


def _build(settings: OuterSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=settings.momentum, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
