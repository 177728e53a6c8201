"""The protocols cold-item, interest-drift and cross-domain: who sees what, and what is ranked."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from metarec_shared.checkpoint import load_checkpoint
from metarec_shared.dataset import Dataset
from metarec_shared.errors import DataError, SettingsError
from metarec_shared.item_vectors import ItemVectors, write_item_vectors
from metarec_shared.packed import write_packed
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_dataset
from metarec_shared.split import Role
from metarec_shared.tasks import TaskBatch
from metarec_shared.text_kernel import TextKernel
from simulations.baselines.reconstruction import ReconstructionSettings
from simulations.evaluation import cross_domain, ranking_methods
from simulations.evaluation.benchmark import run_benchmark
from simulations.evaluation.cold_item import ColdItem, ColdItemTrial
from simulations.evaluation.cold_user import ColdUser
from simulations.evaluation.cross_domain import CrossDomain, CrossDomainTrial
from simulations.evaluation.interest_drift import InterestDrift
from simulations.evaluation.ranking import Judged, RankingTrial
from tests.small import small_settings

SIZES = {"generator__users": 200, "generator__items": 80, "generator__interactions": 24, "evaluation__query": 5}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def settings() -> Settings:
    return small_settings(**SIZES)


@pytest.fixture(scope="module")
def population(settings: Settings) -> Population:
    dataset = load_dataset(settings)
    return Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)


def supports(batch: TaskBatch) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(batch.support, batch.support_mask, strict=True)]


def queries(batch: TaskBatch) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(batch.query, batch.query_mask, strict=True)]


def histories_of(population: Population, role: Role) -> list[list[int]]:
    return [population.interactions.history(int(user)).tolist() for user in population.users(role)]


@pytest.fixture(scope="module")
def cold_items(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> ColdItemTrial:
    return ColdItem().open(settings, tmp_path_factory.mktemp("cold-item"), quiet)


class TestColdItem:
    def test_no_meta_training_user_has_a_cold_item_and_nothing_else_is_gone(
        self, cold_items: ColdItemTrial, population: Population
    ) -> None:
        cold = set(cold_items.cold.nonzero()[:, 0].tolist())
        assert 0 < len(cold) < 20
        found = [cold_items.problem.train.history(user).tolist() for user in range(len(cold_items.problem.train))]
        whole = histories_of(population, Role.TRAINING)
        assert any(set(history) & cold for history in whole)
        assert found == [[item for item in history if item not in cold] for history in whole]

    def test_cold_items_are_the_query_and_never_in_the_support_set(
        self, cold_items: ColdItemTrial, population: Population
    ) -> None:
        cold = set(cold_items.cold.nonzero()[:, 0].tolist())
        batches = cold_items.problem.cells[0].test.batches
        wanted = [set(history) & cold for history in histories_of(population, Role.TEST)]
        assert [set(query) for batch in batches for query in queries(batch)] == [query for query in wanted if query]
        for batch in batches:
            for support in supports(batch):
                assert 0 < len(support) <= 4
                assert not set(support) & cold

    def test_one_cell_ranks_cold_items_and_the_other_all_but_the_support_set(self, cold_items: ColdItemTrial) -> None:
        among, full, everything = cold_items.problem.cells
        assert [cell.name for cell in cold_items.problem.cells] == ["cold-items", "full-catalogue", "all-items"]
        for place, batch in enumerate(among.test.batches):
            torch.testing.assert_close(
                among.test.excluded(place, 80), (~cold_items.cold).expand(len(batch), -1), check_stride=False
            )
            torch.testing.assert_close(full.test.excluded(place, 80), batch.known_mask(80))
            torch.testing.assert_close(everything.test.excluded(place, 80), batch.known_mask(80))

    def test_the_cell_all_items_asks_for_all_that_users_touched(
        self, cold_items: ColdItemTrial, population: Population
    ) -> None:
        everything = cold_items.problem.cells[2]
        for judged, role in ((everything.validation, Role.VALIDATION), (everything.test, Role.TEST)):
            touched = {frozenset(history) for history in histories_of(population, role)}
            for batch in judged.batches:
                for support, query in zip(supports(batch), queries(batch), strict=True):
                    assert {*support, *query} in touched
                    assert not set(support) & set(query)

    def test_what_knows_no_cold_item_is_at_chance_among_them(self, cold_items: ColdItemTrial) -> None:
        chance, ease = cold_items.figures("chance"), cold_items.figures("ease")
        assert ease["cold-items"] == pytest.approx(chance["cold-items"])
        assert ease["full-catalogue"]["ndcg@10"] < chance["full-catalogue"]["ndcg@10"]

    def test_regression_on_text_beats_chance_among_cold_items(self, cold_items: ColdItemTrial) -> None:
        chance = cold_items.figures("chance")["cold-items"]["ndcg@10"]
        assert cold_items.figures("tfidf-ridge")["cold-items"]["ndcg@10"] > 1.05 * chance

    def test_our_model_ranks_cold_items_with_each_encoder(self, cold_items: ColdItemTrial) -> None:
        figures = {
            name: cold_items.figures(name) for name in ("metarec", "metarec-random", "text-knn", "content-ridge")
        }
        assert {cell["users"] for found in figures.values() for cell in found.values()} == {
            len(cold_items.problem.cells[0].test)
        }
        assert len({found["cold-items"]["ndcg@10"] for found in figures.values()}) == len(figures)
        assert (cold_items.problem.folder / "metarec-random" / "model.safetensors").exists()

    def test_cold_items_get_what_their_text_speaks_for_and_no_id_vector(self, cold_items: ColdItemTrial) -> None:
        checkpoint = cold_items.trained("metarec", cold_items.problem.settings)
        model, known = cold_items.model(checkpoint), checkpoint.parameters["item_bias"]
        torch.testing.assert_close(model.item_bias[~cold_items.cold], known)
        assert known.min() < model.item_bias[cold_items.cold].min()
        assert model.item_bias[cold_items.cold].max() < known.max()
        assert model.item_ids is not None
        assert (model.item_ids[cold_items.cold] == 0).all()
        support = torch.from_numpy(checkpoint.items.positions)[None]
        for regression in model.regressions["random"]:
            predicted = regression.predictions(support, torch.ones_like(support, dtype=torch.bool))
            assert (predicted[0, cold_items.cold] != 0).all()


@pytest.fixture(scope="module")
def drift(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> RankingTrial:
    return InterestDrift().open(settings, tmp_path_factory.mktemp("drift"), quiet)


class TestInterestDrift:
    def test_the_support_set_is_a_users_first_items_or_those_before_the_query(
        self, drift: RankingTrial, population: Population
    ) -> None:
        early, recent = (cell.test.batches for cell in drift.problem.cells)
        long_enough = [history for history in histories_of(population, Role.TEST) if len(history) >= 13]
        assert 0 < len(long_enough) < len(histories_of(population, Role.TEST))
        assert [s for batch in early for s in supports(batch)] == [history[:4] for history in long_enough]
        assert [s for batch in recent for s in supports(batch)] == [history[-9:-5] for history in long_enough]
        for cell in (early, recent):
            assert [q for batch in cell for q in queries(batch)] == [history[-5:] for history in long_enough]

    def test_histories_are_read_in_time_and_the_newest_item_that_is_read_has_rank_1(self, drift: RankingTrial) -> None:
        for cell, expected in zip(
            drift.problem.cells, ([4, 3, 2, 1, 0, 0, 0, 0], [0, 0, 0, 0, 4, 3, 2, 1]), strict=True
        ):
            for batch in (*cell.validation.batches, *cell.test.batches):
                assert batch.in_time is not None
                assert batch.in_time.all()
                assert batch.from_start is not None
                assert batch.from_start.tolist() == [cell.name == "early"] * len(batch)
                assert batch.recency is not None
                assert batch.recency.tolist() == [expected] * len(batch)

    def test_both_cells_rank_the_same_items(self, drift: RankingTrial) -> None:
        early, recent = (cell.test for cell in drift.problem.cells)
        for place in range(len(early.batches)):
            torch.testing.assert_close(early.excluded(place, 80), recent.excluded(place, 80))
            assert (early.excluded(place, 80).sum(dim=1) == 8).all()

    def test_only_what_reads_the_support_set_tells_the_cells_apart(self, drift: RankingTrial) -> None:
        popularity, knn = drift.figures("popularity"), drift.figures("item-knn")
        assert popularity["early"] == popularity["recent"]
        assert knn["early"]["ndcg@10"] != knn["recent"]["ndcg@10"]

    def test_it_needs_time_and_long_histories(self, settings: Settings, tmp_path: Path) -> None:
        longer = replace(settings, evaluation=replace(settings.evaluation, support=60))
        with pytest.raises(DataError, match="the 125 interactions that two support sets and a query set take"):
            InterestDrift().open(longer, tmp_path, quiet)
        dataset = load_dataset(settings)
        write_packed(replace(dataset, interactions=replace(dataset.interactions, has_time=False)), tmp_path / "untimed")
        untimed = replace(settings, data=replace(settings.data, path=str(tmp_path / "untimed")))
        with pytest.raises(DataError, match="untimed: has no timestamps"):
            InterestDrift().open(untimed, tmp_path, quiet)


@pytest.fixture(scope="module")
def second(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    other = replace(settings, generator=replace(settings.generator, seed=9, items=50, users=150))
    folder = tmp_path_factory.mktemp("second") / "second"
    write_packed(load_dataset(other), folder)
    return folder, load_dataset(other)


@pytest.fixture(scope="module")
def crossing(
    settings: Settings, second: tuple[Path, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CrossDomainTrial]:
    onto = replace(settings, evaluation=replace(settings.evaluation, onto=str(second[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_domain, "SCRATCH_USERS", 60)
        yield CrossDomain().open(onto, tmp_path_factory.mktemp("cross-domain"), quiet)


class TestCrossDomain:
    def test_test_users_are_the_seconds_and_its_catalogue_is_ranked(
        self, crossing: CrossDomainTrial, second: tuple[Path, Dataset]
    ) -> None:
        dataset = second[1]
        population = Population.of(dataset.interactions, dataset.rating_scale, crossing.problem.settings.run.seed)
        tested = {frozenset(history) for history in histories_of(population, Role.TEST)}
        cell = next(cell for cell in crossing.problem.cells if cell.name == "random-3")
        assert crossing.problem.text.shape[0] == len(dataset.catalogue)
        for batch in cell.test.batches:
            for support, query in zip(supports(batch), queries(batch), strict=True):
                assert len(support) == 3
                assert any({*support, *query} <= history for history in tested)

    def test_further_item_vectors_stand_behind_those_of_the_text(
        self, settings: Settings, second: tuple[Path, Dataset], tmp_path: Path
    ) -> None:
        first, catalogue = load_dataset(settings).catalogue, second[1].catalogue
        ids = sorted({*first.item_ids, *catalogue.item_ids})
        values = torch.randn(len(ids), 3, generator=torch.Generator().manual_seed(0)).numpy()
        write_item_vectors(tmp_path / "further.npz", ItemVectors(item_ids=ids, values=values))
        further = settings.with_values({"data.item-vectors": str(tmp_path / "further.npz")}, "test")
        further = replace(further, evaluation=replace(further.evaluation, onto=str(second[0])))
        trial = CrossDomain().open(further, tmp_path, quiet)
        assert trial.scratch_settings.data.item_vectors == further.data.item_vectors
        text = trial.problem.text
        plain = (
            CrossDomain()
            .open(replace(further, data=replace(further.data, item_vectors="")), tmp_path, quiet)
            .problem.text
        )
        rows = [ids.index(item) for item in catalogue.item_ids]
        expected = (values - values.mean(axis=0)) / values.std(axis=0) / 3**0.5
        torch.testing.assert_close(text[:, : plain.shape[1]], plain)
        torch.testing.assert_close(text[:, plain.shape[1] :], torch.from_numpy(expected[rows]), atol=1e-5, rtol=1e-5)

    def test_from_scratch_gets_so_many_users_and_none_who_is_tested(
        self, crossing: CrossDomainTrial, second: tuple[Path, Dataset]
    ) -> None:
        found = load_dataset(crossing.scratch_settings)
        assert len(found.interactions) == 60
        dataset = second[1]
        population = Population.of(dataset.interactions, dataset.rating_scale, crossing.problem.settings.run.seed)
        tested = {str(dataset.interactions.user_ids[user]) for user in population.users(Role.TEST)}
        assert not {name.rpartition("~")[0] for name in found.interactions.user_ids.tolist()} & tested

    def test_what_is_transferred_never_trained_on_the_second(self, crossing: CrossDomainTrial) -> None:
        figures = {name: crossing.figures(name) for name in ("metarec", "from-scratch", "text-knn", "chance")}
        assert {frozenset(found) for found in figures.values()} == {frozenset(figures["chance"])}
        assert len({found["random-3"]["ndcg@10"] for found in figures.values()}) == 4
        checkpoint = crossing.trained("metarec", crossing.problem.settings)
        assert checkpoint.settings.data == crossing.problem.settings.data
        assert len(checkpoint.items.catalogue) == 80
        assert len(crossing.model(checkpoint).text) == 50

    def test_a_warm_start_begins_where_the_first_catalogue_ended(self, crossing: CrossDomainTrial) -> None:
        figures = {name: crossing.figures(name)["random-3"] for name in ("metarec", "from-scratch", "warm-start")}
        assert len({one["ndcg@10"] for one in figures.values()}) == 3
        first = crossing.trained("metarec", crossing.problem.settings)
        warm = load_checkpoint(crossing.problem.folder / "warm-start")
        assert warm.settings.run.init == str(crossing.problem.folder / "metarec")
        assert warm.settings.data == crossing.scratch_settings.data
        assert warm.settings.outer.learning_rate == 0.25 * first.settings.outer.learning_rate

    def test_the_text_kernel_alone_is_what_the_transferred_model_adds(self, crossing: CrossDomainTrial) -> None:
        model = crossing.model(crossing.trained("metarec", crossing.problem.settings))
        cell = next(cell for cell in crossing.problem.cells if cell.name == "random-3")
        batch = cell.test.batches[0]
        with torch.no_grad():
            whole = model(batch)
            kernel, model.text_kernel = model.text_kernel, None
            added = whole - model(batch)
        assert kernel is not None
        assert (kernel.least == 128.0).all()
        alone = TextKernel.over(model.text, kernel.sharpness).predictions(batch.support, batch.support_mask)
        weight = max(128.0, kernel.blends["random"][3])
        torch.testing.assert_close(added, weight * alone, atol=1e-4, rtol=1e-4)
        assert crossing.figures("text-kernel")["random-3"]["ndcg@10"] > 0

    def test_a_benchmark_is_of_both_data_sets(
        self, settings: Settings, second: tuple[Path, Dataset], tmp_path: Path
    ) -> None:
        onto = replace(settings, evaluation=replace(settings.evaluation, onto=str(second[0])))
        table = run_benchmark(CrossDomain(), onto, [0], ["chance", "text-knn"], tmp_path, quiet)
        assert table.dataset == "generated and second"
        assert list(table.figures) == ["text-knn", "chance"]

    def test_the_second_data_set_must_be_given(self, settings: Settings, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"needs the data of test users: --onto DIR"):
            run_benchmark(CrossDomain(), settings, [0], ["chance"], tmp_path, quiet)


def test_federated_and_factorizing_baselines_are_judged_with_the_others(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking_methods, "RECONSTRUCTION_RATES", (4.0,))
    monkeypatch.setattr(ranking_methods, "RECONSTRUCTION_LEARNING_RATES", (0.02,))
    short = partial(ReconstructionSettings, rounds=60, cohort=64, negatives=30)
    monkeypatch.setattr(ranking_methods, "ReconstructionSettings", short)
    monkeypatch.setattr(ranking_methods, "IALS_FACTORS", 8)
    trial = ColdUser().open(settings, tmp_path, quiet)
    chance = trial.figures("chance")["random-5"]
    for name in ("ials", "fedrecon"):
        assert trial.figures(name)["random-5"]["ndcg@10"] > 1.2 * chance["ndcg@10"], name
    averaged, tuned = trial.figures("fedavg")["random-5"], trial.figures("fedavg-tuned")["random-5"]
    assert averaged["ndcg@10"] > chance["ndcg@10"]
    assert tuned["ndcg@10"] != averaged["ndcg@10"]


def test_the_first_users_of_what_is_judged_keep_their_candidates(settings: Settings, tmp_path: Path) -> None:
    whole = ColdItem().open(settings, tmp_path, quiet).problem.cells[0].validation
    assert whole.candidates is not None
    batches = [whole.batches[0].rows(0, 5), whole.batches[0].rows(5, 9)]
    split = Judged(batches=batches, candidates=[whole.candidates[0][:5], whole.candidates[0][5:9]])
    few = split.first(7)
    assert [len(batch) for batch in few.batches] == [5, 2]
    assert len(few) == 7
    torch.testing.assert_close(few.excluded(1, 80), split.excluded(1, 80)[:2])
