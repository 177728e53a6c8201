"""What a run may ask of a site's machine at most: a server that nobody here trusts chooses the settings."""

from metarec_shared.errors import Refusal
from metarec_shared.settings import Settings

MOST: dict[str, int] = {
    "text.max-tokens": 512,
    "text.batch": 1024,
    "text.adapt-steps": 5_000,
    "text.builtin-width": 1_024,
    "text.builtin-layers": 12,
    "text.builtin-vocabulary": 100_000,
    "text.builtin-steps": 20_000,
    "model.width": 1_024,
    "model.layers": 24,
    "model.intermediate": 8_192,
    "model.attribute-buckets": 1_000_000,
    "adaptation.steps": 100,
    "adaptation.pseudo-labels": 1_000,
    "adaptation.lora-rank": 256,
    "tasks.support": 1_000,
    "tasks.query": 1_000,
    "federation.lora-rank": 256,
    "rating.width": 1_024,
    "rating.support": 10_000,
    "rating.query": 10_000,
}
"""Settings that cost time or memory before anything is answered, and more than any recipe of ours needs."""


def check_limits(settings: Settings) -> None:
    """Refuse a run whose settings would take a site's machine for itself.

    Raises:
        Refusal: A setting is above what any run needs.
    """
    asked = settings.flat()
    for name, most in MOST.items():
        value = asked[name]
        if isinstance(value, int | float) and value > most:
            raise Refusal(f"{name} is at most {most:,} here, the run's is {value:,}")
