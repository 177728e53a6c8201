"""Every evaluation protocol by name; a protocol's module is imported when it is asked for."""

from importlib import import_module

from metarec_shared.errors import SettingsError
from simulations.evaluation.protocol import EvaluationProtocol

PROTOCOLS = {
    "cold-user": "simulations.evaluation.cold_user:ColdUser",
    "cold-item": "simulations.evaluation.cold_item:ColdItem",
    "leave-one-out": "simulations.evaluation.leave_one_out:LeaveOneOut",
    "interest-drift": "simulations.evaluation.interest_drift:InterestDrift",
    "cross-domain": "simulations.evaluation.cross_domain:CrossDomain",
    "rating-quadrants": "simulations.evaluation.rating_quadrants:RatingQuadrants",
    "labelled-ranking": "simulations.evaluation.labelled_ranking:LabelledRanking",
}


def protocol_named(name: str) -> EvaluationProtocol:
    """Return a protocol.

    Raises:
        SettingsError: There is none of that name.
    """
    if name not in PROTOCOLS:
        raise SettingsError(f"there is no benchmark {name!r}; there are {', '.join(PROTOCOLS)}")
    module, _, attribute = PROTOCOLS[name].partition(":")
    made: EvaluationProtocol = getattr(import_module(module), attribute)()
    return made
