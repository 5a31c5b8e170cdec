"""The parts that every training shares: task loss, optimiser, schedules, precision, check for finite values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mmpkd.types import DivergedError, Task

TINY = 1e-12  # avoids division by zero where no label is known


def task_loss(
    logits_BK: Tensor,
    target_BK: Tensor,
    known_BK: Tensor,
    tasks: Sequence[Task],
    smoothing: float = 0.0,
    weight_2K: Tensor | None = None,
) -> Tensor:
    """Returns the mean over tasks of the cross-entropy over known labels; a task without a known label adds 0.

    Multi-class: softmax cross-entropy, mean over known samples. Binary and multi-label: sigmoid
    cross-entropy, mean over known labels. `smoothing` mixes the target with the uniform one: 1/C over C
    exclusive classes, 1/2 for a sigmoid. With `weight_2K` (see `balanced_weights`) the means are
    weighted, as torch's `cross_entropy(weight=)` is.
    """
    logits_BK = logits_BK.float()
    weight_2K = logits_BK.new_ones(2, logits_BK.shape[1]) if weight_2K is None else weight_2K
    weight_BK = torch.where(target_BK > 0.5, weight_2K[1], weight_2K[0])
    total = logits_BK.new_zeros(())
    for task in tasks:
        logits, target, known = (x[:, task.columns] for x in (logits_BK, target_BK, known_BK))
        weight = weight_BK[:, task.columns]
        if task.kind == "multiclass":
            weight = (weight * target).sum(dim=1)
            target = target * (1 - smoothing) + smoothing / task.num_logits
            each = -(target * logits.log_softmax(dim=1)).sum(dim=1)
            known = known[:, 0]
        else:
            target = target * (1 - smoothing) + smoothing / 2
            each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        weight = torch.where(known, weight, 0.0)
        total = total + torch.where(known, weight * each, 0.0).sum() / weight.sum().clamp(min=TINY)
    return total / len(tasks)


def balanced_weights(
    target_NK: NDArray[np.float32], known_NK: NDArray[np.bool_], tasks: Sequence[Task]
) -> NDArray[np.float32]:
    """Returns loss weights (2, K), in row 0 for absent and in row 1 for present labels: all classes get equal total
    weight.

    The weight of a class is (number of known labels) / (number of classes x number of labels of this class), as
    scikit-learn's `balanced`. A multi-class task has C classes, and the weights of absent labels are not used there;
    every other logit has two classes. A class that never occurs weighs 0.
    """
    positive_K = (target_NK * known_NK).sum(axis=0)
    count_2K = np.stack([known_NK.sum(axis=0) - positive_K, positive_K])
    classes_K = np.full(target_NK.shape[1], 2.0)
    for task in tasks:
        if task.kind == "multiclass":
            classes_K[task.columns] = task.num_logits
    weight_2K = known_NK.sum(axis=0) / (classes_K * np.maximum(count_2K, 1))
    return np.where(count_2K > 0, weight_2K, 0.0).astype(np.float32)


def optimizer_for(
    student: nn.Module, objectives: nn.Module, lr: float, weight_decay: float, fused: bool = False
) -> torch.optim.AdamW:
    """Returns AdamW over the trainable parameters of student and objectives. Weight decay skips vectors (biases, norms)
    and the parameters that a timm model names in `no_weight_decay` (position tables, rotary frequencies).

    Args:
        fused: whether one kernel updates all parameters. Its learning rate is a tensor on their device, so that a CUDA
            graph can hold the update; see `set_learning_rate`. It agrees with the other form up to the last digits.
    """
    tables = {"pos_embed", "cls_token", "reg_token"}
    for prefix, module in student.named_modules():
        if no_weight_decay := getattr(module, "no_weight_decay", None):
            tables |= {f"{prefix}.{name}".removeprefix(".") for name in no_weight_decay()}
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in [*student.named_parameters(), *objectives.named_parameters()]:
        if not parameter.requires_grad:
            continue
        is_table = name in tables or name.rsplit(".", 1)[-1] in tables
        (undecayed if parameter.ndim <= 1 or is_table else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    if not fused:
        return torch.optim.AdamW(groups, lr=lr)
    device = (decayed or undecayed)[0].device
    for group in groups:
        group["lr"] = torch.tensor(lr, device=device)
    return torch.optim.AdamW(groups, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameters of a fused optimiser."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the state of an optimiser that another device may have saved; options that depend on the device stay."""
    own = ("lr", "fused", "capturable")
    groups = [
        {**saved, **{name: group[name] for name in own}}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Returns all parameters of an optimiser."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def learning_rate(step: int, num_steps: int, peak: float, warmup: float, final: float) -> float:
    """Returns the learning rate: linear warm-up over the first `warmup` share of steps, then cosine to `final` x peak.

    It depends on the step alone, so that a resumed run needs no scheduler state.
    """
    num_warmup = round(warmup * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def objective_factor(schedule: str, epoch: int, epochs: int) -> float:
    """Returns the factor that multiplies the weight of an objective in an epoch, counted from 0. `constant` leaves the
    weight as it is. `warmup` rises linearly over the first tenth of the epochs (DKD's min(e/warm, 1)). `cosine` falls
    from 1 towards 0, so that hard labels decide at the end."""
    if schedule == "warmup":
        return min(1.0, (epoch + 1) / max(1, round(0.1 * epochs)))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return 1.0


def gradient_shares(weighted_terms: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """Returns `gradient_share/<term>`: the share of each weighted term in the sum of the gradient norms.

    The shares for the student's parameters show which term steers the student; the values of the terms do not show
    this. Measuring them costs one backward pass per term.
    """
    norms = {}
    for name, term in weighted_terms.items():
        gradients: Sequence[Tensor | None] = ()
        if term.requires_grad:  # False for a term that reads only modules that are frozen in this stage
            gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        gradient_norms = [gradient.norm() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(gradient_norms).norm() if gradient_norms else term.new_zeros(())
    total = torch.stack(list(norms.values())).sum().clamp(min=1e-30)
    return {f"gradient_share/{name}": (norm / total).item() for name, norm in norms.items()}


def on_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Returns an array as a tensor on a device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def autocast(device: torch.device) -> torch.autocast:
    """Returns the autocast context: bfloat16 on CUDA, which needs no loss scaling; plain float32 on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def derived_seed(seed: int, *purpose: object) -> int:
    """Returns a seed for one purpose. Each purpose has its own random stream, whatever the order of the calls."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def generator_for(seed: int, *purpose: object) -> torch.Generator:
    """Returns a CPU generator for one purpose, see `derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: object) -> Iterator[None]:
    """Forks and seeds the global generators, for libraries (timm, dropout) that draw from them."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, *purpose))
        yield


class TermLog:
    """Collects the unweighted loss terms of an epoch, checks that each is finite, and gives their means.

    Terms stay on the device and are read every `period` steps, because reading a value makes the host
    wait for the device.
    """

    def __init__(self, first_step: int, period: int = 50) -> None:
        self.step = first_step
        self.period = period
        self.pending: list[dict[str, Tensor]] = []
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Adds the terms of one step.

        Raises:
            DivergedError: a term of one of the last `period` steps is NaN or infinite.
        """
        self.pending.append({name: term.detach() for name, term in terms.items()})
        if len(self.pending) == self.period:
            self._read()

    def means(self) -> dict[str, float]:
        """Returns the mean of each term over the epoch so far. Raises DivergedError as `add` does."""
        self._read()
        return {name: total / self.count for name, total in self.sums.items()}

    def _read(self) -> None:
        if not self.pending:
            return
        names = list(self.pending[0])
        values = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in self.pending]).cpu()
        for offset, name_index in (~values.isfinite()).nonzero().tolist()[:1]:
            raise DivergedError(
                f"loss term '{names[name_index]}' became {values[offset, name_index].item()} at step "
                f"{self.step + offset}: lower optimizer.lr or the term's weight, or set optimizer.clip_norm"
            )
        for index, name in enumerate(names):
            self.sums[name] = self.sums.get(name, 0.0) + values[:, index].double().sum().item()
        self.count += len(self.pending)
        self.step += len(self.pending)
        self.pending = []
