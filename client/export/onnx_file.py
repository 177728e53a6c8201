"""Write the graph as one ONNX file: traced, simplified, stripped of all that is not needed to run it.

Users, history and k are dynamic. Constants are stored once: a transposed or dequantized copy of a matrix, which the
exporter's optimizer would store beside it or instead of it, is left for the runtime to make when it loads the graph.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from client.export.graph import EdgeGraph
from metarec_shared.errors import MetaRecError

if TYPE_CHECKING:
    import onnx_ir

INPUTS = ("items", "feedback", "mask", "in_time", "k")
ATTRIBUTES = "attributes"
"""The sixth input, of models that read attributes of users."""
OUTPUTS = ("positions", "scores")

_FOLDED = 64
"""Elements up to which a constant may be folded into others; sizes and axes are, matrices are not."""


def write_onnx(graph: EdgeGraph, path: Path, *, attributes: bool) -> None:
    """Write the graph to ``path``.

    Args:
        graph: The graph.
        path: Where to.
        attributes: Whether it reads attributes of users.

    Raises:
        MetaRecError: What exports is not installed.
    """
    try:
        import onnx_ir
        import onnxscript.optimizer
    except ImportError as error:
        raise MetaRecError(f"an export to ONNX needs {error.name}: pip install 'metarec[export]'") from error

    def foldable(node: onnx_ir.Node) -> bool | None:
        constants = [value.const_value for value in node.inputs if value is not None and value.is_initializer()]
        return False if any(one is not None and one.size > _FOLDED for one in constants) else None

    with _quietly(), torch.no_grad():  # with gradients, what differentiates an inner loop would be traced, too
        program = torch.onnx.export(
            graph.eval(),
            _example(attributes),
            input_names=[*INPUTS, *([ATTRIBUTES] if attributes else [])],
            output_names=list(OUTPUTS),
            dynamic_shapes=_dynamic(attributes),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        onnxscript.optimizer.optimize_ir(program.model, should_fold=foldable)
    _strip(program.model)
    onnx_ir.save(program.model, path)


def _strip(model: "onnx_ir.Model") -> None:
    """Drop where each operator comes from, and call sizes by what they are sizes of."""
    import onnx_ir

    graph = model.graph
    model.producer_name, model.doc_string = "metarec", None
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
    given = [*zip(graph.inputs[0].shape or (), ("users", "history"), strict=True)]
    given += [*zip(graph.outputs[0].shape or (), ("users", "k"), strict=True)]
    if len(graph.inputs) > len(INPUTS):
        given += [*zip(graph.inputs[-1].shape or (), ("users", "columns"), strict=True)]
    names = {str(size): name for size, name in given}
    made = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *made):
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: "int | onnx_ir.SymbolicDim", names: Mapping[str, str]) -> int | str | None:
    """Return a size, which may be a formula or unknown, in other names."""
    if isinstance(size, int):
        return size
    return None if size.value is None else re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size.value)


def _example(attributes: bool) -> tuple[object, ...]:
    """Return inputs of no size that means something, for the exporter to trace."""
    users, history = 3, 4
    items = torch.zeros(users, history, dtype=torch.int64)
    mask = torch.ones(users, history, dtype=torch.bool)
    columns = torch.ones(users, 2, dtype=torch.int64) if attributes else None
    return items, items.clone(), mask, torch.ones(users, dtype=torch.bool), 5, columns


def _dynamic(attributes: bool) -> dict[str, object]:
    """Return which sizes may be any; k is a size itself."""
    users, history, columns = (torch.export.Dim(name, min=1) for name in ("users", "history", "columns"))
    histories = {0: users, 1: history}
    return {
        "items": histories,
        "feedback": histories,
        "mask": histories,
        "in_time": {0: users},
        "k": torch.export.Dim.DYNAMIC,
        "attributes": {0: users, 1: columns} if attributes else None,
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter from telling of its own affairs."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(level)
