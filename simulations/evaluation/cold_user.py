"""The protocol cold-user: rank the whole catalogue for users never seen in training, by their first interactions."""

from pathlib import Path

from metarec_shared.errors import DataError
from metarec_shared.evaluation import batched, cold_user_tasks
from metarec_shared.population import Population
from metarec_shared.settings import Settings
from metarec_shared.sources import load_training_dataset
from metarec_shared.split import Role
from metarec_shared.tasks import Order
from simulations.evaluation.protocol import EvaluationProtocol, Say
from simulations.evaluation.ranking import Judged, K, RankingCell, RankingProblem, RankingTrial
from simulations.evaluation.ranking_methods import RANKING_METHODS
from simulations.protocols import orders_of

SUPPORTS = (1, 3, 5, 10)


class ColdUser(EvaluationProtocol):
    """Users are split by a keyed hash; a test user's first interactions are his support set, the next his query."""

    name = "cold-user"
    about = (
        "Test users were never seen in training. Of each one's interactions, in random or in time order, the first "
        "1, 3, 5 or 10 are the support set and the next 10 the query; the whole catalogue without the support set is "
        "ranked, and ties count as their average. nDCG has binary gain."
    )
    methods = tuple(RANKING_METHODS)
    shown = (f"ndcg@{K}", f"hr@{K}", f"recall@{K}")

    def open(self, settings: Settings, folder: Path, say: Say) -> RankingTrial:
        """Split users and draw tasks."""
        dataset = load_training_dataset(settings)
        population = Population.of(dataset.interactions, dataset.rating_scale, settings.run.seed)
        cells = [cell for cell in cold_user_cells(population, settings) if len(cell.validation) and len(cell.test)]
        if not cells:
            raise DataError(f"{dataset.name}: no validation and test users have two interactions or more")
        problem = RankingProblem.of_training_items(settings, folder, say, population, cells)
        return RankingTrial(problem, RANKING_METHODS)


def cold_user_cells(population: Population, settings: Settings) -> list[RankingCell]:
    """Return a cell for every order and size of support sets; users with too few interactions enter none."""
    return [
        RankingCell(
            name=f"{order}-{support}",
            validation=_judged(population, settings, Role.VALIDATION, order, support),
            test=_judged(population, settings, Role.TEST, order, support),
        )
        for order in orders_of(population.interactions)
        for support in SUPPORTS
    ]


def _judged(population: Population, settings: Settings, role: Role, order: Order, support: int) -> Judged:
    users = population.judged(role, settings.evaluation.users)
    scale = population.rating_scale
    return Judged(batches=batched(cold_user_tasks(population, users, order, support, settings.evaluation.query, scale)))
