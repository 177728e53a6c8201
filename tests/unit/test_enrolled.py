"""Names of sites: the coordinator's file says whose node it is, whatever the node says."""

import json
from pathlib import Path

import pytest

from metarec_shared.errors import FederationError, WireError
from server.enrolled import check_name, enrolled_names
from server.federation import run_federation
from server.result import RESULT_FILE, TRAINING_FILE, write_result
from tests.integration.test_in_process_federation import make_grid
from tests.small import small_settings


def write_sites(path: Path, names: dict[str, object]) -> Path:
    path.write_text(json.dumps({name: {"node": node} for name, node in names.items()}))
    return path


def test_names_are_read_by_node(tmp_path: Path) -> None:
    path = write_sites(tmp_path / "sites.json", {"north": "18085734038870320756", "south": "7"})
    assert enrolled_names(path) == {18085734038870320756: "north", 7: "south"}


@pytest.mark.parametrize("text", ["", "[1]", '{"a": {}}', '{"a": {"node": "x"}}', '{"a": 3}'])
def test_a_damaged_file_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sites.json"
    path.write_text(text)
    with pytest.raises(FederationError, match=r"sites.json: no readable file of enrolled sites"):
        enrolled_names(path)


def test_a_node_under_anothers_name_is_not_believed() -> None:
    check_name("north", 7, {7: "north"})
    with pytest.raises(WireError, match="enrolled as north calls itself 'south'"):
        check_name("south", 7, {7: "north", 8: "south"})
    with pytest.raises(WireError, match="node 9 calls itself 'north', but no site is enrolled with it"):
        check_name("north", 9, {7: "north"})


def test_a_federation_goes_on_without_the_node_that_takes_anothers_name(tmp_path: Path) -> None:
    names: dict[str, object] = {f"{place:09d}": place + 1 for place in range(3)}
    names["000000001"], names["somebody"] = 99, 2
    settings = small_settings(
        federation__nodes=3,
        federation__rounds=1,
        federation__sites=str(write_sites(tmp_path / "sites.json", names)),
        regression__enabled=False,
        run__out=str(tmp_path / "run"),
    )
    run_federation(make_grid(settings, fold=False), settings)
    assert json.loads((tmp_path / "run" / TRAINING_FILE).read_text())["nodes"] == 2
    failures = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert [(f["kind"], f["node"]) for f in failures] == [("query", "2")]
    assert "enrolled as somebody calls itself '000000001'" in failures[0]["cause"]
    write_result(settings, "deployment")
    result = json.loads((tmp_path / "run" / RESULT_FILE).read_text())
    assert (result["engine"], result["nodes"], result["cold_user"]) == ("deployment", 2, {"random": None, "time": None})
    assert result["dataset"]["interactions"] is None, "the server does not know it"
