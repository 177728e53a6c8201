"""Meta-SGD: MAML whose inner learning rates are meta-learned, a vector of them a step.

    h_{k+1} = h_k - a_k o g(h_k),    (theta, a) <- (theta, a) - outer learning rate * dL_query(h_K) / d(theta, a)

References:
    Li, Zhou, Chen and Li (2017), Meta-SGD: learning to learn quickly for few-shot learning, equations 2 and 3.
    Antoniou, Edwards and Storkey (2019), How to train your MAML, section 4 (rates of their own for each step).
"""

from metarec_shared.meta_learning.maml import Maml


class MetaSgd(Maml):
    """Second order, learned inner learning rates."""

    learned_rates = True
