"""Embeddings of a knowledge graph against scikit-learn's spectral embedding, and the command that writes them."""

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.manifold import spectral_embedding
from typer.testing import CliRunner

from metarec_shared.catalogue import Catalogue
from metarec_shared.data_cli import app
from metarec_shared.errors import DataError
from metarec_shared.graph_vectors import embed_graph, laplacian_eigenmaps
from metarec_shared.item_vectors import read_item_vectors

ITEMS = tuple(f"i{n}" for n in range(12))
CATALOGUE = Catalogue(item_ids=(*ITEMS, "alone"), titles=(*ITEMS, "alone"), texts=(*ITEMS, "alone"))


def _edges(path: Path) -> Path:
    """Items of two genres that share a studio."""
    rows = [f"{item},genre,{'war' if n < 6 else 'love'},1" for n, item in enumerate(ITEMS)]
    rows += [f"{item},studio,s{n % 3},0.5" for n, item in enumerate(ITEMS)]
    path.write_text("\n".join(["head,relation,tail,weight", *rows]) + "\n")
    return path


def test_vectors_are_scikit_learns_spectral_embedding_up_to_sign() -> None:
    rng = np.random.default_rng(0)
    heads, tails, weights = rng.integers(0, 30, 150), rng.integers(0, 30, 150), rng.uniform(0.5, 2, 150)
    apart = heads != tails
    heads, tails, weights = heads[apart], tails[apart], weights[apart]
    dense = np.zeros((30, 30))
    for head, tail, weight in zip(heads, tails, weights, strict=True):
        dense[head, tail] += weight
        dense[tail, head] += weight
    found = laplacian_eigenmaps(heads, tails, weights, 30, 4)
    wanted = spectral_embedding(csr_array(dense), n_components=4, random_state=0, drop_first=True)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-5)
    assert np.array_equal(found, laplacian_eigenmaps(heads, tails, weights, 30, 4))


def test_items_of_one_genre_are_near_and_entities_are_left_out(tmp_path: Path) -> None:
    found = embed_graph(_edges(tmp_path / "edges.csv"), CATALOGUE, 3)
    assert sorted(found.item_ids) == sorted(ITEMS)
    place = {item: row for row, item in enumerate(found.item_ids)}
    values = found.values[[place[item] for item in ITEMS]]
    assert values[:6, 0] == pytest.approx(values[0, 0])  # the slowest eigenvector tells the genres apart
    assert values[6:, 0] == pytest.approx(-values[0, 0])
    assert abs(values[0, 0]) > 0.01


def test_the_command_writes_a_file_that_item_vectors_are_read_from(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "items.csv").write_text("\n".join(["item_id,title", *(f"{item},{item}" for item in ITEMS)]) + "\n")
    out = tmp_path / "graph.npz"
    result = CliRunner().invoke(
        app, ["graph", str(_edges(tmp_path / "edges.csv")), str(data), "--out", str(out), "--width", "3"]
    )
    assert result.exit_code == 0, result.output
    assert "vectors of 12 of 12 items, 3 numbers each" in result.output
    assert np.array_equal(
        read_item_vectors(out, CATALOGUE).values, embed_graph(tmp_path / "edges.csv", CATALOGUE, 3).values
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head,relation\ni1,x\n", "no column 'tail'"),
        ("head,tail\n", "edges.csv: holds no edge"),
        ("head,tail,weight\ni1,x,1\ni2,x,-1\n", "line 3: an edge must have a head, a tail and a weight above 0"),
        ("head,tail\ni1,\n", "line 2: an edge must have a head, a tail"),
        ("head,tail\nx,y\n", "none of its 2 entities is an item id of the catalogue"),
        ("head,tail\ni1,y\n", "has 2 entities, too few for vectors of 3 numbers"),
    ],
)
def test_a_bad_edge_list_is_an_error_that_says_what(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        embed_graph(tmp_path / "edges.csv", CATALOGUE, 3)


def test_a_missing_file_and_another_ending_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file of edges"):
        embed_graph(tmp_path / "edges.csv", CATALOGUE, 3)
    (tmp_path / "edges.json").write_text("{}")
    with pytest.raises(DataError, match=r"ending in '.json'; wanted .csv, .tsv or .parquet"):
        embed_graph(tmp_path / "edges.json", CATALOGUE, 3)
