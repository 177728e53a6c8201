"""The ClientApp: answers the server's messages about the users of one node."""

import logging

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.consent import check_catalogue, check_own_items
from client.data_source import load_node, load_target, site_settings
from client.learner import Learner
from client.limits import check_limits
from client.meta_update import evaluate_nodes, meta_update
from client.moments import moments_of
from client.node import Nodes, enroll
from client.privacy.policy import site_guard, site_policy
from client.rating_learner import RatingLearner
from metarec_shared import wire
from metarec_shared.errors import MetaRecError, NodeError, Refusal, WireError
from metarec_shared.exchange import EnrollmentRequest, EvaluateRequest, MomentsRequest, TrainRequest
from metarec_shared.randomness import generator
from metarec_shared.settings import Settings

logger = logging.getLogger(__name__)

app = ClientApp()


def public_reason(error: Exception, *, deployed: bool = False) -> str:
    """Return what the server may be told of an error.

    Our own errors name no user and no interaction. Those of reading data quote a line of it, and those of files name
    paths: a deployed node tells what it refuses and what was wrong with the message. Others may quote anything.
    """
    told = isinstance(error, (Refusal, WireError, NodeError) if deployed else MetaRecError)
    return str(error) if told else f"{type(error).__name__}, see the node's log"


def _load(message: Message, context: Context) -> tuple[Learner | RatingLearner, Nodes]:
    run_settings = Settings().with_values(context.run_config, "run configuration")
    settings = site_settings(run_settings, context.node_config)
    if "data-path" not in context.node_config:
        return load_target(settings), load_node(settings, context.node_config, context.node_id)
    path, policy = site_policy(context.node_config)
    policy.check_kind(message.metadata.message_type)
    check_limits(run_settings)
    check_catalogue(context.node_config)
    check_own_items(context.node_config, run_settings)
    learner = load_target(settings)
    guard = site_guard(policy, path, settings, learner.released, str(context.run_id))
    node = load_node(settings, context.node_config, context.node_id, guard)
    if isinstance(learner, Learner) and settings.federation.own_catalogues:
        learner.keep_bias(node)
    return learner, node


def answer(learner: Learner | RatingLearner, nodes: Nodes, content: RecordDict, kind: str) -> RecordDict:
    """Answer a message on behalf of ``nodes``, folded into one; the ClientApp is the case of one node.

    Args:
        learner: Model and settings.
        nodes: Who answers.
        content: The message's.
        kind: The message's type.
    """
    match kind:
        case "query":
            request = wire.unpack_request(EnrollmentRequest, content)
            learner.check_catalogue(request.catalogue)
            ratings, own = isinstance(learner, RatingLearner), learner.settings.federation.own_catalogues
            items, popularity = (0, False) if own else (learner.items, request.popularity)
            return wire.pack_enrollment(enroll(nodes, items, popularity=popularity, ratings=ratings))
        case "query.moments":
            wanted = wire.unpack_request(MomentsRequest, content)
            learner.check_catalogue(wanted.catalogue)
            if learner.settings.federation.own_catalogues:
                raise NodeError("moments of tasks have a row an item, and this run is of nodes with items of their own")
            if isinstance(learner, RatingLearner):
                raise NodeError("second moments are for model.target = ranking, got rating")
            return wire.pack_moments(moments_of(learner, nodes, wanted))
        case "train":
            train = wire.unpack_request(TrainRequest, content)
            update = meta_update(learner, wire.request_parameters(content), nodes, train)
            rounding = generator(learner.settings.run.seed, "rounding", train.round_number, str(nodes.names[0]))
            return wire.pack_meta_update(update, learner.settings.traffic.update_bits, rounding)
        case _:
            judge = wire.unpack_request(EvaluateRequest, content)
            parameters = wire.request_parameters(content)
            additions = wire.request_additions(content, judge.cells, learner.items)
            return wire.pack_evaluation(evaluate_nodes(learner, parameters, nodes, judge, additions))


@app.query()
@app.query("moments")
@app.train()
@app.evaluate()
def handle(message: Message, context: Context) -> Message:
    """Answer a message of any kind.

    A refusal is an answer too: the server is told which node refuses and why.

    Raises:
        MetaRecError: Anything went wrong; what an error that is not ours says stays in the node's own log.
    """
    try:
        learner, node = _load(message, context)
        return Message(answer(learner, node, message.content, message.metadata.message_type), reply_to=message)
    except Refusal as refusal:
        logger.warning("refused a message of type %s: %s", message.metadata.message_type, refusal)
        return Message(wire.pack_refusal(refusal), reply_to=message)
    except Exception as error:
        reason = public_reason(error, deployed="data-path" in context.node_config)
        if isinstance(error, MetaRecError) and reason == str(error):
            raise
        logger.exception("a message of type %s could not be answered", message.metadata.message_type)
        raise MetaRecError(reason) from None
