"""Shared functions that fit teachers of several kinds: by epochs or as linear models, on one CPU thread or a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from mmpkd.fit import autocast, generator_for, learning_rate, optimizer_for, seeded, task_loss
from mmpkd.machine.checksums import fingerprint
from mmpkd.teachers.teacher import TeacherParams
from mmpkd.types import Positive, Task, TeacherError


class EpochsParams(TeacherParams):
    """Parameters of a teacher that learns by epochs: AdamW, warm-up over a tenth of all steps, then cosine decay."""

    epochs: Positive = 10
    batch_size: Positive = 32
    weight_decay: Annotated[float, Field(ge=0)] = 0.05

    @property
    def passes(self) -> int:
        return self.epochs


@contextmanager
def one_thread() -> Iterator[None]:
    """Context manager that limits a fit to one CPU thread.

    A fit is cached for trials of every thread count, so its numbers must not depend on it.

    Small models gain nothing from more threads; a large encoder belongs on a GPU or should be `frozen`.
    """
    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def content_hash(files: Iterable[Path]) -> str:
    """Returns a hash of the names and contents of files, whatever folder they are in."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    return fingerprint(digests)


def device_of_fits() -> torch.device:
    """Returns the device on which teachers are fitted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def images_on(device: torch.device, pixels_BCHW: NDArray[np.uint8]) -> Tensor:
    """Returns stored pixels, 0 to 255, as the input of a network on `device`: floats in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels_BCHW)).to(device).float() / 255


def millions(network: nn.Module) -> str:
    """Returns the number of parameters of a network as text, in millions."""
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.3g} M parameters"


def require_classes(tasks: Sequence[Task], target_NK: NDArray[np.float32], known_NK: NDArray[np.bool_]) -> None:
    """Checks that each label has positive and negative samples, without which it cannot be learned.

    Raises:
        TeacherError: a label has only positive or only negative samples.
    """
    for task in tasks:
        for index, name in zip(range(*task.columns.indices(target_NK.shape[1])), task.logit_names, strict=True):
            known = known_NK[:, index]
            positives = int(target_NK[known, index].sum())
            if positives in (0, int(known.sum())):
                raise TeacherError(
                    f"task '{task.name}': {positives} of {int(known.sum())} training samples of a fold are '{name}'; "
                    "a teacher needs both sides in each of its five folds: merge rare classes"
                )


def classification_problems(
    tasks: Sequence[Task], target_NK: NDArray[np.float32], known_NK: NDArray[np.bool_]
) -> Iterator[tuple[list[int], NDArray[np.bool_], NDArray[np.float32]]]:
    """Splits tasks into problems for a scikit-learn classifier: one for a multi-class task, else one for each label.

    Yields:
        The columns of the problem among the K logits, a mask (N) of the samples with a known label, and the known
        labels.
    """
    for task in tasks:
        columns = list(range(*task.columns.indices(target_NK.shape[1])))
        for group in [columns] if task.kind == "multiclass" else [[column] for column in columns]:
            known_N = known_NK[:, group[0]]
            target = target_NK[known_N][:, group]
            yield group, known_N, target.argmax(axis=1) if len(group) > 1 else target[:, 0]


def fit_linear(
    features_ND: NDArray[np.float32],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    l2: float,
) -> nn.Linear:
    """Fits ridge-penalised logistic regressions, one for each problem, and returns them as one linear layer."""
    from sklearn.linear_model import LogisticRegression  # takes half a second, and few processes fit a teacher

    layer = nn.Linear(features_ND.shape[1], target_NK.shape[1])
    weight, bias = np.zeros(layer.weight.shape), np.zeros(layer.bias.shape)
    for group, known_N, label in classification_problems(tasks, target_NK, known_NK):
        model = LogisticRegression(C=1 / l2, max_iter=10_000).fit(features_ND[known_N], label)
        if len(group) == 2:  # scikit-learn has one logit for two classes: the second against the first
            weight[group[1]], bias[group[1]] = model.coef_[0], model.intercept_[0]
        else:
            weight[group], bias[group] = model.coef_, model.intercept_
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer


def descend(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    target_NK: NDArray[np.float32],
    known_NK: NDArray[np.bool_],
    tasks: Sequence[Task],
    params: EpochsParams,
    lr: float,
) -> None:
    """Trains a model in place on the task loss, then freezes it.

    Args:
        forward: maps positions among the training samples (n) to their logits (n, K), through the model.

    Raises:
        TeacherError: the loss is no longer finite.
    """
    device = next(model.parameters()).device
    target, known = (torch.from_numpy(values).to(device) for values in (target_NK, known_NK))
    optimizer = optimizer_for(model, nn.Module(), lr, params.weight_decay)
    num_steps = params.epochs * -(-len(target) // params.batch_size)
    step = 0
    model.train()
    with seeded(params.seed, "teacher-dropout"):
        for epoch in range(params.epochs):
            total = torch.zeros((), device=device)
            order = torch.randperm(len(target), generator=generator_for(params.seed, "teacher-order", epoch))
            for chosen in order.split(params.batch_size):
                with autocast(device):
                    loss = task_loss(forward(chosen), target[chosen], known[chosen], tasks)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, num_steps, lr, warmup=0.1, final=0.01)
                optimizer.step()
                total += loss.detach()
                step += 1
            if not total.isfinite():
                raise TeacherError(f"its loss is not finite in epoch {epoch + 1}: lower its lr, which is {lr:g}")
    model.eval().requires_grad_(False)
