"""Write the graph as one ONNX file: traced, simplified, stripped of all that is not needed to run it.

Users, history and k are dynamic. Constants are stored once: a transposed or dequantized copy of a matrix, which the
exporter's optimizer would store beside it or instead of it, is left for the runtime to make when it loads the graph.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from client.export.graph import EdgeGraph
from metarec_shared.errors import MetaRecError

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
    model = program.model
    model.producer_name, model.doc_string = "metarec", None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    onnx_ir.save(model, path)


def _example(attributes: bool) -> tuple[object, ...]:
    """Return inputs of no size that means something, for the exporter to trace."""
    users, history = 3, 4
    items = torch.zeros(users, history, dtype=torch.int64)
    mask = torch.ones(users, history, dtype=torch.bool)
    columns = torch.ones(users, 2, dtype=torch.int64) if attributes else None
    return items, items.clone(), mask, torch.ones(users, dtype=torch.bool), 5, columns


def _dynamic(attributes: bool) -> dict[str, object]:
    any_size = torch.export.Dim.DYNAMIC
    both = {0: any_size, 1: any_size}
    return {
        "items": both,
        "feedback": both,
        "mask": both,
        "in_time": {0: any_size},
        "k": any_size,
        "attributes": both if attributes else None,
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
