"""Second moments of users' tasks: what a node tells of its users for the task regression, where nobody guards them."""

from client.learner import Learner
from client.node import Nodes
from metarec_shared.errors import Refusal
from metarec_shared.exchange import Moments, MomentsRequest
from metarec_shared.split import Role
from metarec_shared.start_prior import start_counts
from metarec_shared.task_regression import discounted_moments, task_moments


def moments_of(learner: Learner, nodes: Nodes, request: MomentsRequest) -> Moments:
    """Add up the second moments of the tasks of the meta-training users of ``nodes``.

    Raises:
        Refusal: The users' privacy is guarded, and moments are not noised.
    """
    if nodes.guard is not None:
        raise Refusal("second moments of users' tasks are not noised, so they are not released")
    items, histories, sizes = learner.items, nodes.population.interactions, learner.settings
    users = nodes.users[nodes.users_in(Role.TRAINING)]
    timed = users if histories.has_time else users[:0]
    support = sizes.regression.support or sizes.tasks.support
    return Moments(
        moments={
            "random": task_moments(histories, items, users=users, support=support),
            "time": discounted_moments(histories, items, users=timed, decay=sizes.regression.decay),
        },
        starts=start_counts(histories, items, users=timed, sizes=request.start_sizes, query=sizes.evaluation.query),
        nodes=len(nodes),
    )
