"""The ensemble teacher: a weighted mean of the logits of several teachers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.fit import task_loss
from mmpkd.near_names import near
from mmpkd.scoring import classify
from mmpkd.teachers.teacher import CompositeParams, Teacher
from mmpkd.teachers.training import one_thread
from mmpkd.types import Mistake, Offer, TeacherError, TeacherOutput


class EnsembleParams(CompositeParams):
    # How members are weighted: equally, with given weights, with learned weights, or with learned weights that shift
    # with the confidence of each member in each sample. There are at least two members.
    weights: Literal["equal", "learned", "learned_per_sample"] | dict[str, Annotated[float, Field(gt=0)]] = "equal"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.members) < 2:
            raise ValueError(f"an ensemble has at least two `members`, got {len(self.members)}")
        return self


class Ensemble(Teacher):
    """Weighted mean of its members' logits (members of several sizes and modalities: MIND, arXiv 2502.01158).

    Weights are not negative and sum to 1. A member without logits for a sample (NaN) is left out of the mean for this
    sample, and the weights of the other members grow in proportion. A mean of logits is, up to its scale, the geometric
    mean of the members' odds. The members are fitted separately, and their cached logits are read. So `learned`
    weights, which minimise the task loss over training samples, are fitted to out-of-fold logits. This is ordinary
    stacking (Wolpert 1992). So even when the weights are fitted without one fold, the logits of the other folds come
    from models that have seen the labels of this fold. `learned_per_sample` multiplies the weight of a member for a
    sample by exp(-b H), where H is the entropy of the member's prediction in nats and b >= 0 is learned: a more
    confident member counts for more. The embeddings of members lie in different spaces, so an ensemble offers only
    logits.
    """

    Params = EnsembleParams
    VERSION = 1
    LEAKAGE_REMEDY = "Leave out the member that states it"

    def __init__(self, params: EnsembleParams, facts: Facts) -> None:
        self.params = params
        self.tasks = facts.tasks

    @staticmethod
    def check(params: EnsembleParams, facts: Facts) -> list[Mistake]:
        """Returns what is wrong with the weights, under paths relative to `params`."""
        if not isinstance(params.weights, dict):
            return []
        unknown, missing = params.weights.keys() - params.members.keys(), params.members.keys() - params.weights.keys()
        mistakes = [
            Mistake(f"weights.{name}", f"no member has this name{near(name, params.members)}") for name in unknown
        ]
        problem = "missing: give a weight to every member, or leave `weights` out"
        return mistakes + [Mistake(f"weights.{name}", problem) for name in missing]

    @staticmethod
    def offers(params: EnsembleParams, facts: Facts) -> Offer:
        return Offer(frozenset({"logits"}))

    @staticmethod
    def outline(params: EnsembleParams, facts: Facts) -> str:
        weights = params.weights if isinstance(params.weights, str) else "given"
        return f"of {', '.join(params.members)}; weights: {weights}"

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Learns the weights, if they are to be learned, from the members' logits of the samples at `rows`.

        Raises:
            TeacherError: no member has logits for any of these samples.
        """
        from scipy.optimize import minimize

        weights = self.params.weights
        initial = [weights[name] if isinstance(weights, dict) else 1.0 for name in self.params.members]
        # (M + 1) numbers: the log weights of the members, and b.
        self.parameters = torch.tensor([*np.log(initial), 0.0], dtype=torch.float64)
        if isinstance(weights, dict) or weights == "equal":
            return
        logits_MNK, entropy_MN = self._member_outputs(rows)
        covered_N = logits_MNK.isfinite().all(dim=2).any(dim=0)
        if not covered_N.any():
            raise TeacherError(
                "no member has logits for any training sample of a fold: give the members other inputs, "
                "or leave this ensemble out"
            )
        logits_MNK, entropy_MN = logits_MNK[:, covered_N], entropy_MN[:, covered_N]
        target_NK, known_NK = (
            torch.from_numpy(values[rows])[covered_N] for values in (store.target_NK, store.known_NK)
        )

        def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            free = torch.tensor(parameters, requires_grad=True)
            value = task_loss(combine(logits_MNK, entropy_MN, free), target_NK, known_NK, self.tasks)
            value.backward()
            assert free.grad is not None
            return value.item(), free.grad.numpy()

        max_b = 20.0 if weights == "learned_per_sample" else 0.0
        bounds = [(-10.0, 10.0)] * len(logits_MNK) + [(0.0, max_b)]
        solution = minimize(loss, self.parameters.numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
        self.parameters = torch.from_numpy(solution.x)

    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Returns logits (n, K), float32, of the samples at `rows`; NaN where no member has logits."""
        return TeacherOutput(combine(*self._member_outputs(rows), self.parameters).float())

    def _member_outputs(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns the members' logits (M, n, K) and their entropies (M, n); NaN where a member has no logits."""
        logits = [self.member_logits[name][rows] for name in self.params.members]
        entropies = [classify.entropy(logits_NK, self.tasks) for logits_NK in logits]
        return torch.from_numpy(np.stack(logits)).double(), torch.from_numpy(np.stack(entropies))


def combine(logits_MNK: Tensor, entropy_MN: Tensor, parameters: Tensor) -> Tensor:
    """Returns for each sample the weighted mean (N, K) over the members that have logits; NaN if no member has.

    Args:
        parameters: M log weights, defined up to a common constant, followed by b.
    """
    covered_MN = logits_MNK.isfinite().all(dim=2)
    score_MN = parameters[:-1, None] - parameters[-1] * entropy_MN.nan_to_num()
    weight_MN = score_MN.masked_fill(~covered_MN, -torch.inf).softmax(dim=0)  # NaN where no member has logits
    weighted_MNK = weight_MN[..., None] * logits_MNK.masked_fill(~covered_MN[..., None], 0.0)
    return weighted_MNK.sum(dim=0)
