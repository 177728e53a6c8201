"""Unit tests of simulations.report."""

import json
import re
from html.parser import HTMLParser

import pytest

from metarec_shared.errors import CheckpointError
from metarec_shared.settings import Settings
from simulations.report import SampleRecommendation, write_report

_HOSTILE = "<script>alert(1)</script>"


class _Page(HTMLParser):
    """Collect elements, and fail on one that is closed out of order."""

    _VOID = frozenset({"meta", "path", "use", "rect", "img", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self._VOID:
            assert self.open.pop() == tag

    def of(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def _figures(ndcg, hr):
    return {"ndcg@10": ndcg, "hr@10": hr, "recall@10": ndcg, "mrr": 0.2}


def _result():
    methods = {
        "metarec": _figures(0.098, 0.58),
        "unadapted": _figures(0.087, 0.54),
        "popularity": _figures(0.056, 0.4),
        "ease": _figures(0.094, 0.59),
    }
    return {
        "dataset": {"name": "ml-1m", "users": 6040, "items": 3706, "interactions": 1000209},
        "seed": 3,
        "rounds": 4,
        "best_round": 2,
        "parameters": 1029376,
        "cold_user": {
            "random": {"support": 10, "query": 10, "users": 604} | methods,
            "time": {"support": 10, "query": 10, "users": 603} | methods,
        },
        "cold_item": None,
        "text_encoder": "all-MiniLM-L6-v2",
        "privacy": None,
        "train": {"wall_seconds": 250.0, "users_per_second": 812.4, "bytes_down": 843e6, "bytes_up": 12},
    }


def _write_run(run, result, rounds=4):
    run.mkdir(exist_ok=True)
    lines = [
        {"round": n, "train_loss": 8 - n / 10} | ({"validation_ndcg@10": n / 50} if n % 2 == 0 else {})
        for n in range(1, rounds + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "settings.json").write_text(Settings().to_json())
    (run / "result.json").write_text(json.dumps(result))


def _report(run, result=None, samples=(), rounds=4):
    _write_run(run, result or _result(), rounds)
    return write_report(run, samples).read_text()


@pytest.fixture
def samples():
    support = [(_HOSTILE, 5.0), ("{{ 7 * 7 }}", None)]
    recommended = [(f'Title {n} " onload="x', 9.0 - n) for n in range(12)]
    return [SampleRecommendation(support=support, recommended=recommended)]


def test_the_report_is_one_well_formed_file_that_loads_nothing(tmp_path, samples):
    text = _report(tmp_path, samples=samples)
    page = _Page(text)
    assert not page.open
    assert not page.of("script", "link", "iframe", "img")
    assert not [attributes for _, attributes in page.elements if "src" in attributes]
    references = re.findall(r"(?:url\(|href=\")([^)\"]*)", text)
    assert references
    assert all(reference.startswith("#") for reference in references)


def test_titles_are_text_and_never_markup_or_template(tmp_path, samples):
    text = _report(tmp_path, samples=samples)
    assert _HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert not [attributes for _, attributes in _Page(text).elements if "onload" in attributes]


def test_hostile_names_in_the_result_are_escaped_in_charts_too(tmp_path):
    result = _result()
    result["dataset"]["name"] = _HOSTILE
    result["cold_user"]["random"]['"><script>x'] = _figures(0.01, 0.1)
    text = _report(tmp_path, result)
    assert "<script>" not in text
    assert not _Page(text).open


def test_the_same_run_gives_the_same_bytes(tmp_path, samples):
    assert _report(tmp_path / "a", samples=samples) == _report(tmp_path / "b", samples=samples)


def test_ids_are_unique_and_references_point_at_one(tmp_path, samples):
    text = _report(tmp_path, samples=samples)
    ids = [attributes["id"] for _, attributes in _Page(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]*)", text)) <= set(ids)


def test_charts_have_a_text_alternative_and_tables_scoped_headers(tmp_path):
    page = _Page(_report(tmp_path))
    charts = page.of("svg")
    assert len(charts) == 4
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert all("scope" in header for header in page.of("th"))


def test_the_best_value_is_bold_and_baselines_are_said_to_be_centralized(tmp_path):
    text = _report(tmp_path)
    assert "<strong>0.0980</strong>" in text
    assert "<strong>0.5900</strong>" in text
    assert "<strong>0.5800</strong>" not in text
    assert text.count('EASE <span class="tag">centralized</span>') == 2
    assert "604 test users" in text
    assert "+4.3% against EASE" in text


def test_the_ten_best_recommendations_are_shown_with_scores(tmp_path, samples):
    text = _report(tmp_path, samples=samples)
    assert "Title 9 " in text
    assert "Title 10 " not in text
    assert '<span class="value">9.00</span>' in text


def test_the_curve_without_inner_loop_is_drawn_where_that_run_is_there(tmp_path):
    assert "no inner loop</text>" not in _report(tmp_path)
    (tmp_path / "not_adapted").mkdir()
    (tmp_path / "not_adapted" / "metrics.jsonl").write_text(
        '{"round": 1, "train_loss": 8.1}\n{"round": 2, "train_loss": 8.0}\n'
    )
    assert "no inner loop</text>" in _report(tmp_path)


def test_the_best_round_is_marked(tmp_path):
    assert "best round, 2: 0.0400" in _report(tmp_path)


def test_data_without_time_order_says_so(tmp_path):
    result = _result()
    result["cold_user"]["time"] = None
    assert "The data has no time order" in _report(tmp_path, result)


def test_cold_items_have_a_table_where_they_were_evaluated(tmp_path):
    assert "Cold items" not in _report(tmp_path)
    result = _result() | {"cold_item": {"items": 370, "users": 598, "metarec": _figures(0.15, 0.5)}}
    text = _report(tmp_path, result)
    assert "370 items were removed" in text
    assert "598 test users" in text


def test_the_privacy_line_says_that_nothing_is_protected(tmp_path):
    assert "raw item counts, raw moments of tasks and raw gradients leave the nodes" in _report(tmp_path)


def test_every_setting_is_listed(tmp_path):
    text = _report(tmp_path)
    assert all(f'<th scope="row">{name}</th>' in text for name in Settings().flat())


def test_a_run_without_rounds_or_figures_still_has_a_report(tmp_path):
    text = _report(tmp_path, {"dataset": {"name": "x"}}, rounds=0)
    assert "No round was recorded." in text
    assert "Not evaluated yet." in text


def test_a_missing_result_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"result\.json: cannot be read, so there is no report"):
        write_report(tmp_path, [])


def test_a_result_that_is_no_object_is_an_error(tmp_path):
    _write_run(tmp_path, _result())
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(CheckpointError, match="wanted a JSON object, got list"):
        write_report(tmp_path, [])
