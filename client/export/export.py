"""What ``metarec export`` does: read a run's model, build the graph, write the folder as a whole or not at all."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from client.export.exported import CATALOGUE_FILE, GRAPH_FILE, Exported, write_catalogue
from client.export.graph import EdgeGraph, check_exportable
from client.export.onnx_file import write_onnx
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import DataError
from metarec_shared.files import write_public_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """How a model is exported.

    Attributes:
        int8: Whether weights and matrices are quantized to 8 bits.
        neighbours: Weights of task regressions kept of each item, the largest; None: all.
        top_k: Items recommended where nobody says how many.
        replace: Whether an earlier export in the folder may be replaced.
    """

    int8: bool = False
    neighbours: int | None = None
    top_k: int = 10
    replace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run's model, ready to be written.

    Attributes:
        graph: What is traced.
        exported: What goes into the catalogue file.
        reads_ratings: Whether the model looks at ratings of the history.
    """

    graph: EdgeGraph
    exported: Exported
    reads_ratings: bool

    def write(self, folder: Path) -> None:
        """Write graph and catalogue into a folder."""
        write_onnx(self.graph, folder / GRAPH_FILE, attributes=self.exported.attributes is not None)
        write_catalogue(self.exported, folder)


def export_onnx(run: Path, out: Path, choices: Choices) -> dict[str, int]:
    """Export the model of a run; return the size of each file in bytes.

    Args:
        run: Folder of the run.
        out: Folder that is made.
        choices: How.

    Raises:
        CheckpointError: There is no usable model, or one that a graph cannot hold.
        DataError: The folder exists, and may not be replaced or is no earlier export.
        MetaRecError: What exports is not installed.
    """
    check_free(out, (GRAPH_FILE, CATALOGUE_FILE), replace=choices.replace)
    prepared = prepare(run, choices)
    write_public_folder(out, prepared.write)
    return {name: (out / name).stat().st_size for name in (GRAPH_FILE, CATALOGUE_FILE)}


def prepare(run: Path, choices: Choices) -> Prepared:
    """Return the model of a run, ready to be written.

    Raises:
        CheckpointError: There is no usable model, or one that a graph cannot hold.
    """
    checkpoint = load_checkpoint(run)
    settings = checkpoint.settings
    check_exportable(settings)
    attributes = settings.data.attribute_names if settings.model.attribute_buckets else None
    return Prepared(
        graph=EdgeGraph(checkpoint.full_model(), neighbours=choices.neighbours, int8=choices.int8),
        exported=Exported(
            catalogue=checkpoint.items.catalogue,
            rating_scale=checkpoint.rating_scale,
            attributes=None if attributes is None else tuple(attributes),
            top_k=choices.top_k,
        ),
        reads_ratings=settings.model.feedback,
    )


def check_free(out: Path, files: Collection[str], *, replace: bool) -> None:
    """Refuse a folder that holds what nobody said to replace, or what no export wrote.

    Args:
        out: The folder.
        files: Names that an export writes.
        replace: Whether an earlier export may be replaced.

    Raises:
        DataError: It does.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; wanted a folder that does not exist yet")
    found = {path.name for path in out.iterdir()}
    strange = sorted(found - set(files))
    if strange:
        raise DataError(
            f"{out}: holds {strange[0]}, which this export does not write; wanted a folder that does not exist yet"
        )
    if found and not replace:
        raise DataError(f"{out}: holds an exported model already; --force replaces it")
