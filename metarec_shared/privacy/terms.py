"""The terms of a run's privacy: who clips, who adds noise, how much, and whom that protects from whom.

Everything here is public: none of it is counted from anybody's data.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from metarec_shared.errors import PrivacyError
from metarec_shared.privacy.accounting import Mechanism, noise_multiplier_for
from metarec_shared.settings import Mode, Settings

META_UPDATE = "meta-update"
POPULARITY = "popularity"

FEWEST_USERS_OF_A_SITE = 100

LEAST_CLIP_NORM = 1e-6
"""Squares of norms far below it are lost in single precision."""

UNIT = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a mode promises, in words."""

    neighbours: str
    trust: str
    sampling: str
    not_protected: str


_ALWAYS_OPEN = "that a node takes part, when it answers, the public catalogue, the number of nodes"

STATEMENTS: dict[Mode, Statement] = {
    "none": Statement(
        neighbours="none",
        trust="the server and whoever sees what it receives",
        sampling="none",
        not_protected="raw item counts, moments of tasks, gradients and, where ratings are predicted, sums of ratings "
        "leave the nodes; they tell what users touched and how they rate",
    ),
    "site": Statement(
        neighbours="one user's whole history added to or removed from the site",
        trust="only the site itself; neither the server nor other sites",
        sampling="Poisson inside the site, kept secret by it",
        not_protected=f"a person at two sites composes; {_ALWAYS_OPEN}",
    ),
    "central": Statement(
        neighbours="one user's whole history added to or removed from the federation",
        trust="the server, which sees clipped updates of single devices and adds the noise; not who gets the model",
        sampling="a coin of each device's own; it protects only against those who cannot see who replied",
        not_protected=f"anything from the server itself; {_ALWAYS_OPEN}",
    ),
    "local": Statement(
        neighbours="one user's whole history replaced by any other",
        trust="nobody; each device adds its own noise",
        sampling="none that counts: the server knows whom it asks",
        not_protected=_ALWAYS_OPEN,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a node does to its users' contributions before anything leaves it.

    Attributes:
        mode: Who clips and who adds noise.
        clip_norm: Largest norm of one user's meta-gradient over all released parameters together.
        noise_multiplier: Noise of a meta-update, its standard deviation over the sensitivity.
        sampling_rate: Chance of each user to take part in a round.
        delta: Chance that epsilon does not hold.
        popularity_noise: Noise of the item counts over their sensitivity; 0: none are released.
        popularity_norm: Largest norm of one user's item counts.
        randomness: secure, or simulated: undone by whoever has the seed.
    """

    mode: Mode
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    delta: float
    popularity_noise: float
    popularity_norm: float
    randomness: str

    @property
    def sensitivity(self) -> float:
        """Change of a clipped sum between neighbours: replacing a user moves it twice as far as removing one."""
        return 2.0 * self.clip_norm if self.mode == "local" else self.clip_norm

    @property
    def releases_popularity(self) -> bool:
        """Whether item counts leave the nodes at all."""
        return self.mode != "local" and self.popularity_noise > 0

    def meta_update(self, releases: int = 1) -> Mechanism:
        """Return the mechanism that so many meta-updates are."""
        return Mechanism(
            name=META_UPDATE,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            releases=releases,
        )

    def popularity(self) -> Mechanism:
        """Return the mechanism that the item counts are."""
        return Mechanism(name=POPULARITY, noise_multiplier=self.popularity_noise, sampling_rate=1.0, releases=1)

    def describe(self) -> str:
        """Say in one paragraph what is promised to whom."""
        words = STATEMENTS[self.mode]
        noise = "simulated noise, " if self.randomness == "simulated" else ""
        return (
            f"privacy: {self.mode} ({noise}unit: one user's whole history; neighbours: {words.neighbours}; trusted: "
            f"{words.trust}; sampling: {words.sampling}; not protected: {words.not_protected})"
        )


def run_terms(settings: Settings, users: int, *, sampling_rate: float = 0.0) -> Terms | None:
    """Return the terms that a run's settings ask for; None where privacy is off.

    Args:
        settings: The run's settings.
        users: Declared users of the federation (a public constant), of which the cohort is a share.
        sampling_rate: What holds where the settings give none, instead of cohort / users.

    Raises:
        PrivacyError: The settings do not determine the noise, or cannot be private.
    """
    privacy, limits = settings.privacy, settings.federation
    if privacy.mode == "none":
        return None
    if limits.clip_norm < LEAST_CLIP_NORM:
        raise PrivacyError(
            f"privacy.mode = {privacy.mode} needs federation.clip-norm of at least {LEAST_CLIP_NORM:g}, got "
            f"{limits.clip_norm:g}"
        )
    if not (privacy.epsilon or privacy.noise_multiplier):
        raise PrivacyError("give privacy.epsilon (inf: clip alone) or privacy.noise-multiplier")
    if privacy.mode == "central" and (settings.traffic.update_bits != 32 or limits.weighting != "users"):
        raise PrivacyError(
            "privacy.mode = central needs traffic.update-bits = 32 and federation.weighting = users: rounding and "
            "weights would change what one user can add"
        )
    if privacy.mode == "local":
        rate = 1.0
    else:
        rate = privacy.sampling_rate or sampling_rate or min(1.0, limits.cohort / max(users, 1))
    popularity, noise = _noise(settings, rate, participations(privacy.mode, limits.rounds, limits.cohort, users))
    return Terms(
        mode=privacy.mode,
        clip_norm=limits.clip_norm,
        noise_multiplier=noise,
        sampling_rate=rate,
        delta=privacy.delta,
        popularity_noise=popularity,
        popularity_norm=privacy.popularity_norm,
        randomness=privacy.randomness,
    )


def participations(mode: Mode, rounds: int, cohort: int, users: int) -> int:
    """Return how many meta-updates of one node so many rounds take: devices that noise for themselves take turns."""
    return math.ceil(rounds * min(cohort, users) / users) if mode == "local" and users else rounds


def popularity_noise_of(settings: Settings) -> float:
    """Return the noise multiplier of item counts that a run asks for, the same at every node; 0: none are released.

    Raises:
        PrivacyError: No noise keeps the share of the budget.
    """
    privacy = settings.privacy
    if privacy.mode == "local":
        return 0.0
    if privacy.popularity_noise or not 0.0 < privacy.epsilon < math.inf or not privacy.popularity_share:
        return privacy.popularity_noise
    return _solved(privacy.epsilon * privacy.popularity_share, privacy.delta / 10, 1.0, 1)


def _noise(settings: Settings, rate: float, releases: int) -> tuple[float, float]:
    """Return the noise multipliers of item counts and of meta-updates."""
    privacy = settings.privacy
    popularity = popularity_noise_of(settings)
    if privacy.noise_multiplier or not 0.0 < privacy.epsilon < math.inf:
        return popularity, privacy.noise_multiplier
    fixed = [Mechanism(name=POPULARITY, noise_multiplier=popularity, sampling_rate=1.0)] if popularity else []
    return popularity, _solved(privacy.epsilon, privacy.delta, rate, releases, tuple(fixed))


@lru_cache(maxsize=32)
def _solved(epsilon: float, delta: float, rate: float, releases: int, fixed: tuple[Mechanism, ...] = ()) -> float:
    return noise_multiplier_for(epsilon=epsilon, delta=delta, sampling_rate=rate, releases=releases, fixed=fixed)


def strictest(terms: Sequence[Terms]) -> Terms:
    """Return the terms that satisfy all of ``terms``: most noise, smallest clip norm, sampling rate and delta.

    Raises:
        PrivacyError: They are of different modes.
    """
    modes = sorted({one.mode for one in terms})
    if len(modes) != 1:
        raise PrivacyError(f"nodes of different modes of privacy, {' and '.join(modes)}, cannot be added up")
    return dataclasses.replace(
        terms[0],
        clip_norm=min(one.clip_norm for one in terms),
        noise_multiplier=max(one.noise_multiplier for one in terms),
        sampling_rate=min(one.sampling_rate for one in terms),
        delta=min(one.delta for one in terms),
        popularity_noise=max(one.popularity_noise for one in terms),
        popularity_norm=min(one.popularity_norm for one in terms),
        randomness="simulated" if any(one.randomness == "simulated" for one in terms) else "secure",
    )
