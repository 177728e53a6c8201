"""The Gaussian mechanism on sums of clipped values: Opacus's optimizer, with noise from generators of our choice.

In a deployment noise comes from ChaCha20, seeded by the operating system. A Gaussian in floating point is not the
Gaussian of the proof: its low-order bits tell of the value it was added to (Mironov 2012). Two measures against it:
every draw is the sum of four draws over two, which makes the reconstruction of what was drawn infeasible (Holohan and
Braghin 2021, section 5; Opacus's secure mode does the same), and noised values are rounded to a grid that is coarse
beside floating point and fine beside the noise, which is post-processing.

References:
    Dwork and Roth (2014), The algorithmic foundations of differential privacy, appendix A.
    Abadi et al. (2016), Deep learning with differential privacy, algorithm 1.
    Mironov (2012), On significance of the least significant bits for differential privacy.
    Holohan and Braghin (2021), Secure random sampling in differential privacy.
"""

import math
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from randomgen import ChaCha
from torch import nn

from metarec_shared.exchange import Parameters
from metarec_shared.privacy.opacus_import import DPOptimizerFastGradientClipping
from metarec_shared.randomness import generator

_DRAWS = 4
"""Draws whose sum, over the square root of their number, is one secure draw (Holohan and Braghin 2021: n = 2)."""

_GRID_BITS = 16
"""Noised values are multiples of the largest power of two that is not above their deviation / 2**16."""

_FINEST = -880
"""Exponent of the finest step: any single-precision value over 2**-880 is still a double."""


class Noise:
    """A source of Gaussian noise and of coins.

    Args:
        rng: Where randomness comes from.
        secure: Whether it withstands who wants to undo it: no seed, and floating point gives nothing away.
    """

    def __init__(self, rng: np.random.Generator, *, secure: bool) -> None:
        self._rng = rng
        self.secure = secure

    @classmethod
    def from_system(cls) -> "Noise":
        """Return a source that the operating system seeds: ChaCha with 20 rounds under a 256-bit key."""
        return cls(np.random.Generator(ChaCha(key=secrets.randbits(256), rounds=20)), secure=True)

    @classmethod
    def simulated(cls, seed: int, *address: int | str) -> "Noise":
        """Return a source that a run's seed addresses: anybody with the seed can undo it."""
        return cls(generator(seed, "noise", *address), secure=False)

    def normal(self, deviation: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw independent Gaussians of a standard deviation."""
        if not self.secure:
            return self._rng.standard_normal(shape) * deviation
        total = self._rng.standard_normal(shape)
        for _ in range(_DRAWS - 1):
            total += self._rng.standard_normal(shape)
        return total * (deviation / math.sqrt(_DRAWS))

    def coins(self, count: int, chance: float) -> NDArray[np.bool_]:
        """Toss ``count`` independent coins, true with ``chance``."""
        return self._rng.random(count) < chance


class NoisedSum(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus's optimizer over sums that are clipped already; ``pre_step`` leaves the noised sums as gradients.

    One source adds the noise of one release. Several are releases of several nodes that are added up, each with noise
    of its own.
    """

    def __init__(self, parameters: list[nn.Parameter], noise_multiplier: float, sensitivity: float) -> None:
        super().__init__(
            torch.optim.SGD(parameters, lr=0.0),
            noise_multiplier=noise_multiplier,
            max_grad_norm=sensitivity,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.sources: Iterable[tuple[Noise, float]] = ()

    def add_noise(self) -> None:
        """Add every source's noise to the sums, in double precision, and round to the grid."""
        deviation = self.noise_multiplier * self.max_grad_norm
        totals = [p.summed_grad.double().cpu().numpy() for p in self.params]
        smallest = math.inf
        for source, share in self.sources:
            smallest = min(smallest, deviation * share)
            for total in totals:
                total += source.normal(deviation * share, total.shape)
        for parameter, total in zip(self.params, totals, strict=True):
            rounded = torch.from_numpy(_on_grid(total, smallest))
            parameter.grad = rounded.to(parameter).view_as(parameter)


def noised_sum(
    sums: Parameters, *, noise_multiplier: float, sensitivity: float, sources: Iterable[tuple[Noise, float]]
) -> Parameters:
    """Return clipped sums with Gaussian noise, N(0, (share * noise multiplier * sensitivity)^2) from every source.

    Unit of privacy: one user's whole history. The sums must change by at most ``sensitivity`` (times a source's share,
    for its node) in norm over all tensors together when a user is added, removed, or, where the sensitivity says so,
    replaced.

    Args:
        sums: Clipped sums by name, public shapes.
        noise_multiplier: Standard deviation of the noise over the sensitivity; 0: no noise and no guarantee.
        sensitivity: Of the sums.
        sources: Sources of noise, each with the factor by which its node's sum was scaled.
    """
    parameters = [nn.Parameter(torch.zeros_like(value)) for value in sums.values()]
    for parameter, value in zip(parameters, sums.values(), strict=True):
        parameter.grad = value.detach().clone()
    optimizer = NoisedSum(parameters, noise_multiplier, sensitivity)
    optimizer.sources = sources
    optimizer.pre_step()
    return {
        name: parameter.grad for name, parameter in zip(sums, parameters, strict=True) if parameter.grad is not None
    }


def noised_counts(
    counts: NDArray[np.float64], *, noise_multiplier: float, norm: float, most: float, sources: Sequence[Noise]
) -> NDArray[np.float64]:
    """Return bounded item counts with Gaussian noise, as whole numbers from 0 to ``most``.

    Args:
        counts: Sum over users of their counts, each user's of at most ``norm``; float64 [items].
        noise_multiplier: Standard deviation of the noise over ``norm``.
        norm: Sensitivity of the sum when one user is added or removed.
        most: A public bound.
        sources: Sources of noise, one a node.
    """
    total = counts.astype(np.float64)
    for source in sources:
        total += source.normal(noise_multiplier * norm, total.shape)
    return np.asarray(np.rint(total).clip(0.0, most), dtype=np.float64)


def bounded_counts(
    histories: NDArray[np.integer[Any]], owners: NDArray[np.int64], norm: float, items: int
) -> NDArray[np.float64]:
    """Count items so that no user's counts have a norm above ``norm``; float64 [items].

    Args:
        histories: Items of all users' interactions.
        owners: Whose interaction each is, from 0.
        norm: Largest norm of one user's counts; a longer history counts for less an item.
        items: Size of the catalogue.
    """
    pairs = np.unique(owners * items + histories)  # an item counts once a user, however often it occurs
    lengths = np.bincount(pairs // items)
    shares = np.minimum(1.0, norm / np.sqrt(np.maximum(lengths, 1)))
    counts = np.bincount(pairs % items, weights=shares[pairs // items], minlength=items)
    return counts.astype(np.float64)  # of no pairs they would be whole numbers


def _on_grid(values: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    if not 0.0 < deviation < math.inf:
        return values
    step = 2.0 ** max(math.floor(math.log2(deviation) - _GRID_BITS), _FINEST)
    return np.rint(values / step) * step
