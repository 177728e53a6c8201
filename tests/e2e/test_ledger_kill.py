"""A process that charges is killed at any moment: its ledger opens again, and no reply left without a charge."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.privacy.ledger import Ledger
from client.privacy.witness import read_witness
from metarec_shared.privacy.accounting import Mechanism

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
UPDATE = Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.01)
KILLS = 200
LONGEST_SECONDS = 0.12

ANSWERING = """
import os, sys, uuid
from itertools import count
from pathlib import Path
from client.privacy import store
from client.privacy.ledger import Ledger
from metarec_shared.privacy import accounting
path, witness, replies, step, times = sys.argv[1:]
accounting.epsilon_of = lambda mechanisms, delta: 0.0
counted = []

def end(name):
    counted.append(name)
    if name == step and counted.count(name) > int(times):
        os._exit(0)

store._step = end
rename = Path.replace

def replace(self, target):
    end("written")
    rename(self, target)
    end("renamed")

Path.replace = replace
ledger = Ledger.open(Path(path), Path(witness))
with open(replies, "ab", buffering=0) as file:
    print("ready", flush=True)
    run = uuid.uuid4().hex
    for number in count(1):
        release = ledger.charge(run=run, round_number=number, mechanism=ledger.plan[0])
        file.write(b"%d\\n" % release.number)
        os.fsync(file.fileno())
"""


class Site:
    """A ledger, its witness, and the replies that left."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "ledger.sqlite", folder / "witness.json"
        self.replies = folder / "replies"
        Ledger.create(*self.files, epsilon=1.0, delta=1e-5, plan=[UPDATE])

    def answering(self, step: str = "", times: int = 0) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", ANSWERING, *map(str, (*self.files, self.replies, step, times))]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)

    def check(self) -> tuple[int, int]:
        """Open the ledger; return the releases charged and the replies that left."""
        charged = [release.number for release in Ledger.open(*self.files).releases()]
        left = [int(line) for line in self.replies.read_text().split()] if self.replies.exists() else []
        assert set(left) <= set(charged)
        assert len(left) == len(set(left)) <= len(charged)
        assert read_witness(self.files[1]).pending is None
        return len(charged), len(left)


@pytest.mark.parametrize(
    ("step", "times", "charged", "replied"),
    [
        ("checked", 1, 0, 0),  # the first one is that of opening
        ("written", 0, 0, 0),
        ("renamed", 0, 0, 0),
        ("pending", 0, 0, 0),
        ("inserted", 0, 0, 0),
        ("committed", 0, 1, 0),
        ("written", 1, 1, 0),
        ("renamed", 1, 1, 0),
        ("settled", 0, 1, 0),
        ("pending", 2, 2, 2),
        ("committed", 2, 3, 2),
        ("settled", 2, 3, 2),
    ],
)
def test_a_process_that_ends_at_a_step_of_a_charge_leaves_what_that_step_promises(
    step: str, times: int, charged: int, replied: int, tmp_path: Path
) -> None:
    site = Site(tmp_path)
    with site.answering(step, times) as process:
        assert process.wait(timeout=60) == 0
    assert site.check() == (charged, replied)
    with site.answering("settled", 1) as process:
        assert process.wait(timeout=60) == 0
    assert site.check() == (charged + 2, replied + 1)


def test_no_reply_ever_left_without_a_charge_however_often_the_process_was_killed(tmp_path: Path) -> None:
    site, rng = Site(tmp_path), random.Random(0)
    lost = 0
    for _ in range(KILLS):
        with site.answering() as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.random() * LONGEST_SECONDS)
            process.send_signal(signal.SIGKILL)
        charged, replied = site.check()
        lost = charged - replied
    assert replied > 0
    assert 0 <= lost <= KILLS
