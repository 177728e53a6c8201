"""Embed the catalogue's knowledge graph: from an edge list to item vectors, once, for all nodes.

    eigenvectors of L = I - D^-1/2 A D^-1/2 with the smallest eigenvalues but the first, each divided by sqrt(degree)

An edge is a row with the columns ``head`` and ``tail``, and if need be ``weight``; others, such as a relation, are
passed over. Items go by their item id, other entities by any other name. The graph is taken as undirected. The result
is written to a file for ``data.item-vectors``: eigenvectors depend on the machine in their last digits, and on more
where eigenvalues coincide, so nodes are given the vectors, not the graph.

References:
    Belkin and Niyogi (2003), Laplacian eigenmaps for dimensionality reduction and data representation, section 2. The
    eigenvectors are ARPACK's, by SciPy.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import laplacian
from scipy.sparse.linalg import ArpackError, eigsh

from metarec_shared.catalogue import Catalogue
from metarec_shared.errors import DataError
from metarec_shared.item_vectors import ItemVectors
from metarec_shared.randomness import generator
from metarec_shared.readers.delimited import CSV, Dialect, read_delimited
from metarec_shared.readers.parquet import read_parquet
from metarec_shared.readers.table import Table
from metarec_shared.settings import DataSettings

_TSV = Dialect(delimiter="\t")


def embed_graph(path: Path, catalogue: Catalogue, width: int) -> ItemVectors:
    """Return the vectors of the catalogue's items that the graph in ``path`` knows.

    Args:
        path: Edge list, ``.csv``, ``.tsv`` or ``.parquet``.
        catalogue: The items.
        width: Numbers a vector.

    Raises:
        DataError: The file cannot be used, knows no item, or has too few entities for the width.
    """
    names, heads, tails, weights = _read_edges(path)
    items = [(name, row) for row, name in enumerate(names) if name in catalogue.index]
    if not items:
        raise DataError(f"{path.name}: none of its {len(names)} entities is an item id of the catalogue")
    if width + 2 > len(names):
        raise DataError(f"{path.name}: has {len(names)} entities, too few for vectors of {width} numbers")
    vectors = laplacian_eigenmaps(heads, tails, weights, len(names), width)
    ids, rows = zip(*items, strict=True)
    return ItemVectors(item_ids=ids, values=vectors[list(rows)].astype(np.float32))


def laplacian_eigenmaps(
    heads: NDArray[np.int64], tails: NDArray[np.int64], weights: NDArray[np.float64], nodes: int, width: int
) -> NDArray[np.float64]:
    """Return the spectral embedding of an undirected graph, float64 [nodes, width].

    Args:
        heads: One end of each edge, [edges].
        tails: The other, [edges].
        weights: Positive, [edges]; those of edges between the same nodes add up.
        nodes: Their number.
        width: Eigenvectors, at most ``nodes - 2``.

    Raises:
        DataError: The eigenvectors are not found.
    """
    both = (np.concatenate([heads, tails]), np.concatenate([tails, heads]))
    adjacency = coo_array((np.tile(weights, 2), both), shape=(nodes, nodes)).tocsr()
    normalized, root_degree = laplacian(adjacency, normed=True, return_diag=True)
    start = generator(0, "graph vectors").uniform(-1, 1, nodes)
    try:  # 2 - L has the eigenvalues turned round: its largest converge fastest
        flipped = coo_array((np.full(nodes, 2.0), (np.arange(nodes),) * 2)).tocsr() - normalized
        values, vectors = eigsh(flipped, k=width + 1, which="LA", v0=start)
    except ArpackError as error:
        raise DataError(f"the graph's eigenvectors were not found: {error}") from error
    vectors = vectors[:, np.argsort(-values)][:, 1:] / root_degree[:, None]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(width)])
    found: NDArray[np.float64] = vectors * signs
    return found


def _read_edges(path: Path) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the names of the entities, and head, tail and weight of each edge."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of edges; wanted .csv, .tsv or .parquet")
    table = _read_table(path).select({"head": "head", "tail": "tail"}, {"weight": "weight"})
    ends = [np.array(table.text(name).to_pylist(), dtype=np.str_) for name in ("head", "tail")]
    if not len(table):
        raise DataError(f"{path.name}: holds no edge")
    weights = table.numbers("weight") if "weight" in table.columns else np.ones(len(table))
    wrong = ~(np.isfinite(weights) & (weights > 0)) | (ends[0] == "") | (ends[1] == "")
    if wrong.any():
        where = table.place(int(wrong.argmax()))
        raise DataError(f"{path.name} {where}: an edge must have a head, a tail and a weight above 0")
    names, places = np.unique(np.concatenate(ends), return_inverse=True)
    heads, tails = places.reshape(2, -1)
    return names.tolist(), heads, tails, weights


def _read_table(path: Path) -> Table:
    match path.suffix:
        case ".parquet":
            return read_parquet(path)
        case ".csv" | ".tsv":
            return read_delimited(path, CSV if path.suffix == ".csv" else _TSV, DataSettings())
        case other:
            raise DataError(
                f"{path.name}: edges cannot be read from a file ending in {other!r}; wanted .csv, .tsv or .parquet"
            )
