"""docs/partner-sites.md as a new operator would follow it: every command in it, in order, in one shell."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.processes import alive, environment, free_ports, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "partner-sites.md"


def script(page: str, ports: list[int]) -> str:
    """Return the page's commands, with ports that nobody else uses in the place of those that it names."""
    text = "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
    for told, port in (("9095", ports[2]), ("9096", ports[3])):
        assert text.count(told) == 1
        text = text.replace(told, str(port))
    first = "sed -i 's/^port = .*/port = "
    own = f"sed -i 's/^port = .*/port = {ports[1]}/' north/site.toml\n"
    text = text.replace(first, own + first, 1)
    start = "metarec server init coordinator "
    assert text.count(start) == 1
    return text.replace(start, f"{start}--port {ports[0]} ")


def test_the_page_leads_from_nothing_to_a_trained_model(tmp_path: Path) -> None:
    env = environment(tmp_path, HOME=str(tmp_path / "home"))
    commands = script(PAGE.read_text(encoding="utf-8"), free_ports(4))
    try:
        with (tmp_path / "said.log").open("wb") as said:
            finished = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=env, stdout=said, stderr=said,
                timeout=900, check=False,
            )  # fmt: skip
        text = (tmp_path / "said.log").read_text()
        assert finished.returncode == 0, text[-4000:]
        wait_until(lambda: not alive(env), "what the page started has ended")
    finally:
        for process in alive(env):
            os.kill(process, signal.SIGKILL)
    assert "finished: metarec recommend --model coordinator/runs/first" in text
    assert "FAIL" not in text
    assert re.search(r"spent: +epsilon [0-9.]+", text), "the ledger was charged"
    assert text.count("pass  ") >= 10
