"""ANIL: almost no inner loop. Features are reused as they are; only the last layer is adapted.

    score = <user's last layer, features of the item>

The last layer over item features is the user vector, or one layer earlier the linear map that writes it. So where no
more than these is adapted MAML is ANIL already, and its gradient is MAML's; this learner refuses to adapt more.

References:
    Raghu, Raghu, Bengio and Vinyals (2020), Rapid learning or feature reuse? Towards understanding the effectiveness of
    MAML, section 4.
"""

from metarec_shared.meta_learning.maml import Maml


class Anil(Maml):
    """MAML on the last layer."""
