"""Saliency maps of the student over its patches, by name.

A map comes with the logits of the same forward pass. Attention maps are the same for every label; gradient maps
explain one logit, so that each label has its own. Maps have the patch grid of the student, without prefix tokens (CLS
and registers); their values are not negative, and not smoothed or scaled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from mmpkd.student import Student, attention_of
from mmpkd.types import ConfigError, Task

Columns = tuple[int, ...]  # positions of logits; the largest of these logits is explained


class SaliencyMap(ABC):
    """A kind of saliency map. It has no options, so that its name in a table identifies it."""

    per_label: ClassVar[bool]  # False if one map serves all labels

    @abstractmethod
    def __call__(self, student: Student, image_BCHW: Tensor, explained: Sequence[Columns]) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and maps (B, R, h, w) of one forward pass; R is 1 if one map serves all labels.

        Args:
            student: in evaluation mode; it is not changed.
            image_BCHW: pixels in [0, 1].
            explained: for each of R labels, the columns of the explained logits (see `columns_explained`); ignored
                unless `per_label`.
        """


def columns_explained(labels: Sequence[str], tasks: Sequence[Task]) -> list[Columns]:
    """Returns the columns of the logits that a map of each ROI label explains.

    For each label, it is the column of the logit with the same name. If no logit or several logits have this name, they
    are the columns of the only task: a binary task has one logit, and in a multi-class task the logit of the predicted
    class is explained.

    Raises:
        ConfigError: a label matches no logit or several logits by name, and there is not exactly one task.
    """
    named: dict[str, list[int]] = {}
    for task in tasks:
        for column, name in enumerate(task.logit_names, task.start):
            named.setdefault(name, []).append(column)
    only = tasks[0].columns if len(tasks) == 1 and tasks[0].kind != "multilabel" else slice(0, 0)
    default = tuple(range(only.start, only.stop))
    columns = [tuple(named[label]) if len(named.get(label, ())) == 1 else default for label in labels]
    if unmatched := [label for label, matched in zip(labels, columns, strict=True) if not matched]:
        shared = ", ".join(name for name, kind in MAPS.items() if not kind.per_label)
        raise ConfigError.at(
            "evaluation.map",
            f"explains one logit, but no logit clearly belongs to the regions {', '.join(unmatched)} "
            f"(logits: {', '.join(named)}); choose a map that is the same for every label: {shared}",
        )
    return columns


class ClsAttention(SaliencyMap):
    """Attention of the CLS token to the patches in the last block, mean over heads; each map sums to 1."""

    per_label = False

    @torch.inference_mode()
    def __call__(self, student: Student, image_BCHW: Tensor, explained: Sequence[Columns]) -> tuple[Tensor, Tensor]:
        last = student.depth - 1
        output = student(image_BCHW, attention_layers=[last])
        return output.logits_BK, _shares(output.query_attention_BAN[last].float().mean(dim=1), student)


class ClsAttentionAll(SaliencyMap):
    """Attention of the CLS token to the patches, mean over the heads of all blocks; each map sums to 1."""

    per_label = False

    @torch.inference_mode()
    def __call__(self, student: Student, image_BCHW: Tensor, explained: Sequence[Columns]) -> tuple[Tensor, Tensor]:
        output = student(image_BCHW, attention_layers=range(student.depth))
        rows = [row_BAN.float().mean(dim=1) for row_BAN in output.query_attention_BAN.values()]
        return output.logits_BK, _shares(torch.stack(rows).mean(dim=0), student)


class Rollout(SaliencyMap):
    """Attention rollout (Abnar and Zuidema 2020): the CLS row of the product over blocks of (A + I) / 2.

    A is the mean over heads, as in the paper. Each map is scaled to sum to 1, so the factors of one half cancel and
    are left out.
    """

    per_label = False

    @torch.inference_mode()
    def __call__(self, student: Student, image_BCHW: Tensor, explained: Sequence[Columns]) -> tuple[Tensor, Tensor]:
        with attention_of(student.model, range(student.depth), lambda whole: whole.float().mean(dim=1)) as attention:
            logits_BK = student(image_BCHW).logits_BK
        return logits_BK, _shares(_rolled(list(attention.values())), student)


class GradientMap(SaliencyMap):
    """Maps from the gradient of a logit with respect to activations: one forward pass, and one backward pass per logit.

    Parameters are frozen meanwhile, so that the graph begins at the first watched activation.
    """

    per_label = True

    def __call__(self, student: Student, image_BCHW: Tensor, explained: Sequence[Columns]) -> tuple[Tensor, Tensor]:
        map_BP: dict[Columns, Tensor] = {}
        with _differentiable(student):
            logits_BK, sources, watched = self.forward(student, image_BCHW)
            for columns in dict.fromkeys(explained):  # a logit that explains several labels is differentiated once
                among = torch.tensor(columns, device=logits_BK.device)
                index_B1 = among[logits_BK[:, among].argmax(dim=1)][:, None]
                total = torch.stack([source_BK.gather(1, index_B1).sum() for source_BK in sources]).sum()
                gradients = torch.autograd.grad(total, watched, retain_graph=True)
                activations = [activation.detach().float() for activation in watched]
                gradients = tuple(gradient.float() for gradient in gradients)
                map_BP[columns] = self.weigh(activations, gradients, student.num_prefix)
        stacked_BRP = torch.stack([map_BP[columns] for columns in explained], dim=1)
        return logits_BK.detach(), stacked_BRP.unflatten(2, student.grid)

    @abstractmethod
    def forward(self, student: Student, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns the student's logits (B, K), a list of logits (B, K) that are summed and differentiated, and the
        watched activations, with respect to which they are differentiated."""

    @abstractmethod
    def weigh(self, watched: Sequence[Tensor], gradients: Sequence[Tensor], num_prefix: int) -> Tensor:
        """Returns the map over the patches (B, P) from activations and their gradients."""


class GradientAttention(GradientMap):
    """Gradient times attention in the last block: the CLS row of mean_h ReLU(A dy/dA) (see `Chefer`)."""

    def forward(self, student: Student, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return _attended(student, image_BCHW, [student.depth - 1])

    def weigh(self, watched: Sequence[Tensor], gradients: Sequence[Tensor], num_prefix: int) -> Tensor:
        return (watched[0] * gradients[0])[:, :, 0, num_prefix:].clamp(min=0).mean(dim=1)


class GradCam(GradientMap):
    """Grad-CAM (Selvaraju et al. 2017): ReLU(sum_d w_d z_d), with w the mean over patches of dy/dz, y the logit.

    z is the input of the attention in the last block, the output of `norm1` in the usual block: in a model that
    classifies by the CLS token, only this token has a gradient at the output of the last block.
    """

    def forward(self, student: Student, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        read: list[Tensor] = []
        attention = student.model.blocks[-1].attn
        handle = attention.register_forward_pre_hook(lambda _, inputs: read.append(_watched(inputs[0])))
        try:
            logits_BK = student(image_BCHW).logits_BK
        finally:
            handle.remove()
        return logits_BK, [logits_BK], read

    def weigh(self, watched: Sequence[Tensor], gradients: Sequence[Tensor], num_prefix: int) -> Tensor:
        z_BPD, gradient_BPD = watched[0][:, num_prefix:], gradients[0][:, num_prefix:]
        return (z_BPD * gradient_BPD.mean(dim=1, keepdim=True)).sum(dim=2).clamp(min=0)


class Chefer(GradientMap):
    """Generic attention explainability (Chefer et al., ICCV 2021): R <- R + Abar R from R = I; CLS row of the last R.

    Abar = mean_h ReLU(A dy/dA) of each block in turn. The relevance propagation of the authors' CVPR paper is not used.
    """

    def forward(self, student: Student, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return _attended(student, image_BCHW, range(student.depth))

    def weigh(self, watched: Sequence[Tensor], gradients: Sequence[Tensor], num_prefix: int) -> Tensor:
        weighed = [(a * gradient).clamp(min=0).mean(dim=1) for a, gradient in zip(watched, gradients, strict=True)]
        return _rolled(weighed)[:, num_prefix:]


class LeGrad(GradientMap):
    """LeGrad (Bousselham et al. 2024): sum over blocks of the mean over heads and queries of ReLU(ds/dA).

    s is the logit that the classifier computes from the block's own output, so blocks are detached from one another.
    Every block counts, as in the paper. The authors' code begins at the second-to-last block, uses the mean of all
    tokens for CLIP, and scales the map to 0..1.
    """

    def forward(self, student: Student, image_BCHW: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        cls: list[Tensor] = []
        with ExitStack() as stack:
            for block in student.model.blocks:
                apart = block.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
                stack.callback(apart.remove)
                stack.callback(block.register_forward_hook(lambda _, __, x_BND: cls.append(x_BND[:, :1])).remove)
            attention = stack.enter_context(attention_of(student.model, range(student.depth), _watched))
            logits_BK = student(image_BCHW).logits_BK
        by_block = [student.classify(student.model.norm(x_B1D))[1] for x_B1D in cls]
        return logits_BK, by_block, list(attention.values())

    def weigh(self, watched: Sequence[Tensor], gradients: Sequence[Tensor], num_prefix: int) -> Tensor:
        by_block = [gradient.clamp(min=0).mean(dim=(1, 2))[:, num_prefix:] for gradient in gradients]
        return torch.stack(by_block).sum(dim=0)


MAPS: dict[str, type[SaliencyMap]] = {
    "cls_attention": ClsAttention,
    "cls_attention_all": ClsAttentionAll,
    "rollout": Rollout,
    "gradient_attention": GradientAttention,
    "grad_cam": GradCam,
    "chefer": Chefer,
    "legrad": LeGrad,
}


def _shares(row_BN: Tensor, student: Student) -> Tensor:
    """Converts a row over all tokens to a map (B, 1, h, w) over the patches alone, scaled to sum to 1."""
    row_BP = row_BN[:, student.num_prefix :]
    row_BP = row_BP / row_BP.sum(dim=1, keepdim=True).clamp(min=1e-30)  # the CLS token may attend to itself alone
    map_Bhw: Tensor = row_BP.unflatten(1, student.grid)  # leaves the batch free, as an export to ONNX needs
    return map_Bhw[:, None]


def _rolled(matrix_BNN: Sequence[Tensor]) -> Tensor:
    """Returns the CLS row (B, N) of (I + M_last) ... (I + M_first), as products of a vector with a matrix."""
    row_B1N = torch.zeros_like(matrix_BNN[0][:, :1])
    row_B1N[:, :, 0] = 1
    with torch.autocast(row_B1N.device.type, enabled=False):
        for block_BNN in reversed(matrix_BNN):
            row_B1N = row_B1N + row_B1N @ block_BNN
    return row_B1N[:, 0]


def _attended(student: Student, image_BCHW: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    with attention_of(student.model, layers, _watched) as attention:
        logits_BK = student(image_BCHW).logits_BK
    return logits_BK, [logits_BK], list(attention.values())


def _watched(activation: Tensor) -> Tensor:
    return activation if activation.requires_grad else activation.requires_grad_()


@contextmanager
def _differentiable(student: Student) -> Iterator[None]:
    """Enables gradients of activations and disables those of parameters, whatever the mode of the caller."""
    flags = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    student.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
