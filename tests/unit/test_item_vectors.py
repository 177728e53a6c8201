"""Further item vectors: every format, what is refused, and how they reach nodes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from client.data_source import load_learner, site_settings
from metarec_shared.catalogue import Catalogue
from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.errors import CheckpointError, DataError, WireError
from metarec_shared.item_vectors import (
    ItemVectors,
    read_item_vectors,
    standardized,
    with_item_vectors,
    write_item_vectors,
)
from metarec_shared.settings import DataSettings
from metarec_shared.sources import load_catalogue, load_item_features
from metarec_shared.text import TextFeatures
from server.warm_start import warm_parameters
from tests.integration.test_in_process_federation import run
from tests.small import small_settings

CATALOGUE = Catalogue(item_ids=("a", "b", "7"), titles=("A", "B", "7"), texts=("A", "B", "7"))
IDS = ["7", "a", "other"]
VALUES = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]], dtype=np.float32)
FEATURES = TextFeatures(vectors=torch.eye(3), encoder="builtin", fingerprint="text")


def write(path: Path) -> Path:
    columns = {"item_id": IDS, "x": VALUES[:, 0], "y": VALUES[:, 1]}
    match path.suffix:
        case ".npz":
            np.savez(path, item_ids=np.array(IDS), vectors=VALUES)
        case ".npy":
            np.save(path, VALUES)
        case ".csv" | ".gz":
            pd.DataFrame(columns).to_csv(path, index=False)
        case ".parquet":
            pd.DataFrame(columns).to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("name", ["v.npz", "v.csv", "v.csv.gz", "v.parquet"])
def test_every_format_gives_the_same_vectors_and_hash(name: str, tmp_path: Path) -> None:
    found = read_item_vectors(write(tmp_path / name), CATALOGUE)
    assert list(found.item_ids) == IDS
    assert np.array_equal(found.values, VALUES)
    assert found.digest == ItemVectors(item_ids=IDS, values=VALUES).digest


def test_a_matrix_without_ids_is_in_the_order_of_the_catalogue(tmp_path: Path) -> None:
    assert list(read_item_vectors(write(tmp_path / "v.npy"), CATALOGUE).item_ids) == ["a", "b", "7"]
    with pytest.raises(DataError, match=r"v.npy: has 3 rows, wanted one for each of the catalogue's items, 2"):
        read_item_vectors(tmp_path / "v.npy", CATALOGUE.take([0, 1]))


def test_vectors_stand_behind_the_texts_standardized_and_missing_items_have_zeros(tmp_path: Path) -> None:
    found = with_item_vectors(FEATURES, CATALOGUE, write(tmp_path / "v.npz"))
    z = (VALUES[:, 0] - VALUES[:, 0].mean()) / VALUES[:, 0].std() / np.sqrt(2)  # the constant column says nothing
    wanted = np.array([[z[1], 0.0], [0.0, 0.0], [z[0], 0.0]])
    assert torch.equal(found.vectors[:, :3], FEATURES.vectors)
    np.testing.assert_allclose(found.vectors[:, 3:].numpy(), wanted, atol=1e-6)
    assert found.encoder.startswith("builtin+vectors:")


def test_rows_have_a_mean_square_of_one() -> None:
    drawn = np.random.default_rng(0).normal(5, 3, (200, 16)).astype(np.float32)
    assert float((standardized(drawn) ** 2).sum(axis=1).mean()) == pytest.approx(1.0, abs=1e-5)


def test_another_file_gives_another_fingerprint_and_the_same_numbers_the_same(tmp_path: Path) -> None:
    first, same = (with_item_vectors(FEATURES, CATALOGUE, write(tmp_path / n)) for n in ("v.npz", "v.csv"))
    write_item_vectors(tmp_path / "w.npz", ItemVectors(item_ids=IDS, values=VALUES + np.eye(3, 2, dtype=np.float32)))
    other = with_item_vectors(FEATURES, CATALOGUE, tmp_path / "w.npz")
    assert first.fingerprint == same.fingerprint != other.fingerprint != FEATURES.fingerprint
    assert first.encoder == same.encoder != other.encoder


def _npz(path: Path, **arrays: object) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("v.npz", lambda path: None, "there is no such file of item vectors; wanted .npz"),
        ("v.txt", lambda path: path.write_text("x"), "cannot be read from a file ending in '.txt'; wanted .npz"),
        ("v.npz", lambda path: path.write_text("x"), "damaged, or no file of NumPy arrays"),
        ("v.npz", lambda path: _npz(path, vectors=VALUES), "has no array 'item_ids' among"),
        (
            "v.npz",
            lambda path: _npz(path, vectors=VALUES[:2], item_ids=np.array(IDS)),
            "has 2 rows, wanted one for each of item_ids, 3",
        ),
        ("v.npz", lambda path: _npz(path, vectors=VALUES[:, 0], item_ids=np.array(IDS)), "must be a matrix of numbers"),
        (
            "v.npz",
            lambda path: _npz(path, vectors=VALUES, item_ids=np.array(["a", "b", "a"])),
            "item 'a' has two vectors",
        ),
        (
            "v.npz",
            lambda path: _npz(path, vectors=VALUES, item_ids=np.array(["x", "y", "z"])),
            "none of its 3 item ids",
        ),
        ("v.csv", lambda path: path.write_text("id,x\na,1\n"), "no column 'item_id'"),
        ("v.csv", lambda path: path.write_text("item_id\na\n"), "holds no vectors, got 1 rows of 0 numbers"),
        (
            "v.csv",
            lambda path: path.write_text("item_id,x,y\na,1,2\nb,1,red\n"),
            "item 'b' must hold finite numbers, but number 2",
        ),
    ],
)
def test_a_bad_file_is_an_error_that_says_what(
    name: str, make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        with_item_vectors(FEATURES, CATALOGUE, tmp_path / name)


def test_a_federation_uses_them_and_refuses_nodes_and_warm_starts_with_another_file(tmp_path: Path) -> None:
    plain = small_settings()
    ids = load_catalogue(plain).item_ids
    files = [tmp_path / f"{n}.npz" for n in (0, 1)]
    for seed, file in enumerate(files):
        values = np.random.default_rng(seed).normal(size=(len(ids), 3)).astype(np.float32)
        write_item_vectors(file, ItemVectors(item_ids=ids, values=values))
    ours, theirs = (small_settings(data__item_vectors=str(file), run__out=str(tmp_path / "run")) for file in files)
    run(ours)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.model().text.shape[1] == load_item_features(plain).text.shape[1] + 3
    with pytest.raises(WireError, match="another catalogue or text encoder"):
        load_learner(theirs).check_catalogue(load_item_features(ours).fingerprint)
    again = replace(theirs, run=replace(theirs.run, init=str(tmp_path / "run")))
    with pytest.raises(CheckpointError, match="--init needs the same text encoder"):
        warm_parameters(again, load_item_features(again))


def test_a_site_names_its_own_copy_of_the_file() -> None:
    run_settings = small_settings(data__item_vectors="/where/the/server/keeps/it.npz")
    site = site_settings(run_settings, {"data-path": "/data", "item-vectors": "/here/it.npz"})
    assert site.data == DataSettings(path="/data", item_vectors="/here/it.npz")
    assert site_settings(run_settings, {"data-path": "/data"}).data.item_vectors == ""
