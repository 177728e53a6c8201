"""A learned meta-learner: a network reads the support set and writes the adaptation, without an inner gradient.

    z = mean over the support set of relu(W_1 e_s + c_1)         a set in, a vector out
    (gamma, beta) = W_2 z + c_2                                   the generated parameters
    h = h_0 + gamma o h_0 + beta                                  0 for an empty support set

W_2 and c_2 start at zero, so adaptation starts as nothing and is learned. Every support set is adapted to by the same
network, which meta-training trains with all else; a user's own gradient reaches it as it does any layer.

References:
    Requeima et al. (2019), Fast and flexible multi-task classification using conditional neural adaptive processes
    (CNAPs), section 3 (FiLM parameters generated from the support set). Perez et al. (2018), FiLM, equation 2.
    Zaheer et al. (2017), Deep sets, equation 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Hypernetwork(nn.Module):
    """Writes the adaptation of a user vector.

    Args:
        width: Of item vectors and user vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reads = nn.Linear(width, width)
        self.writes = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.writes.weight)
        nn.init.zeros_(self.writes.bias)

    def forward(
        self,
        h: Float[Tensor, "users width"],
        rows: Float[Tensor, "users support width"],
        counted: Float[Tensor, "users support"],
    ) -> Float[Tensor, "users width"]:
        """Return the adapted user vectors.

        Args:
            h: Where users start.
            rows: Vectors of their support items.
            counted: How often each of these counts, 0 for padding.
        """
        size = counted.sum(dim=1, keepdim=True)
        z = (torch.relu(self.reads(rows)) * counted[:, :, None]).sum(dim=1) / torch.where(size > 0, size, 1.0)
        gamma, beta = self.writes(z).chunk(2, dim=1)
        adapted: Tensor = h + (size > 0) * (gamma * h + beta)
        return adapted
