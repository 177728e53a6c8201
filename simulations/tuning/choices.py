"""The choices of ``metarec tune``; imports nothing heavy."""

from enum import StrEnum

DEFAULT_TRIALS = 30


class Sampler(StrEnum):
    """How the next trial's settings are chosen."""

    TPE = "tpe"
    RANDOM = "random"
    GRID = "grid"


class Pruner(StrEnum):
    """How it is decided that a trial is not worth going on with."""

    MEDIAN = "median"
    NONE = "none"
    HYPERBAND = "hyperband"
