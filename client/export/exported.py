"""An exported model on disk: one graph, and beside it the catalogue that its positions mean; nothing about any user.

    model.onnx       adapts and recommends
    catalogue.json   ids and titles of items by position, and how a history is read

Nothing here needs PyTorch.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import RatingScale
from metarec_shared.errors import CheckpointError
from metarec_shared.files import write_text

FORMAT = 1
GRAPH_FILE = "model.onnx"
CATALOGUE_FILE = "catalogue.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What belongs to a graph.

    Attributes:
        catalogue: Items by position; their texts are not known here, titles stand for them.
        rating_scale: Scale of the ratings that histories hold; None: the model was trained without ratings.
        attributes: Columns of attributes that the model reads, none: any; None: it reads no attributes.
        top_k: Items recommended where nobody says how many.
    """

    catalogue: Catalogue
    rating_scale: RatingScale | None
    attributes: tuple[str, ...] | None
    top_k: int


def write_catalogue(exported: Exported, folder: Path) -> None:
    """Write the catalogue file beside the graph in ``folder``, with the hash of that graph."""
    scale = exported.rating_scale
    value = {
        "format": FORMAT,
        "graph": _content_hash(folder / GRAPH_FILE),
        "rating_scale": None if scale is None else [scale.low, scale.high],
        "attributes": exported.attributes,
        "top_k": exported.top_k,
        "item_ids": exported.catalogue.item_ids,
        "titles": exported.catalogue.titles,
    }
    write_text(folder / CATALOGUE_FILE, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def is_exported(path: Path) -> bool:
    """Say whether a path is meant for an exported model: an .onnx file, or a folder that holds one."""
    return path.suffix == ".onnx" or (path / GRAPH_FILE).is_file()


def load_exported(path: Path) -> tuple[Path, Exported]:
    """Return the graph's file and what belongs to it.

    Args:
        path: The exported folder, or the graph in it.

    Raises:
        CheckpointError: A file is missing, damaged, of another format, or the two do not belong together.
    """
    graph = path / GRAPH_FILE if path.is_dir() else path
    if not graph.is_file():
        raise CheckpointError(f"{graph}: there is no such file; wanted what metarec export --format onnx wrote")
    beside = graph.parent / CATALOGUE_FILE
    try:
        value = json.loads(beside.read_text(encoding="utf-8"))
        found = value["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{beside}: cannot read the catalogue of the exported model: {error}") from error
    if found != FORMAT:
        raise CheckpointError(f"{beside}: format {found!r} is not the format {FORMAT} this version reads")
    try:
        expected, exported = value["graph"], _parse(value)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{beside}: cannot read the catalogue of the exported model: {error!r}") from error
    if _content_hash(graph) != expected:
        raise CheckpointError(f"{graph} is not the graph that {beside} was written with: export the model again")
    return graph, exported


def _parse(value: dict[str, Any]) -> Exported:
    item_ids, titles, scale = tuple(value["item_ids"]), tuple(value["titles"]), value["rating_scale"]
    if len(item_ids) != len(titles):
        raise ValueError(f"{len(item_ids)} ids and {len(titles)} titles")
    return Exported(
        catalogue=Catalogue(item_ids=item_ids, titles=titles, texts=titles),
        rating_scale=None if scale is None else RatingScale(low=scale[0], high=scale[1]),
        attributes=None if value["attributes"] is None else tuple(value["attributes"]),
        top_k=int(value["top_k"]),
    )


def _content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
