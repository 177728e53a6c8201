"""The trials of a study, by what became of them."""

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

MOST_KILLS = 3
"""How often a trial's process may be killed before the trial counts as failed."""

ERROR, FOLDER, KILLS, STOPPED = "error", "folder", "kills", "stopped"
"""What a study notes of a trial: why it failed, the name it began with, kills before, whether it was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """The trials of a study, by what became of them; parts of one that was interrupted are no trials.

    Attributes:
        finished: Have a value.
        pruned: Were ended early.
        failed: Ended with an error.
        waiting: Were interrupted, or are still to be run.
    """

    finished: tuple[FrozenTrial, ...]
    pruned: tuple[FrozenTrial, ...]
    failed: tuple[FrozenTrial, ...]
    waiting: tuple[FrozenTrial, ...]

    @classmethod
    def of(cls, study: optuna.Study) -> "Trials":
        """Sort the trials of a study."""
        trials = study.get_trials(deepcopy=False)

        def those(state: TrialState) -> tuple[FrozenTrial, ...]:
            return tuple(trial for trial in trials if trial.state == state)

        return cls(
            finished=those(TrialState.COMPLETE),
            pruned=those(TrialState.PRUNED),
            failed=tuple(trial for trial in those(TrialState.FAIL) if not _interrupted(trial)),
            waiting=those(TrialState.WAITING) + those(TrialState.RUNNING),
        )

    @property
    def done(self) -> int:
        """How many have come to an end."""
        return len(self.finished) + len(self.pruned) + len(self.failed)

    @property
    def best(self) -> FrozenTrial | None:
        """The first one with the highest value."""
        return max(self.finished, key=lambda trial: (value_of(trial), -trial.number), default=None)

    def __str__(self) -> str:
        parts = [f"{len(self.finished)} finished", f"{len(self.pruned)} pruned", f"{len(self.failed)} failed"]
        return ", ".join(parts)


def value_of(trial: FrozenTrial) -> float:
    """Return the value of a finished trial."""
    assert trial.value is not None
    return trial.value


def trial_name(trial: FrozenTrial | optuna.Trial) -> str:
    """Return what a trial is called: the number it began with."""
    return str(trial.user_attrs.get(FOLDER, f"{trial.number:04d}"))


def error_of(trial: FrozenTrial) -> str:
    """Return why a trial failed; empty where it did not."""
    if trial.state != TrialState.FAIL:
        return ""
    return str(trial.user_attrs.get(ERROR, f"its process was killed {MOST_KILLS} times"))


def _interrupted(trial: FrozenTrial) -> bool:
    """Say whether a trial that Optuna has as failed was stopped or killed, and is gone on with under a new number."""
    if trial.state != TrialState.FAIL or ERROR in trial.user_attrs:
        return False
    return STOPPED in trial.user_attrs or trial.user_attrs.get(KILLS, 0) + 1 < MOST_KILLS
