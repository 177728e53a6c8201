"""The privacy ledger: what it charges, when it stops, and what it notices."""

import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterable
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from client.privacy import store, witness
from client.privacy.ledger import Ledger
from metarec_shared.errors import AlreadyAnswered, BudgetSpent, LedgerError, PrivacyError, SettingsError
from metarec_shared.privacy import accounting
from metarec_shared.privacy.accounting import Mechanism, epsilon_of, renyi_epsilon_at, renyi_order_for

UPDATE = Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.01)
COUNTS = Mechanism(name="popularity", noise_multiplier=10.0, sampling_rate=1.0, releases=2)
ONE_COUNT = Mechanism(name="popularity", noise_multiplier=10.0, sampling_rate=1.0)

ROOT = Path(__file__).parents[2]

CHARGING = """
import sys
from pathlib import Path
from client.privacy.ledger import Ledger
from metarec_shared.errors import AlreadyAnswered, BudgetSpent
from metarec_shared.privacy import accounting
accounting.epsilon_of = lambda mechanisms, delta: 0.125 * sum(one.releases for one in mechanisms)
ledger = Ledger.open(Path(sys.argv[1]), Path(sys.argv[2]))
charged = 0
for number in range(int(sys.argv[3])):
    try:
        ledger.charge(run=sys.argv[4], round_number=number, mechanism=ledger.plan[0])
        charged += 1
    except (AlreadyAnswered, BudgetSpent):
        pass
print(charged)
"""


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "ledger.sqlite", folder / "elsewhere" / "witness.json"


def make(folder: Path, epsilon: float = 1.0, plan: Iterable[Mechanism] = (UPDATE,)) -> Ledger:
    return Ledger.create(*files(folder), epsilon=epsilon, delta=1e-5, plan=list(plan))


ROUNDS = count(1)


def charge(ledger: Ledger, times: int = 1, mechanism: Mechanism = UPDATE) -> None:
    """Charge so many releases, each in a round of its own."""
    for number in islice(ROUNDS, times):
        ledger.charge(run="run", round_number=number, mechanism=mechanism)


def count_cheaply(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let every release cost 1/8; return what is asked."""
    asked: list[float] = []

    def cost(mechanisms: Iterable[Mechanism], _: float) -> float:
        asked.append(0.125 * sum(one.releases for one in mechanisms))
        return asked[-1]

    monkeypatch.setattr(accounting, "epsilon_of", cost)
    return asked


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_new_ledger_has_spent_nothing_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    ledger = make(tmp_path)
    assert (ledger.spent(), ledger.releases(), ledger.budget) == (0.0, [], (1.0, 1e-5))
    assert (ledger.accountant, ledger.plan) == ("prv", (UPDATE,))
    for file in files(tmp_path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*journal*"))


def test_a_charge_is_there_when_the_ledger_is_opened_again(tmp_path: Path) -> None:
    first = make(tmp_path)
    release = first.charge(run="spring", round_number=7, mechanism=UPDATE)
    again = Ledger.open(*files(tmp_path))
    assert again.releases() == [release]
    assert (release.run, release.round_number, release.mechanism, release.number) == ("spring", 7, UPDATE, 3)
    assert release.time.endswith("+00:00")
    assert again.population_id == first.population_id
    assert len(again.population_id) == 32


def test_two_populations_have_two_identifiers(tmp_path: Path) -> None:
    assert make(tmp_path / "a").population_id != make(tmp_path / "b").population_id


def test_a_ledger_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(LedgerError, match=r"ledger.sqlite: is there already"):
        make(tmp_path)
    files(tmp_path)[0].unlink()
    with pytest.raises(LedgerError, match=r"witness.json: is there already"):
        make(tmp_path)


def test_a_ledger_and_its_witness_are_two_files(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="are two files"):
        Ledger.create(tmp_path / "a", tmp_path / "a", epsilon=1.0, delta=1e-5, plan=[UPDATE])


@pytest.mark.parametrize("plan", [[], [UPDATE, UPDATE], [Mechanism(name="a", noise_multiplier=0.0, sampling_rate=1.0)]])
def test_a_plan_without_protection_is_refused(plan: list[Mechanism], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a plan n"):
        make(tmp_path, plan=plan)
    assert not files(tmp_path)[0].exists()


def test_releases_are_charged_one_by_one(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="one by one, got 2"):
        make(tmp_path).charge(run="run", round_number=1, mechanism=COUNTS)


def test_the_budget_is_spent_to_its_last_release_and_not_further(tmp_path: Path) -> None:
    expensive = Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.3)
    ledger = make(tmp_path, epsilon=6.0, plan=[expensive])
    left = ledger.affordable(expensive)
    assert left > 2
    charge(ledger, left, expensive)
    before = [file.read_bytes() for file in files(tmp_path)]
    with pytest.raises(
        BudgetSpent, match=rf"epsilon 6 at delta 1e-05 does not do for another .* after {left} releases"
    ):
        charge(Ledger.open(*files(tmp_path)), 1, expensive)
    assert before == [file.read_bytes() for file in files(tmp_path)]
    assert ledger.affordable(expensive) == 0
    composed = Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.3, releases=left)
    assert ledger.spent() == epsilon_of([composed], 1e-5) <= 6.0
    more = Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.3, releases=left + 1)
    assert epsilon_of([more], 1e-5) > 6.0


def test_a_budget_that_is_met_exactly_is_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_cheaply(monkeypatch)
    ledger = make(tmp_path)
    assert ledger.affordable(UPDATE) == 8
    charge(ledger, 8)
    assert ledger.spent() == 1.0
    with pytest.raises(BudgetSpent):
        charge(ledger)


def test_one_charge_asks_the_accountant_once_and_many_ask_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_cheaply(monkeypatch)
    ledger = make(tmp_path, epsilon=10.0)
    charge(ledger)
    assert asked == [0.125]
    charge(ledger, 79)
    assert len(asked) < 20
    with pytest.raises(BudgetSpent):
        charge(ledger)


def test_releases_within_the_plan_count_as_planned(tmp_path: Path) -> None:
    ledger = make(tmp_path)
    charge(ledger, 2, Mechanism(name="meta-update", noise_multiplier=3.0, sampling_rate=0.001))
    planned = Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.01, releases=2)
    assert ledger.accountant == "prv"
    assert ledger.spent() == epsilon_of([planned], 1e-5)
    assert ledger.releases()[0].mechanism.noise_multiplier == 3.0


def test_what_the_plan_reserves_is_there_for_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_cheaply(monkeypatch)
    ledger = make(tmp_path, plan=[UPDATE, COUNTS])
    assert (ledger.affordable(UPDATE), ledger.affordable(COUNTS)) == (6, 2)
    charge(ledger, 6)
    with pytest.raises(BudgetSpent, match="another meta-update after 6"):
        charge(ledger)
    charge(ledger, 2, ONE_COUNT)
    with pytest.raises(BudgetSpent, match="another popularity after 8"):
        charge(ledger, 1, ONE_COUNT)
    assert (ledger.spent(), ledger.accountant) == (1.0, "prv")


@pytest.mark.parametrize(
    "outside",
    [
        Mechanism(name="meta-update", noise_multiplier=0.9, sampling_rate=0.01),
        Mechanism(name="meta-update", noise_multiplier=1.0, sampling_rate=0.011),
        Mechanism(name="else", noise_multiplier=1.0, sampling_rate=0.01),
    ],
)
def test_a_release_outside_the_plan_lets_a_renyi_filter_take_over(outside: Mechanism, tmp_path: Path) -> None:
    ledger = make(tmp_path, epsilon=6.0)
    charge(ledger, 2)
    charge(ledger, 1, outside)
    assert ledger.accountant == "renyi-filter"
    order = renyi_order_for(6.0, 1e-5)
    assert ledger.spent() == pytest.approx(renyi_epsilon_at([UPDATE, UPDATE, outside], 1e-5, order))


def test_a_release_that_the_filter_refuses_leaves_the_accountant_as_it_was(tmp_path: Path) -> None:
    ledger = make(tmp_path)
    with pytest.raises(BudgetSpent):
        charge(ledger, 1, Mechanism(name="meta-update", noise_multiplier=0.0, sampling_rate=0.01))
    assert (ledger.accountant, ledger.releases()) == ("prv", [])


def test_a_second_plan_lets_a_renyi_filter_take_over_and_the_same_plan_does_not(tmp_path: Path) -> None:
    ledger = make(tmp_path, epsilon=6.0)
    charge(ledger, 2)
    ledger.set_plan([UPDATE])
    assert ledger.accountant == "prv"
    other = Mechanism(name="meta-update", noise_multiplier=2.0, sampling_rate=0.01)
    ledger.set_plan([other])
    assert Ledger.open(*files(tmp_path)).accountant == "renyi-filter"
    assert ledger.plan == (other,)
    ledger.set_plan([UPDATE])
    assert ledger.accountant == "renyi-filter"


def test_a_renyi_filter_stops_at_the_budget_too(tmp_path: Path) -> None:
    ledger = make(tmp_path, epsilon=6.0)
    expensive = Mechanism(name="meta-update", noise_multiplier=2.0, sampling_rate=0.5)
    ledger.set_plan([expensive])
    left = ledger.affordable(expensive)
    assert left > 2
    charge(ledger, left, expensive)
    with pytest.raises(BudgetSpent):
        charge(ledger, 1, expensive)
    assert ledger.spent() <= 6.0


def test_a_changed_budget_is_recorded_and_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_cheaply(monkeypatch)
    ledger = make(tmp_path)
    charge(ledger, 8)
    ledger.set_budget(epsilon=1.5, delta=1e-6)
    assert ledger.budget == (1.5, 1e-6)
    assert ledger.affordable(UPDATE) == 4
    ledger.set_budget(epsilon=0.5, delta=1e-6)
    assert (ledger.affordable(UPDATE), ledger.spent()) == (0, 1.0)
    with pytest.raises(BudgetSpent):
        charge(ledger)
    with pytest.raises(SettingsError, match="epsilon is out of range"):
        ledger.set_budget(epsilon=0.0, delta=1e-6)


def test_data_may_change_and_the_population_stays(tmp_path: Path) -> None:
    ledger = make(tmp_path)
    identifier = ledger.population_id
    (tmp_path / "interactions.csv").write_text("user,item\n")
    charge(ledger)
    ledger.set_budget(epsilon=2.0, delta=1e-5)
    assert Ledger.open(*files(tmp_path)).population_id == identifier


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET body = replace(body, 'run', 'ran') WHERE number = 3",
        "UPDATE ledger SET hash = 'a' WHERE number = 4",
        "DELETE FROM ledger WHERE number = 5",
        "DELETE FROM ledger WHERE number = 3",
        "DELETE FROM ledger",
        "DELETE FROM population",
        "UPDATE population SET identifier = 'a'",
        "INSERT INTO ledger VALUES (6, '{}', 'a')",
        "DROP TABLE ledger",
    ],
)
def test_an_edited_ledger_is_refused(statement: str, tmp_path: Path) -> None:
    ledger = make(tmp_path)
    charge(ledger, 3)
    execute(files(tmp_path)[0], "DROP TRIGGER no_update", "DROP TRIGGER no_delete", statement)
    with pytest.raises(LedgerError):
        Ledger.open(*files(tmp_path))
    with pytest.raises(LedgerError):
        charge(ledger)


@pytest.mark.parametrize("statement", ["UPDATE ledger SET hash = 'a'", "DELETE FROM ledger"])
def test_rows_are_only_added(statement: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(sqlite3.IntegrityError, match="rows are only added"):
        execute(files(tmp_path)[0], statement)


@pytest.mark.parametrize("which", [0, 1])
def test_either_file_put_back_alone_is_noticed(which: int, tmp_path: Path) -> None:
    ledger = make(tmp_path)
    charge(ledger)
    old = shutil.copy(files(tmp_path)[which], tmp_path / "old")
    charge(ledger)
    shutil.copy(old, files(tmp_path)[which])
    with pytest.raises(LedgerError, match="was put back, cut short or edited"):
        Ledger.open(*files(tmp_path))
    with pytest.raises(LedgerError, match="was put back"):
        charge(ledger)


def test_the_witness_of_another_ledger_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with pytest.raises(LedgerError, match="of another ledger"):
        Ledger.open(files(tmp_path / "a")[0], files(tmp_path / "b")[1])


@pytest.mark.parametrize(("which", "message"), [(0, "no ledger"), (1, "cannot read the ledger's witness")])
def test_a_missing_file_is_refused(which: int, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    files(tmp_path)[which].unlink()
    with pytest.raises(LedgerError, match=message):
        Ledger.open(*files(tmp_path))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 9000, b"{}", b"[1]", b'{"population": "a", "last": 1}'])
@pytest.mark.parametrize("which", [0, 1])
def test_a_file_of_something_else_is_refused(which: int, content: bytes, tmp_path: Path) -> None:
    make(tmp_path)
    files(tmp_path)[which].write_bytes(content)
    with pytest.raises(LedgerError):
        Ledger.open(*files(tmp_path))


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_that_was_cut_short_is_refused(which: int, tmp_path: Path) -> None:
    charge(make(tmp_path), 3)
    content = files(tmp_path)[which].read_bytes()
    files(tmp_path)[which].write_bytes(content[: len(content) // 2])
    with pytest.raises(LedgerError):
        Ledger.open(*files(tmp_path))


def test_a_read_only_ledger_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(store, "_ACCESS", "ro")
    with pytest.raises(LedgerError, match="readonly"):
        Ledger.open(*files(tmp_path))


def test_a_charge_that_the_witness_cannot_take_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_witness", fail)
        with pytest.raises(LedgerError, match=r"witness.json: .* No space left"):
            charge(ledger)
    assert ledger.releases() == []


def test_a_lock_that_another_process_keeps_is_an_error_and_not_a_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make(tmp_path)
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.1)
    other = sqlite3.connect(files(tmp_path)[0], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="database is locked"):
        charge(ledger)
    other.close()
    charge(ledger)


def test_the_folders_are_flushed_when_a_file_is_made_or_renamed_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(store, "sync_folder", flushed.append)
    monkeypatch.setattr(witness, "sync_folder", flushed.append)
    ledger = make(tmp_path)
    assert flushed == [tmp_path / "elsewhere", tmp_path]
    charge(ledger)
    assert flushed == [tmp_path / "elsewhere", tmp_path, *[tmp_path / "elsewhere"] * 2]


def test_the_ledger_is_flushed_as_far_as_sqlite_can(tmp_path: Path) -> None:
    make(tmp_path)
    connection = store.Store(*files(tmp_path))._connect()
    assert connection.execute("PRAGMA synchronous").fetchone() == (3,)
    connection.close()


@pytest.mark.parametrize("step", ["checked", "pending", "inserted", "committed"])
def test_a_charge_that_fails_on_the_way_leaves_a_ledger_that_opens(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make(tmp_path)
    charge(ledger, 2)

    def fail(name: str) -> None:
        if name == step and sys._getframe(2).f_code.co_name != "read":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_step", fail)
        with pytest.raises(KeyboardInterrupt):
            charge(ledger)
    again = Ledger.open(*files(tmp_path))
    assert len(again.releases()) == (3 if step == "committed" else 2)
    charge(again)
    assert witness.read_witness(files(tmp_path)[1]).pending is None


def test_processes_that_charge_at_the_same_time_cannot_overspend(tmp_path: Path) -> None:
    make(tmp_path, epsilon=5.0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHARGING, *map(str, files(tmp_path)), "40", name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    charged = [int(process.communicate(timeout=100)[0]) for process in processes]
    assert sum(charged) == 40
    assert len(Ledger.open(*files(tmp_path)).releases()) == 40


def test_nothing_heavy_is_imported_before_the_accountant_is_asked() -> None:
    program = "import sys, client.privacy.ledger, client.privacy.cli; print({'torch', 'opacus'} & set(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"


def test_a_release_is_charged_once_whatever_its_parameters(tmp_path: Path) -> None:
    ledger = make(tmp_path, epsilon=8.0, plan=[UPDATE, COUNTS])
    ledger.charge(run="77", round_number=3, mechanism=UPDATE)
    ledger.charge(run="77", round_number=0, mechanism=ONE_COUNT)
    quieter = Mechanism(name="meta-update", noise_multiplier=2.0, sampling_rate=0.01)
    for again in (UPDATE, quieter):
        with pytest.raises(AlreadyAnswered, match=r"^round 3 of run 77 was answered already; asking again would be a "):
            ledger.charge(run="77", round_number=3, mechanism=again)
    with pytest.raises(AlreadyAnswered, match="popularity, before the first round, of run 77 was answered already"):
        ledger.charge(run="77", round_number=0, mechanism=ONE_COUNT)
    assert len(Ledger.open(*files(tmp_path)).releases()) == 2
    ledger.charge(run="78", round_number=3, mechanism=UPDATE)
    ledger.charge(run="77", round_number=4, mechanism=UPDATE)
    ledger.charge(run="77", round_number=3, mechanism=ONE_COUNT)
    assert len(ledger.releases()) == 5


def test_a_second_answer_is_refused_for_that_and_not_for_the_budget(tmp_path: Path) -> None:
    ledger = make(tmp_path)
    most = ledger.affordable(UPDATE)
    for number in range(1, most + 1):
        ledger.charge(run="run", round_number=number, mechanism=UPDATE)
    with pytest.raises(BudgetSpent):
        ledger.charge(run="run", round_number=most + 1, mechanism=UPDATE)
    with pytest.raises(AlreadyAnswered):
        ledger.charge(run="run", round_number=most, mechanism=UPDATE)


def test_who_checked_before_another_process_charged_is_refused_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, other = make(tmp_path), Ledger.open(*files(tmp_path))
    check = Ledger._check

    def overtaken(self: Ledger, account: Any, mechanism: Mechanism) -> None:
        check(self, account, mechanism)
        if self is ledger and not other.releases():
            other.charge(run="77", round_number=1, mechanism=UPDATE)

    monkeypatch.setattr(Ledger, "_check", overtaken)
    with pytest.raises(AlreadyAnswered):
        ledger.charge(run="77", round_number=1, mechanism=UPDATE)
    assert len(ledger.releases()) == 1


def test_of_processes_that_are_asked_the_same_one_answers(tmp_path: Path) -> None:
    make(tmp_path, epsilon=5.0)
    command = [sys.executable, "-c", CHARGING, *map(str, files(tmp_path)), "10", "same"]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    charged = [int(process.communicate(timeout=100)[0]) for process in processes]
    assert sum(charged) == 10
    rounds = [release.round_number for release in Ledger.open(*files(tmp_path)).releases()]
    assert sorted(rounds) == list(range(10))
