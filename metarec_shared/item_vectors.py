"""Further item vectors from a file beside the text's: images, audio, embeddings of a knowledge graph.

A file is keyed by item id: ``.npz`` with arrays ``item_ids`` and ``vectors``, or ``.csv``, ``.csv.gz`` and ``.parquet``
with a column ``item_id`` and columns of numbers. A ``.npy`` matrix has no ids; its rows are the catalogue's items in
their order. Columns are standardized over the file's rows and scaled so that a row has a length of about 1, as text
vectors have; an item that the file lacks gets zeros, which is the mean. So two catalogues that one file covers have
their vectors in one space.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import DataError
from metarec_shared.files import write_atomically
from metarec_shared.readers.delimited import CSV, read_delimited
from metarec_shared.readers.parquet import read_parquet
from metarec_shared.settings import DataSettings
from metarec_shared.text import TextFeatures

ITEM_ID = "item_id"
_WANTED = "wanted .npz, .npy, .csv, .csv.gz or .parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemVectors:
    """Vectors of items, as they stand in a file.

    Attributes:
        item_ids: Whose, each once.
        values: Finite numbers, float32 [items, width].
    """

    item_ids: Sequence[str]
    values: NDArray[np.float32]

    @property
    def digest(self) -> str:
        """Hash of ids and numbers: equal where the same items have the same vectors, in whatever format."""
        contents = hashlib.blake2b("\x1f".join(self.item_ids).encode(), digest_size=16)
        contents.update(np.ascontiguousarray(self.values, dtype="<f4").tobytes())
        return contents.hexdigest()


def with_item_vectors(features: TextFeatures, catalogue: Catalogue, path: Path) -> TextFeatures:
    """Return the features of ``catalogue`` with the vectors of a file behind those of the text.

    Hash and label of the result tell the file, so that a node with another one is refused, and a warm start from it.

    Raises:
        DataError: The file cannot be used, or knows no item of the catalogue.
    """
    found = read_item_vectors(path, catalogue)
    rows = [(catalogue.index[item], row) for row, item in enumerate(found.item_ids) if item in catalogue.index]
    if not rows:
        raise DataError(
            f"{path.name}: none of its {len(found.item_ids)} item ids is among the catalogue's {len(catalogue)}"
        )
    here, there = np.array(rows, dtype=np.int64).T
    values = np.zeros((len(catalogue), found.values.shape[1]), dtype=np.float32)
    values[here] = standardized(found.values)[there]
    digest = found.digest
    return TextFeatures(
        vectors=torch.cat([features.vectors, torch.from_numpy(values)], dim=1),
        encoder=f"{features.encoder}+vectors:{digest[:12]}",
        fingerprint=hashlib.blake2b(f"{features.fingerprint}\x1f{digest}".encode(), digest_size=16).hexdigest(),
    )


def standardized(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return columns of mean 0 and standard deviation 1 / sqrt(width), one without spread 0: rows of mean square 1."""
    exact = values.astype(np.float64)
    deviation = exact.std(axis=0)
    spread = deviation > 1e-9 * np.maximum(np.abs(exact).max(axis=0), 1e-30)
    centred = np.where(spread, exact - exact.mean(axis=0), 0.0)
    scaled: NDArray[np.float32] = (centred / np.where(spread, deviation, 1.0) / np.sqrt(exact.shape[1])).astype(
        np.float32
    )
    return scaled


def read_item_vectors(path: Path, catalogue: Catalogue) -> ItemVectors:
    """Read a file of item vectors.

    Args:
        path: The file.
        catalogue: Whose items the rows of a ``.npy`` matrix are.

    Raises:
        DataError: The file is missing or damaged, lacks what its format must have, names an item twice, or holds
            something that is no finite number.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of item vectors; {_WANTED}")
    match path.suffix:
        case ".npz" | ".npy":
            found = _read_numpy(path, catalogue)
        case ".csv" | ".gz" | ".parquet":
            found = _read_table(path)
        case other:
            raise DataError(f"{path.name}: item vectors cannot be read from a file ending in {other!r}; {_WANTED}")
    return _checked(path.name, found)


def write_item_vectors(path: Path, vectors: ItemVectors) -> None:
    """Write vectors as ``.npz``, atomically."""
    ids = np.array(list(vectors.item_ids), dtype=np.str_)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, item_ids=ids, vectors=vectors.values)

    write_atomically(path, write)


def _read_numpy(path: Path, catalogue: Catalogue) -> ItemVectors:
    try:
        loaded = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            values, ids = np.asarray(loaded), list(catalogue.item_ids)
        else:
            with loaded:
                missing = {"item_ids", "vectors"} - set(loaded.files)
                if missing:
                    raise DataError(f"{path.name}: has no array {sorted(missing)[0]!r} among {sorted(loaded.files)}")
                values, ids = loaded["vectors"], loaded["item_ids"].astype(np.str_).tolist()
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path.name}: damaged, or no file of NumPy arrays without pickled objects: {error}") from error
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise DataError(f"{path.name}: vectors must be a matrix of numbers, got {values.dtype} of shape {values.shape}")
    if len(values) != len(ids):
        wanted = "the catalogue's items" if path.suffix == ".npy" else "item_ids"
        raise DataError(f"{path.name}: has {len(values)} rows, wanted one for each of {wanted}, {len(ids)}")
    return ItemVectors(item_ids=ids, values=values.astype(np.float32))


def _read_table(path: Path) -> ItemVectors:
    table = read_parquet(path) if path.suffix == ".parquet" else read_delimited(path, CSV, DataSettings())
    ids = table.select({ITEM_ID: ITEM_ID}).text(ITEM_ID).to_pylist()
    names = [name for name in table.columns if name != ITEM_ID]
    columns = [table.numbers(name).astype(np.float32) for name in names]
    return ItemVectors(
        item_ids=ids, values=np.stack(columns, axis=1) if columns else np.zeros((len(ids), 0), np.float32)
    )


def _checked(source: str, found: ItemVectors) -> ItemVectors:
    """Return vectors that can be used.

    Raises:
        DataError: They cannot.
    """
    if not found.values.size:
        raise DataError(
            f"{source}: holds no vectors, got {len(found.item_ids)} rows of {found.values.shape[1]} numbers"
        )
    wrong = np.argwhere(~np.isfinite(found.values))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(
            f"{source}: the vector of item {found.item_ids[row]!r} must hold finite numbers, but number {column + 1} "
            f"is absent, no number or not finite"
        )
    seen: set[str] = set()
    for item in found.item_ids:
        if item in seen:
            raise DataError(f"{source}: item {item!r} has two vectors")
        seen.add(item)
    return found
