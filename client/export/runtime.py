"""Adapt and recommend with an exported model, through ONNX Runtime: no PyTorch and no model code in the process."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.export.exported import load_exported
from client.history import Profile
from metarec_shared.errors import CheckpointError, DataError, MetaRecError


class EdgeRecommender:
    """An exported model, loaded; what it does for one user depends on no other.

    Args:
        path: The exported folder, or the .onnx file in it.
        threads: That compute one call.

    Attributes:
        exported: Its catalogue, and how it reads a history.

    Raises:
        CheckpointError: There is no exported model, or its files are damaged or do not belong together.
        MetaRecError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        graph, self.exported = load_exported(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise MetaRecError(f"{graph}: running it needs onnxruntime: pip install 'metarec[export]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common root of their own
            raise CheckpointError(f"{graph}: ONNX Runtime cannot load it: {error}") from error
        self._reads_attributes = any(one.name == "attributes" for one in self._session.get_inputs())

    def recommend(
        self, history: Profile, k: int | None = None, exclude: Collection[int] = ()
    ) -> list[tuple[int, float]]:
        """Return positions and scores of the best items, best first, none of them from the history.

        Args:
            history: The user's.
            k: Items to recommend; None: as many as were chosen at export. Fewer come where the catalogue has no more.
            exclude: Positions of further items that are not recommended.

        Raises:
            DataError: A position is not in the catalogue, or k is below 1.
        """
        return self.recommend_all([history], k, exclude)[0]

    def recommend_all(
        self, histories: Sequence[Profile], k: int | None = None, exclude: Collection[int] = ()
    ) -> list[list[tuple[int, float]]]:
        """Do the same for several users in one call.

        Raises:
            DataError: As ``recommend``.
        """
        wanted, items, hidden = self.exported.top_k if k is None else k, len(self.exported.catalogue), set(exclude)
        if wanted < 1:
            raise DataError(f"items to recommend: got {wanted}, wanted at least 1")
        for position in (*hidden, *(item.position for history in histories for item in history.items)):
            if not 0 <= position < items:
                raise DataError(f"position {position} is not in the catalogue of {items} items")
        if not histories:
            return []
        inputs = self._inputs(histories)
        inputs["k"] = np.array(min(wanted + len(hidden), items), dtype=np.int64)
        positions, scores = self._session.run(None, inputs)
        answers = []
        for history, best, scored in zip(histories, positions.tolist(), scores.tolist(), strict=True):
            beyond = hidden | {item.position for item in history.items}
            ranked = [(at, score) for at, score in zip(best, scored, strict=True) if at not in beyond]
            answers.append(ranked[:wanted])
        return answers

    def _inputs(self, histories: Sequence[Profile]) -> dict[str, NDArray[np.generic]]:
        """Return histories as the graph reads them: padded, one column at least."""
        items = _padded([[item.position for item in history.items] for history in histories])
        lengths = np.array([len(history.items) for history in histories])
        inputs: dict[str, NDArray[np.generic]] = {
            "items": items,
            "feedback": _padded([[item.feedback for item in history.items] for history in histories]),
            "mask": np.arange(items.shape[1]) < lengths[:, None],
            "in_time": np.array([history.in_time for history in histories], dtype=np.bool_),
        }
        if self._reads_attributes:
            inputs["attributes"] = _padded([history.attributes for history in histories])
        return inputs


def _padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    padded = np.zeros((len(rows), max(1, *(len(row) for row in rows))), dtype=np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
