"""The rating model: item vectors such that whoever is new is folded in well from his few ratings.

    rating(u, i) = middle + mean + b_i + c . t_i + f_i . w_u,    f_i = [1, W t_i + v_i]
    w_u = argmin_w  sum over the support set (r_i - rating without w - f_i . w)^2  +  sum_k exp(p_k) w_k^2

t_i is the public text of item i, middle that of the rating scale. mean is that of all training ratings where nodes may
say it, else it is learned. b_i and v_i are the item's own: they start at zero,
so an item nobody rated is predicted from its text, and in some tasks they are hidden, so that text learns to stand
alone. w_u is a ridge regression in closed form, with a learned penalty; it is the inner loop, and is differentiated
through.
Beside that, a user may like texts in ways no feature holds: with ``rating.user-kernel`` s, predictions for him have a
second part, g_u(t_i), and the sum above a second penalty, that of a regression with the kernel s^2 exp(-d^2 / m) on
text. That part is for predictions alone: meta-training goes without it, so that the features hold what they can.
A user's loss is the sum of squared errors on the query set, over the largest one's size: so every rating that is asked
for weighs the same, as in a matrix factorization. The outer gradient is a sum over users, so a federation can learn the
model.

References:
    Bertinetto, Henriques, Torr and Vedaldi (2019), Meta-learning with differentiable closed-form solvers, equations 4
    to 6.
    Rasmussen and Williams (2006), Gaussian processes for machine learning, equations 2.25 (the kernel regression) and
    2.40 (one with linear features beside the kernel).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from metarec_shared.catalogue import Catalogue
from metarec_shared.content_kernel import content_kernel
from metarec_shared.dataset import RatingScale
from metarec_shared.item_content import with_content
from metarec_shared.meta_gradient import MetaGradient, clip_factors
from metarec_shared.metrics import mean_absolute_error, root_mean_square_error
from metarec_shared.rating_tasks import RatingTasks, middle
from metarec_shared.settings import RatingSettings

RatingBatch = tuple[RatingTasks, Float[Tensor, " users"]]
"""Tasks, and the weight of each user's loss."""

_FIRST_SCALE = 0.1
_FIRST_LOG_PENALTY = 1.0
_USERS_CLIPPED_AT_ONCE = 16
_NOISE = 1.0


class RatingModel(nn.Module):
    """Everything about items that users' ratings depend on, and the penalty of a user's vector.

    Ratings are relative to the middle of their scale throughout.

    Args:
        text: Frozen vectors of the catalogue's texts. They are public and never travel as parameters.
        settings: Width, and how tasks are penalized.
    """

    text: Tensor

    def __init__(self, text: Float[Tensor, "items text"], settings: RatingSettings) -> None:
        super().__init__()
        items, size = text.shape
        self.settings = settings
        self.register_buffer("text", text, persistent=False)
        self.apart = max(2.0 * float(text.double().var(dim=0, correction=0).sum()), 1e-12)
        self.mean = nn.Parameter(torch.zeros(1))
        self.item_bias = nn.Parameter(torch.zeros(items))
        self.item_ids = nn.Parameter(torch.zeros(items, settings.width))
        self.text_bias = nn.Parameter(torch.zeros(size))
        self.projection = nn.Parameter(_FIRST_SCALE * torch.randn(size, settings.width))
        self.log_penalty = nn.Parameter(torch.full((settings.width + 1,), _FIRST_LOG_PENALTY))

    @classmethod
    def over(
        cls,
        catalogue: Catalogue,
        text: Float[Tensor, "items text"],
        positions: NDArray[np.int64],
        settings: RatingSettings,
    ) -> "RatingModel":
        """Return a model over some of a catalogue's items, which are described by their text and what that says.

        Args:
            catalogue: All items: what the words and years of a part are does not depend on the part.
            text: Their text vectors.
            positions: Which of them.
            settings: Of the model.
        """
        described = with_content(text, catalogue) if settings.content else text
        return cls(described[torch.from_numpy(positions)], settings)

    def items(
        self, positions: Int[Tensor, "users rows"], heard: Bool[Tensor, " users"]
    ) -> tuple[Float[Tensor, "users rows"], Float[Tensor, "users rows width"]]:
        """Return base and features of items; where not ``heard``, without what is their own."""
        text = self.text[positions]
        own = heard[:, None].to(text.dtype)
        base = self.mean + text @ self.text_bias + self.item_bias[positions] * own
        features = text @ self.projection + self.item_ids[positions] * own[:, :, None]
        return base, F.pad(features, (1, 0), value=1.0)

    def catalogue(self) -> tuple[Float[Tensor, " items"], Float[Tensor, "items width"]]:
        """Return base and features of every item."""
        everything = torch.arange(len(self.text), device=self.text.device)[None]
        with torch.no_grad():
            base, features = self.items(everything, torch.ones(1, dtype=torch.bool, device=self.text.device))
        return base[0], features[0]

    def alike(self, positions: Int[Tensor, "users rows"]) -> Float[Tensor, "users rows rows"]:
        """Return how alike the texts of items are, exp(-d^2 / m), with m the mean squared distance of two items."""
        text = self.text[positions]
        return torch.exp(-torch.cdist(text, text, compute_mode="donot_use_mm_for_euclid_dist").square() / self.apart)

    def tell(self, share: float) -> None:
        """Give items that have nothing of their own what items of similar text have, in part.

        What is expected of them is then ``share`` times a kernel regression on text, of bias and features of the items
        that do have something of their own, and the rest what it was, linear in text. The kernel is exp(-d^2 / m), with
        m the mean squared distance of two items.

        Args:
            share: From 0, where nothing is done, to 1.
        """
        own = torch.cat([self.item_bias[:, None], self.item_ids], dim=1).detach()
        heard = own.any(dim=1).cpu()
        if not share or heard.all() or not heard.any():
            return
        linear = torch.cat([(self.text @ self.text_bias)[:, None], self.text @ self.projection], dim=1).detach()
        text, targets = self.text.double().cpu().numpy(), (linear + own)[heard].double().cpu().numpy()
        counts = heard.numpy().astype(np.float64)
        kernel = content_kernel(text, counts, gamma=1.0 / self.apart, noise=_NOISE, few=0.0)
        mean = targets.mean(axis=0)
        told = torch.from_numpy(mean + kernel.predict(targets - mean)).to(linear)
        filled = torch.where(heard.to(own.device)[:, None], own, share * (told - linear))
        with torch.no_grad():
            self.item_bias.copy_(filled[:, 0])
            self.item_ids.copy_(filled[:, 1:])

    def forward(self, tasks: RatingTasks, *, adapt: bool = True) -> Float[Tensor, "users rows"]:
        """Return the ratings expected of every row, after the users' vectors were found on their support sets.

        Args:
            tasks: Whose.
            adapt: Whether users have vectors; without, what is expected of a user nobody knows.
        """
        base, features = self.items(tasks.items, tasks.heard)
        if not adapt:
            return base
        targets, penalty = tasks.ratings - base, self.log_penalty.exp()
        if not self.settings.user_kernel:
            return base + _ridge_predictions(features, targets, tasks.support, penalty)
        kernel = self.settings.user_kernel**2 * self.alike(tasks.items)
        return base + kernel_ridge_predictions(features, targets, tasks.support, penalty, kernel)

    def losses(self, tasks: RatingTasks) -> Float[Tensor, " users"]:
        """Return each user's meta-loss: squared errors on the query set, and the decay; 0 without a task.

        The errors are summed over the largest query set's size. The decay is ``decay`` times the squared length of what
        is the items' own, summed over the largest task's size, and ``text_decay`` times that of what text says of
        their bias.
        """
        limits, given = self.settings, tasks.support | tasks.query
        base, features = self.items(tasks.items, tasks.heard)
        targets = tasks.ratings - base
        predicted = _ridge_predictions(features, targets, tasks.support, self.log_penalty.exp())
        errors: Tensor = ((predicted - targets).square() * tasks.query).sum(dim=1) / limits.query
        own = self.item_ids[tasks.items].square().sum(dim=2) + self.item_bias[tasks.items].square()
        decay: Tensor = limits.decay * (own * given).sum(dim=1) / (limits.support + limits.query)
        return errors + decay + limits.text_decay * self.text_bias.square().sum() * given.any(dim=1)


def ridge_vectors(
    features: Float[Tensor, "users rows width"],
    targets: Float[Tensor, "users rows"],
    mask: Bool[Tensor, "users rows"],
    penalty: Float[Tensor, " width"],
) -> Float[Tensor, "users width"]:
    """Return each user's ridge regression on the rows in ``mask``, differentiable in everything."""
    masked = features * mask[:, :, None]
    gram = masked.mT @ masked + penalty.diag()
    moment = masked.mT @ (targets * mask)[:, :, None]
    return torch.cholesky_solve(moment, torch.linalg.cholesky(gram))[:, :, 0]


def kernel_ridge_predictions(
    features: Float[Tensor, "users rows width"],
    targets: Float[Tensor, "users rows"],
    mask: Bool[Tensor, "users rows"],
    penalty: Float[Tensor, " width"],
    kernel: Float[Tensor, "users rows rows"],
) -> Float[Tensor, "users rows"]:
    """Return what each user's regression on the rows in ``mask`` expects of every row.

    It is a ridge regression on the features plus a function of the kernel's reproducing space, whose squared norm is
    penalized too. In dual form: with ``K`` the inner products of features over their penalty, plus the kernel, and
    ``s`` the rows in the mask, ``K_.s (K_ss + I)^-1 y_s``.

    Args:
        features: Of each row.
        targets: What is regressed.
        mask: Rows that are known.
        penalty: Of each feature's squared coefficient, above 0.
        kernel: Inner products of that space.
    """
    inner = (features / penalty) @ features.mT + kernel
    known = mask.to(inner.dtype)
    gram = inner * known[:, :, None] * known[:, None, :] + torch.eye(mask.shape[1], dtype=inner.dtype).to(inner.device)
    dual = torch.cholesky_solve((targets * known)[:, :, None], torch.linalg.cholesky(gram))
    return (inner @ dual)[:, :, 0]


def _ridge_predictions(
    features: Float[Tensor, "users rows width"],
    targets: Float[Tensor, "users rows"],
    mask: Bool[Tensor, "users rows"],
    penalty: Float[Tensor, " width"],
) -> Float[Tensor, "users rows"]:
    vectors = ridge_vectors(features, targets, mask, penalty)
    return (features @ vectors[:, :, None])[:, :, 0]


def rating_meta_gradient(
    model: RatingModel,
    batches: Iterable[RatingBatch],
    *,
    clip_norm: float = 0.0,
    released: Sequence[str] | None = None,
) -> MetaGradient:
    """Return the meta-gradient summed over the users of all ``batches`` with their weights.

    Args:
        model: At the meta-initialization.
        batches: The cohort.
        clip_norm: Largest norm of a user's gradient over all released parameters; 0: nobody is clipped. A user whose
            gradient is not finite then contributes nothing.
        released: Names of the parameters to differentiate in; None: all.
    """
    parameters = {name: p for name, p in model.named_parameters() if released is None or name in released}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses, norms = [torch.zeros(0, device=model.text.device)], []
    for tasks, weights in batches:
        if clip_norm:
            each = per_user_rating_gradients(model, tasks, released)
            squares = torch.stack([g.flatten(1).square().sum(dim=1) for g in each.gradients.values()]).sum(dim=0)
            factors = clip_factors(squares, clip_norm) * weights
            for name, gradient in each.gradients.items():
                finite = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                total[name] += torch.tensordot(factors, finite, dims=1)
            losses.append(torch.where(squares.isfinite(), each.losses, 0.0))
            norms.append(squares.sqrt())
            continue
        with torch.enable_grad():
            batch = model.losses(tasks)
            found = torch.autograd.grad((batch * weights).sum(), list(parameters.values()), allow_unused=True)
        for name, part in zip(parameters, found, strict=True):
            total[name] += 0.0 if part is None else part
        losses.append(batch.detach())
    return MetaGradient(gradients=total, losses=torch.cat(losses), norms=torch.cat(norms) if norms else None)


def per_user_rating_gradients(
    model: RatingModel, tasks: RatingTasks, released: Sequence[str] | None = None
) -> MetaGradient:
    """Return every user's own meta-gradient, [users, *shape of the parameter]."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    wanted = {name: value for name, value in parameters.items() if released is None or name in released}

    def loss_of_one(own: dict[str, Tensor], task: dict[str, Tensor]) -> Tensor:
        one = RatingTasks(**{name: value[None] for name, value in task.items()})
        losses: Tensor = functional_call(_Losses(model), {f"model.{n}": v for n, v in (parameters | own).items()}, one)
        return losses[0]

    gradients, losses = vmap(grad_and_value(loss_of_one), in_dims=(None, 0), chunk_size=_USERS_CLIPPED_AT_ONCE)(
        wanted, tasks.tensors()
    )
    return MetaGradient(gradients=gradients, losses=losses)


class _Losses(nn.Module):
    """The model's losses as a forward pass, which is what ``functional_call`` calls."""

    def __init__(self, model: RatingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tasks: RatingTasks) -> Tensor:
        return self.model.losses(tasks)


def rating_errors(
    model: RatingModel, tasks: RatingTasks, scale: RatingScale | None, *, adapt: bool = True
) -> dict[str, Float[Tensor, " users"]]:
    """Return ``mae`` and ``rmse`` of every user's query set; predictions are clipped to the scale.

    Raises:
        DataError: There is no scale.
    """
    centre = middle(scale)
    assert scale is not None
    with torch.no_grad():
        predicted = model(tasks, adapt=adapt).clamp(scale.low - centre, scale.high - centre).double()
    rated = tasks.ratings.double()
    return {
        "mae": mean_absolute_error(predicted, rated, tasks.query),
        "rmse": root_mean_square_error(predicted, rated, tasks.query),
    }
