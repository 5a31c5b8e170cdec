"""The ensemble teacher: what several teachers say, weighed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.optimize import minimize
from torch import Tensor

from mmpkd import teachers
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig, validate
from mmpkd.fit import task_loss
from mmpkd.near_names import near
from mmpkd.scoring import classify
from mmpkd.teachers.teacher import Size, Teacher, TeacherParams
from mmpkd.teachers.training import one_thread
from mmpkd.types import Mistake, Offer, TeacherError, TeacherOutput


class EnsembleParams(TeacherParams):
    members: dict[str, TeacherConfig]  # at least two, each as under `teachers`
    # One weight a member: equal, as given, or learnt; or learnt ones that a sample's own confidences shift.
    weights: Literal["equal", "learned", "learned_per_sample"] | dict[str, Annotated[float, Field(gt=0)]] = "equal"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.members) < 2:
            raise ValueError(f"an ensemble has at least two `members`, got {len(self.members)}")
        return self


class Ensemble(Teacher):
    """Weighted mean of its members' logits (of several sizes and modalities: MIND, arXiv 2502.01158).

    Weights are not negative and sum to 1; a member with nothing to say of a sample (NaN) is left out of
    it, and the others' weights grow in proportion. A mean of logits is, but for its scale, the geometric
    mean of the members' odds. The members are fitted apart, and their cached answers read: `members` is
    filled in by whoever holds the cache. So `learned` weights, which minimise the task loss over training
    samples, are fitted to out-of-fold logits: ordinary stacking (Wolpert 1992), in which the models behind those
    logits have seen the labels that the weights' own folds hold out. `learned_per_sample` multiplies member
    m's weight for a sample by exp(-b H), H the entropy (nats) of what it says there and b >= 0 learnt: the
    surer counts for more. Members' embeddings lie in different spaces, so only logits are offered.
    """

    Params = EnsembleParams
    VERSION = 1
    sees_view = False
    members: Mapping[str, NDArray[np.float32]]  # logits (N, K) of every sample of the store, by member
    member_quality: Mapping[str, float]  # `<member>/<score>`

    def __init__(self, params: EnsembleParams, facts: Facts) -> None:
        self.params = params
        self.tasks = facts.tasks

    @staticmethod
    def check(params: EnsembleParams, facts: Facts) -> list[Mistake]:
        """What is wrong with members and weights, under paths relative to `params`."""
        mistakes = []
        for name, member in params.members.items():
            where = f"members.{name}"
            mistakes += teachers.check_name(name, where)
            if member.control is not None:
                mistakes.append(Mistake(f"{where}.control", "a member takes none; set the ensemble's own"))
            mistakes += [Mistake(f"{where}.{path}", problem) for path, problem in teachers.check(member, facts)[0]]
            if member.kind in teachers.TEACHERS and teachers.TEACHERS[member.kind].sees_view:
                problem = f"{member.kind!r} answers anew about each view that the student sees; members answer once"
                mistakes.append(Mistake(f"{where}.kind", problem))
        if isinstance(params.weights, dict):
            for name in params.weights.keys() - params.members.keys():
                mistakes.append(Mistake(f"weights.{name}", f"no member is named so{near(name, params.members)}"))
            for name in params.members.keys() - params.weights.keys():
                mistakes.append(Mistake(f"weights.{name}", "missing: each member has a weight, or none has"))
        return mistakes

    @staticmethod
    def caveats(params: EnsembleParams, facts: Facts) -> list[str]:
        return [
            f"member {name} {one}" for name, member in params.members.items() for one in teachers.caveats(member, facts)
        ]

    @staticmethod
    def offers(params: EnsembleParams, facts: Facts) -> Offer:
        return Offer(frozenset({"logits"}))

    @staticmethod
    def sized(params: EnsembleParams, student: Size) -> dict[str, Any]:
        members = {name: teachers.sized_teacher(one, student) for name, one in params.members.items()}
        return (
            {} if members == params.members else {"members": {name: one.model_dump() for name, one in members.items()}}
        )

    @staticmethod
    def outline(params: EnsembleParams, facts: Facts) -> str:
        weights = params.weights if isinstance(params.weights, str) else "given"
        return f"of {', '.join(params.members)}; weights: {weights}"

    @staticmethod
    def sources(params: EnsembleParams) -> dict[str, Any]:
        found = {}
        for name, member in params.members.items():
            kind = teachers.TEACHERS[member.kind]
            found[name] = {"version": kind.VERSION, "sources": kind.sources(validate(kind.Params, member.params))}
        return found

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Learn the weights, if they are to be learnt, from the members' logits of the samples at `rows`.

        Raises:
            TeacherError: no member says anything of these samples.
        """
        chosen = self.params.weights
        given = [chosen[name] if isinstance(chosen, dict) else 1.0 for name in self.params.members]
        # (M + 1) numbers: log weights of the members, and b.
        self.parameters = torch.tensor([*np.log(given), 0.0], dtype=torch.float64)
        if isinstance(chosen, dict) or chosen == "equal":
            return
        logits_MNK, entropy_MN = self._told(rows)
        said_N = logits_MNK.isfinite().all(dim=2).any(dim=0)
        if not said_N.any():
            raise TeacherError("no member says anything of the training samples of a fold")
        logits_MNK, entropy_MN = logits_MNK[:, said_N], entropy_MN[:, said_N]
        target_NK, known_NK = (torch.from_numpy(values[rows])[said_N] for values in (store.target_NK, store.known_NK))

        def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            free = torch.tensor(parameters, requires_grad=True)
            value = task_loss(combine(logits_MNK, entropy_MN, free), target_NK, known_NK, self.tasks)
            value.backward()
            assert free.grad is not None
            return value.item(), free.grad.numpy()

        most = 20.0 if chosen == "learned_per_sample" else 0.0
        bounds = [(-10.0, 10.0)] * len(logits_MNK) + [(0.0, most)]
        found = minimize(loss, self.parameters.numpy(), jac=True, method="L-BFGS-B", bounds=bounds)
        self.parameters = torch.from_numpy(found.x)

    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Logits (n, K), float32, of the samples at `rows`; NaN where no member says anything."""
        return TeacherOutput(combine(*self._told(rows), self.parameters).float())

    def _told(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Logits (M, n, K) of the members and the entropies (M, n) of what they say, NaN where nothing."""
        told = [self.members[name][rows] for name in self.params.members]
        entropies = [classify.entropy(logits_NK, self.tasks) for logits_NK in told]
        return torch.from_numpy(np.stack(told)).double(), torch.from_numpy(np.stack(entropies))


def combine(logits_MNK: Tensor, entropy_MN: Tensor, parameters: Tensor) -> Tensor:
    """Weighted mean of logits over the members that say something: (N, K), NaN where none does.

    Args:
        parameters: M log weights up to a constant, and b.
    """
    says_MN = logits_MNK.isfinite().all(dim=2)
    score_MN = parameters[:-1, None] - parameters[-1] * entropy_MN.nan_to_num()
    weight_MN = score_MN.masked_fill(~says_MN, -torch.inf).softmax(dim=0)  # NaN where nobody says anything
    weighted_MNK = weight_MN[..., None] * logits_MNK.masked_fill(~says_MN[..., None], 0.0)
    return weighted_MNK.sum(dim=0)
