"""Unit tests of metarec_shared.model_card and of the comparison it shows."""

import json
import subprocess
import sys

import yaml

from metarec_shared.comparison import compare
from metarec_shared.model_card import model_card
from metarec_shared.settings import Settings

_SETTINGS = json.loads(Settings().to_json())


def _figures(ndcg, hr):
    return {"ndcg@10": ndcg, "hr@10": hr}


def _result(**changes):
    random_order = {
        "support": 10,
        "query": 10,
        "users": 604,
        "popularity": _figures(0.056, 0.4),
        "ease": _figures(0.094, 0.59),
        "metarec": _figures(0.098, 0.58),
        "unadapted": _figures(0.087, 0.54),
    }
    return {
        "dataset": {"name": "ml-1m", "users": 6040, "items": 3706, "interactions": 1000209},
        "seed": 3,
        "rounds": 800,
        "best_round": 640,
        "parameters": 1029376,
        "cold_user": {"random": random_order, "time": None},
        "cold_item": None,
        "text_encoder": "all-MiniLM-L6-v2",
        "privacy": None,
    } | changes


def _header(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_shows_metarec_first_and_the_best_value_bold():
    lines = [line for line in model_card(_result(), _SETTINGS).splitlines() if line.startswith("| ")]
    assert lines == [
        "| Method | nDCG@10 | HR@10 |",
        "| MetaRec | **0.0980** | 0.5800 |",
        "| MetaRec before adaptation | 0.0870 | 0.5400 |",
        "| EASE (centralized) | 0.0940 | **0.5900** |",
        "| Popularity (centralized) | 0.0560 | 0.4000 |",
    ]


def test_the_header_is_yaml_that_holds_metarecs_own_figures():
    header = _header(model_card(_result(), _SETTINGS))
    entry = header["model-index"][0]["results"][0]
    assert entry["dataset"]["name"] == "ml-1m"
    assert {metric["type"]: metric["value"] for metric in entry["metrics"]} == {"nDCG@10": 0.098, "HR@10": 0.58}
    assert len(header["model-index"][0]["results"]) == 1


def test_a_run_without_privacy_says_what_leaves_the_nodes():
    card = model_card(_result(), _SETTINGS)
    assert "raw item counts, raw moments of tasks and raw gradients leave the nodes" in card
    assert "There is no guarantee" in card


def test_a_private_run_says_its_unit_and_its_budget():
    mechanism = {"name": "meta-update", "noise_multiplier": 0.94, "sampling_rate": 0.1, "releases": 100}
    privacy = {
        "mode": "site",
        "unit": "user",
        "epsilon": 8.0,
        "delta": 1e-5,
        "noise": "simulated noise",
        "mechanisms": [mechanism],
    }
    card = model_card(_result(privacy=privacy), _SETTINGS)
    assert "Unit of privacy: user: one user's whole history" in card
    assert "Guarantee: epsilon 8, delta 1e-05 (simulated noise: whoever has the seed can undo it)" in card
    assert "100 x meta-update (noise multiplier 0.94, sampling rate 0.1)" in card
    card = model_card(_result(privacy=privacy | {"epsilon": None}), _SETTINGS)
    assert "Guarantee: none: not everything that left was noised" in card


def test_a_checkpoint_in_mid_training_has_a_card_without_figures():
    for result in ({}, {"dataset": {"name": "ml-1m"}, "cold_user": None}):
        card = model_card(result, _SETTINGS)
        assert "Not evaluated yet" in card
        assert "model-index" not in _header(card)
        assert "metarec recommend --model RUN --history FILE" in card


def test_a_card_needs_no_settings():
    assert "Not evaluated yet" in model_card({}, {})


def test_a_data_sets_name_is_neither_markdown_nor_html_nor_yaml():
    name = 'a|b <script>: "x" [y](z)\n---'
    card = model_card(_result(dataset={"name": name}), _SETTINGS)
    assert "<script>" not in card.split("---\n", 2)[2]
    assert yaml.safe_load(card.split("\n---\n")[0])["model-index"][0]["results"][0]["dataset"]["name"] == name


def test_the_inner_loop_is_described_as_set():
    off = _SETTINGS | {"adaptation": {"steps": 0}}
    assert "Inner loop: 1 step on user-vector, meta-sgd" in model_card({}, _SETTINGS)
    assert "Inner loop: off" in model_card({}, off)


def test_a_method_nobody_foresaw_is_shown_under_its_key_and_missing_values_as_dashes():
    comparison = compare({"metarec": _figures(0.1, 0.2), "fine_tuned": {"ndcg@10": 0.3}})
    assert [(method.name, method.values) for method in comparison.methods] == [
        ("MetaRec", (0.1, 0.2)),
        ("fine tuned", (0.3, None)),
    ]
    assert comparison.best(0) == "0.3000"


def test_there_is_nothing_to_compare_without_figures():
    for figures in (None, {}, {"users": 3}, {"users": 3, "metarec": {}}):
        assert compare(figures) is None


def test_the_card_is_written_without_torch_or_flower():
    code = "import metarec_shared.model_card, sys; sys.exit(bool({'torch', 'flwr', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
