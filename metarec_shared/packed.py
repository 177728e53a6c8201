"""A packed data set: a folder that memory maps open at once, however many interactions it holds.

``user_ids.npy``, ``offsets.npy``, ``items.npy`` and ``ratings.npy`` are the columns of :class:`Interactions`;
``packed.json`` holds the public catalogue and what else a data set is made of. Only its owner may read the folder. It
must not change while it is in use: a memory map of a file that is cut short ends the process.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarec_shared.catalogue import Catalogue
from metarec_shared.dataset import Dataset, Problem, RatingScale
from metarec_shared.errors import DataError
from metarec_shared.files import write_json, write_private_folder
from metarec_shared.interactions import Interactions

FORMAT = 1
DESCRIPTION_FILE = "packed.json"
COLUMNS: Mapping[str, str] = {"user_ids": "U", "offsets": "<i8", "items": "<i4", "ratings": "<f4"}
"""Type of each column of the interactions; the file of one is ``NAME.npy``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Description:
    """What ``packed.json`` holds."""

    layout: str
    users: int
    interactions: int
    has_time: bool
    rating_scale: RatingScale | None
    problems: tuple[Problem, ...]
    catalogue: Catalogue


def write_packed(dataset: Dataset, folder: Path) -> None:
    """Pack a data set into ``folder``, which appears complete or not at all.

    Raises:
        DataError: The folder exists already, or cannot be written.
    """
    check_absent(folder)

    def write(temporary: Path) -> None:
        for name, kind in COLUMNS.items():
            column = np.asarray(getattr(dataset.interactions, name), dtype=kind)
            np.save(temporary / f"{name}.npy", column, allow_pickle=False)
        write_json(temporary / DESCRIPTION_FILE, _describe(dataset))

    try:
        write_private_folder(folder, write)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error


def check_absent(folder: Path) -> None:
    """Raise a DataError if there is something at ``folder``, where a data set is to be packed."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: exists already; remove it, or choose another folder")


def read_packed(folder: Path) -> Dataset:
    """Open a packed data set; its interactions are read-only memory maps.

    Returns:
        The data set that was packed, under the name of the folder.

    Raises:
        DataError: A file is missing, damaged, cut short, of another format, or the files do not belong together.
    """
    description = _read_description(folder / DESCRIPTION_FILE)
    users, interactions, items = description.users, description.interactions, len(description.catalogue)
    lengths = {"user_ids": users, "offsets": users + 1, "items": interactions, "ratings": interactions}
    columns = {name: _open(folder / f"{name}.npy", COLUMNS[name], length) for name, length in lengths.items()}
    offsets, positions = columns["offsets"], columns["items"]
    if offsets[0] != 0 or offsets[-1] != interactions or (np.diff(offsets) < 0).any():
        raise DataError(f"offsets.npy: must rise from 0 to the {interactions:,} interactions, got something else")
    if positions.min(initial=0) < 0 or positions.max(initial=0) >= items:
        raise DataError(f"items.npy: holds positions outside the catalogue of {items:,} items in {DESCRIPTION_FILE}")
    return Dataset(
        name=folder.resolve().name,
        layout=description.layout,
        catalogue=description.catalogue,
        interactions=Interactions(**columns, has_time=description.has_time),
        rating_scale=description.rating_scale,
        problems=description.problems,
    )


def read_packed_catalogue(folder: Path) -> Catalogue:
    """Read only the catalogue of a packed data set, whose interactions need not be there.

    Raises:
        DataError: ``packed.json`` is missing, damaged, or of another format.
    """
    return _read_description(folder / DESCRIPTION_FILE).catalogue


def _describe(dataset: Dataset) -> dict[str, Any]:
    scale, catalogue = dataset.rating_scale, dataset.catalogue
    return {
        "format": FORMAT,
        "layout": dataset.layout,
        "users": len(dataset.interactions),
        "items": len(catalogue),
        "interactions": len(dataset.interactions.items),
        "has_time": dataset.interactions.has_time,
        "rating_scale": None if scale is None else [scale.low, scale.high],
        "problems": [asdict(problem) for problem in dataset.problems],
        "catalogue": {"item_ids": catalogue.item_ids, "titles": catalogue.titles, "texts": catalogue.texts},
    }


def _read_description(path: Path) -> _Description:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["format"]
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: missing from {path.parent}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path.name}: damaged, cut short, or not written by metarec data pack") from error
    if found != FORMAT:
        raise DataError(f"{path.name}: format {found!r} is not the format {FORMAT} that this version reads")
    try:
        return _parse(values)
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path.name}: is not what metarec data pack writes: {error}") from error


def _parse(values: dict[str, Any]) -> _Description:
    scale, columns = values["rating_scale"], values["catalogue"]
    catalogue = Catalogue(**{name: _texts(columns, name) for name in ("item_ids", "titles", "texts")})
    if not len(catalogue.item_ids) == len(catalogue.titles) == len(catalogue.texts) == _count(values, "items"):
        raise ValueError(f"the catalogue does not hold the {values['items']} items it should")
    if len(set(catalogue.item_ids)) < len(catalogue):
        raise ValueError("item ids must be unique")
    return _Description(
        layout=str(values["layout"]),
        users=_count(values, "users"),
        interactions=_count(values, "interactions"),
        has_time=bool(values["has_time"]),
        rating_scale=None if scale is None else RatingScale(low=float(scale[0]), high=float(scale[1])),
        problems=tuple(
            Problem(
                kind=str(found["kind"]),
                count=int(found["count"]),
                handling=str(found["handling"]),
                places=_texts(found, "places") if "places" in found else (),  # not in the first packed folders
            )
            for found in values["problems"]
        ),
        catalogue=catalogue,
    )


def _count(values: dict[str, Any], name: str) -> int:
    if type(values[name]) is not int or values[name] < 0:
        raise ValueError(f"{name} must be a count, got {values[name]!r}")
    return int(values[name])


def _texts(columns: dict[str, Any], name: str) -> tuple[str, ...]:
    if not isinstance(columns[name], list) or not all(isinstance(text, str) for text in columns[name]):
        raise TypeError(f"{name} must be a list of texts")
    return tuple(columns[name])


def _open(path: Path, kind: str, length: int) -> NDArray[Any]:
    """Map a column into memory; only its header is read."""
    try:
        column = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: missing from {path.parent}") from error
    except OSError:
        raise
    except Exception as error:  # a broken header makes NumPy raise anything from ValueError to TokenError
        raise DataError(f"{path.name}: damaged, cut short, or no NumPy file") from error
    if column.dtype.kind != "U" if kind == "U" else column.dtype != kind:
        raise DataError(f"{path.name}: must hold {'text' if kind == 'U' else np.dtype(kind)}, got {column.dtype}")
    if column.shape != (length,):
        raise DataError(f"{path.name}: {DESCRIPTION_FILE} wants {length:,} values, got shape {column.shape}")
    return column
