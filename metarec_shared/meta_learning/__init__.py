"""The meta-learning family, a file each, chosen by ``adaptation.method``; additions to any in files of their own.

| method | adapts by | the meta-initialization learns from |
|---|---|---|
| meta-sgd | gradient steps, learned rates | the query loss, through the steps |
| maml | gradient steps | the query loss, through the steps |
| fomaml | gradient steps | the query loss where they ended |
| anil | gradient steps of the last layer alone | the query loss, through the steps |
| reptile | gradient steps | all losses on the way |
| proximal | steps near the initialization | the query loss, through the solution |
| hypernetwork | what a network writes | the query loss, through the network |

Additions: pseudo-labels (``self_training``), perturbed support items (``adversarial``).
"""

from metarec_shared.meta_learning.anil import Anil
from metarec_shared.meta_learning.fomaml import Fomaml
from metarec_shared.meta_learning.maml import Maml
from metarec_shared.meta_learning.meta_learner import Backward, MetaLearner
from metarec_shared.meta_learning.meta_sgd import MetaSgd
from metarec_shared.meta_learning.proximal import Proximal
from metarec_shared.meta_learning.reptile import Reptile
from metarec_shared.settings import AdaptationSettings

__all__ = ["Backward", "MetaLearner", "build_meta_learner"]


def build_meta_learner(settings: AdaptationSettings) -> MetaLearner:
    """Return the meta-learner that the settings name.

    A hypernetwork takes no steps, and the query loss after none is the same for all: MAML's.
    """
    match settings.method:
        case "meta-sgd":
            return MetaSgd()
        case "maml" | "hypernetwork":
            return Maml()
        case "fomaml":
            return Fomaml()
        case "anil":
            return Anil()
        case "reptile":
            return Reptile()
        case "proximal":
            return Proximal(settings.proximal)
