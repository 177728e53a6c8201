"""What a node's meta-update can be at most: the server believes no reply that clipping and noise cannot have made.

A reply is ``s`` (sum of K clipped meta-gradients + noise), where ``s`` is its weight over the users ``m`` that the node
expects to draw, each meta-gradient has a norm of at most C and the noise is N(0, (sigma S)^2) in each of d coordinates
(``client.meta_update``, ``client.privacy.guard.protected``). S is C in the mode site and 2 C in the mode local; in the
mode central, and without privacy, the reply has no noise. By the triangle inequality its norm is at most

    s (C K + sigma S |z|),    z standard normal in d coordinates, K Poisson-sampled with mean m.

Neither K nor z has a largest value, but neither is above these but with a chance of about 1e-8:

    K <= m + 6 sqrt(m) + 6    Bernstein: the chance is below exp(-18 (m + 2 sqrt(m) + 1) / (m + 2 sqrt(m) + 2));
                              of a Poisson law with any mean it is below 1e-9 (the last 6 is for small means)
    |z| <= sqrt(d) + 6        the norm is 1-Lipschitz and its mean is below sqrt(d): the chance is below exp(-18)

A node whose count of users is exact draws no more than all of them. In the mode site the count is a constant that the
site declares: one that declares fewer users than it has gives itself a lower bound.

Rounding to b bits moves every value of a block by at most the block's largest magnitude over L = 2^(b-1) - 1, so the
norm by at most a share of sqrt(block) / L (``quantization``).

What the bound does not do: a node may lie within it. It caps how far one reply can move a round, nothing else.

References:
    Boucheron, Lugosi and Massart (2013), Concentration inequalities, corollary 2.11 (Bernstein), theorem 5.6 (Gaussian
    concentration of Lipschitz functions).
    Sun, Kairouz, Suresh and McMahan (2019), Can you really backdoor federated learning?, section 4 (norm thresholding).
"""

import math
from dataclasses import dataclass

import torch

from metarec_shared.errors import WireError
from metarec_shared.exchange import MetaUpdate, Parameters
from metarec_shared.quantization import BLOCK
from metarec_shared.settings import Settings
from server.failures import one_line
from server.roster import Roster

DEVIATIONS = 6.0

WEIGHT_SLACK = 2.0
"""A site's file may give its replies another weight than the users it expects to draw, a half to twice that.

A rule that compares nodes divides by the weight: one near 0 would make the quotient anything, or no number."""

_ROUNDING = 1e-3
"""Relative: norms and clipping are computed in single precision, noise is rounded to a grid."""

_SAME = 1e-6
"""Relative: weights are computed in double precision on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What is known of a node's reply before it comes.

    Attributes:
        users: Users the node enrolled with.
        expected: Users it expects to draw in this round.
        exact: Whether ``users`` is how many it has, not a constant that it declares.
    """

    users: float
    expected: float
    exact: bool

    @property
    def most_drawn(self) -> float:
        """Users that it draws at most, but with a chance of about 1e-9."""
        plausible = self.expected + DEVIATIONS * math.sqrt(self.expected) + DEVIATIONS
        return min(self.users, plausible) if self.exact else plausible


def norm_bound(
    contribution: Contribution,
    *,
    clip_norm: float,
    noise: float,
    parameters: int,
    weight: float,
    bits: int = 32,
) -> float:
    """Return the norm that an honest reply exceeds with a chance of about 1e-8; the formula is the module's.

    Args:
        contribution: What is known of the node.
        clip_norm: C, the largest norm of one user's meta-gradient.
        noise: Standard deviation of the noise in the sum before it is scaled, sigma S; 0: there is none.
        parameters: d, the released numbers.
        weight: The reply's weight; it scales clipped sum and noise alike.
        bits: What the reply's numbers were rounded to.
    """
    if not contribution.expected:
        return 0.0
    scale = weight / contribution.expected
    drawn = clip_norm * contribution.most_drawn
    noised = noise * (math.sqrt(parameters) + DEVIATIONS)
    rounded = 1.0 if bits == 32 else 1.0 + math.sqrt(BLOCK) / (2 ** (bits - 1) - 1)
    return scale * (drawn + noised) * rounded * (1.0 + _ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCheck:
    """Checks the meta-updates of a round against what their nodes can have sent.

    Attributes:
        settings: The run's settings.
        roster: The federation's nodes.
        sampling_rate: Of the round.
        parameters: Numbers that are released.
    """

    settings: Settings
    roster: Roster
    sampling_rate: float
    parameters: int

    def check(self, update: MetaUpdate, node: int) -> None:
        """Refuse a meta-update whose weight or norm no honest node can have.

        The scale of the bound comes from the weight only once that is one that the node may claim.

        Args:
            update: What it sent.
            node: Flower's id of the node that was asked.

        Raises:
            WireError: The node may not claim its weight, or its norm is above the bound.
        """
        place = self.roster.place_of(node)
        if place is None:
            raise WireError(f"a meta-update of node {node}, which is none of those that train")
        name, known = one_line(str(self.roster.names[place])), self._contribution(place)
        self._check_weight(name, update.weight, known)
        clip_norm = self.settings.federation.clip_norm
        if not clip_norm:
            return
        noise = self._noise(place)
        most = norm_bound(
            known,
            clip_norm=clip_norm,
            noise=noise,
            parameters=self.parameters,
            weight=update.weight,
            bits=self.settings.traffic.update_bits,
        )
        norm = norm_of(update.gradients)
        if norm > most:
            causes = "clip norm, weight and noise" if noise else "clip norm and weight"
            what = f"norm {norm:.4g} is above {most:.4g}, the most that {causes} can give"
            raise WireError(f"meta-update of {name}: {what}")

    def _contribution(self, place: int) -> Contribution:
        users = float(self.roster.training.users[place])
        privacy = self.roster.privacy
        return Contribution(
            users=users,
            expected=users * min(self.sampling_rate, 1.0),
            exact=privacy is None or privacy.terms.mode != "site",
        )

    def _check_weight(self, name: str, weight: float, known: Contribution) -> None:
        """Refuse a weight that the node may not claim.

        It is one where nodes weigh alike, and the users that the node expects to draw where it declared no privacy, or
        the server adds the noise of a sum. Else it is a constant of the node's own file.
        """
        privacy = self.roster.privacy
        if self.settings.federation.weighting == "nodes":
            wanted, why = float(known.expected > 0), "what every node weighs"
        else:
            wanted, why = known.expected, f"the users it expects to draw of the {known.users:,.0f} it enrolled"
        free = self.settings.federation.weighting == "users" and privacy is not None and privacy.terms.mode != "central"
        least, most = wanted / WEIGHT_SLACK, wanted * WEIGHT_SLACK
        if free and not least * (1 - _SAME) <= weight <= most * (1 + _SAME):
            raise WireError(
                f"meta-update of {name}: weight must be from {least:.6g} to {most:.6g}, half to twice {why}, got "
                f"{weight:.6g}"
            )
        if not free and not math.isclose(weight, wanted, rel_tol=_SAME):
            raise WireError(f"meta-update of {name}: weight must be {wanted:.6g}, {why}, got {weight:.6g}")

    def _noise(self, place: int) -> float:
        """Return the deviation of the noise that the node adds by its terms; none where the server does."""
        privacy = self.roster.privacy
        if privacy is None or privacy.terms.mode == "central":
            return 0.0
        sensitivity = self.settings.federation.clip_norm * (2.0 if privacy.terms.mode == "local" else 1.0)
        return float(self.roster.noise[place]) * sensitivity


def norm_of(gradients: Parameters) -> float:
    """Return the norm over all tensors together."""
    norms = torch._foreach_norm(list(gradients.values()))
    return float(torch.stack(list(norms)).double().square().sum().sqrt())
