"""Trackers: where a run's figures go beside metrics.jsonl, behind one small interface."""

from server.tracking.registry import open_trackers
from server.tracking.tracker import TrackedRun, Tracker

__all__ = ["TrackedRun", "Tracker", "open_trackers"]
