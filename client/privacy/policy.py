"""A node's own privacy file: what it does to whatever a run asks. A run may be stricter, never laxer.

References:
    Design of the ledger: ``client.privacy.ledger``; what the modes promise: ``metarec_shared.privacy.terms``.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from client.privacy.guard import SiteGuard
from client.privacy.ledger import Ledger
from metarec_shared.errors import PrivacyError, Refusal, SettingsError
from metarec_shared.privacy.accounting import Mechanism
from metarec_shared.privacy.terms import FEWEST_USERS_OF_A_SITE, META_UPDATE, POPULARITY, Terms, run_terms
from metarec_shared.settings import Settings, parse_table, read_toml, setting

UNNOISED = ("evaluate", "query.moments")
"""Types of messages whose answers nobody clips or noises."""

KINDS = ("query", "train", *UNNOISED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The table [privacy] of a node's own file."""

    mode: Literal["none", "site", "central", "local"] = setting(
        "site", "who clips and who adds noise; another one than a run's is refused"
    )
    users: int = setting(0, "users this node declares: a public constant, never counted from its data", low=0)
    weight: float = setting(
        0.0, "weight of its replies, a public constant, half to twice users x sampling-rate; 0: that once", low=0
    )
    clip_norm: float = setting(1.0, "highest clip norm", low=1e-6)
    noise_multiplier: float = setting(1.0, "lowest noise multiplier of meta-updates", low=1e-6)
    sampling_rate: float = setting(0.1, "highest chance of a user to take part in a round", low=1e-9, high=1)
    delta: float = setting(1e-5, "highest delta", low=1e-12, high=0.1)
    popularity_noise: float = setting(10.0, "lowest noise multiplier of item counts; 0: they never leave", low=0)
    popularity_norm: float = setting(10.0, "highest norm of one user's item counts", low=0.01)
    popularity_releases: int = setting(3, "runs that may have item counts: budget is reserved for them", low=1)
    forbidden: str = setting("item_ids", "beginnings of names of parameters that are never released, by commas")
    messages: str = setting(
        "", "types of messages that are answered, by commas; empty: query, train, in mode none evaluate, query.moments"
    )
    ledger: str = setting("ledger.sqlite", "the ledger's file, relative to this one")
    witness: str = setting("", "file of the ledger's witness, best on another disk, relative to this one")

    def plan(self) -> list[Mechanism]:
        """Return the mechanisms with the parameters that are fixed beforehand."""
        update = Mechanism(
            name=META_UPDATE,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=1.0 if self.mode == "local" else self.sampling_rate,
        )
        if not self.popularity_noise or self.mode == "local":
            return [update]
        counts = Mechanism(
            name=POPULARITY,
            noise_multiplier=self.popularity_noise,
            sampling_rate=1.0,
            releases=self.popularity_releases,
        )
        return [update, counts]

    def check_kind(self, kind: str) -> None:
        """Refuse a type of message that the node does not answer.

        Raises:
            Refusal: It is one.
        """
        answered = _listed(self.messages) or (KINDS if self.mode == "none" else KINDS[:2])
        if kind not in answered:
            raise Refusal(f"messages of type {kind} are not answered here, only {', '.join(answered)}")

    def terms(self, settings: Settings, released: Iterable[str]) -> Terms | None:
        """Return the terms of a run at this node; None where the node's own file protects nobody.

        Args:
            settings: The run's settings, from a server that nobody here trusts.
            released: Names of the parameters that the run wants released.

        Raises:
            Refusal: The run asks for less protection than the node's own file demands.
        """
        asked = settings.privacy
        if asked.mode != self.mode:
            raise Refusal(f"privacy.mode is {self.mode} here, the run's is {asked.mode}")
        if asked.mode == "none":
            return None
        for name, value, most in (
            ("federation.clip-norm", settings.federation.clip_norm, self.clip_norm),
            ("privacy.sampling-rate", asked.sampling_rate, self.sampling_rate),
            ("privacy.delta", asked.delta, self.delta),
            ("privacy.popularity-norm", asked.popularity_norm, self.popularity_norm),
        ):
            if value > most:
                raise Refusal(f"{name} is at most {most:g} here, the run's is {value:g}")
        if asked.randomness != "secure":
            raise Refusal("privacy.randomness must be secure here: simulated noise can be undone")
        if open_names := sorted(n for n in released if n.startswith(tuple(_listed(self.forbidden)))):
            raise Refusal(f"{', '.join(open_names)}: not released here")
        try:
            terms = run_terms(settings, self.users, sampling_rate=self.sampling_rate)
        except (PrivacyError, SettingsError) as error:
            raise Refusal(str(error)) from error
        assert terms is not None
        if terms.noise_multiplier < self.noise_multiplier:
            raise Refusal(
                f"privacy.noise-multiplier is at least {self.noise_multiplier:g} here, the run's is "
                f"{terms.noise_multiplier:g}"
            )
        if not self.popularity_noise:
            return dataclasses.replace(terms, popularity_noise=0.0)
        if 0 < terms.popularity_noise < self.popularity_noise:
            raise Refusal(
                f"privacy.popularity-noise is at least {self.popularity_noise:g} here, the run's is "
                f"{terms.popularity_noise:g}"
            )
        return terms


def load_policy(path: Path) -> Policy:
    """Read a node's privacy file.

    Raises:
        SettingsError: It is missing or malformed.
        PrivacyError: It describes no protection.
    """
    document = read_toml(path, "privacy")
    if set(document) != {"privacy"}:
        raise SettingsError(f"{path}: wanted one table [privacy], got {', '.join(document) or 'none'}")
    policy: Policy = parse_table(Policy(), "privacy", document["privacy"], str(path))
    for kind in _listed(policy.messages):
        if kind not in KINDS:
            raise SettingsError(f"{path}: privacy.messages: no type {kind!r}; wanted some of {', '.join(KINDS)}")
    for kind in UNNOISED:
        if policy.mode != "none" and kind in _listed(policy.messages):
            raise PrivacyError(
                f"{path}: privacy.messages: the answer to {kind} is not noised; take it out, or set mode = none"
            )
    if policy.mode == "site" and policy.users < FEWEST_USERS_OF_A_SITE:
        raise PrivacyError(
            f"{path}: privacy.mode = site needs privacy.users of at least {FEWEST_USERS_OF_A_SITE}, got "
            f"{policy.users}: noise would drown so few; take mode = central (a trusted server adds the noise) or local "
            "(each device does)"
        )
    if policy.mode in ("central", "local") and policy.users < 1:
        raise PrivacyError(f"{path}: privacy.users must be declared, got {policy.users}")
    if policy.mode != "none" and not policy.witness:
        raise PrivacyError(f"{path}: privacy.witness must name a second file for the ledger's last row")
    return policy


def site_policy(node_config: Mapping[str, bool | int | float | str]) -> tuple[Path, Policy]:
    """Return a deployed node's privacy file and what it holds.

    Raises:
        Refusal: The node's configuration names none: nobody has decided what may leave.
    """
    if "privacy-file" not in node_config:
        raise Refusal("the node's configuration names no privacy-file, so nothing leaves it; `metarec privacy init`")
    path = Path(str(node_config["privacy-file"]))
    return path, load_policy(path)


def site_guard(policy: Policy, path: Path, settings: Settings, released: Iterable[str], run: str) -> SiteGuard | None:
    """Return what guards a deployed node's users in a run; None where its own file protects nobody.

    Args:
        policy: The node's own file.
        path: Where that lies; the ledger's files are relative to it.
        settings: The run's settings.
        released: Names of the parameters that the run wants released.
        run: The run's identifier in the ledger.

    Raises:
        Refusal: The run asks for less protection than the file demands.
        LedgerError: The ledger cannot be trusted.
    """
    terms = policy.terms(settings, released)
    if terms is None:
        return None
    ledger = Ledger.open(path.parent / policy.ledger, path.parent / policy.witness)
    return SiteGuard(terms, ledger, run=run, users=policy.users, weight=policy.weight)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
