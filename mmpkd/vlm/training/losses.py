"""The loss of a vision-language student: cross-entropy on answer tokens, and the divergence from its teacher there.

Shapes: B questions of a batch, L tokens of a row, V words of the vocabulary, k logits that are kept of a teacher.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mmpkd.vlm.rows import IGNORED


class Logits(NamedTuple):
    """Logits of answer tokens: of all words, or of the k most likely words by their ids (`words_Tk`)."""

    values_Tk: Tensor
    words_Tk: Tensor | None = None


def answer_tokens(logits_BAV: Tensor, labels_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits (T x V) from which the T answer tokens of a batch are predicted, and these tokens.

    Args:
        logits_BAV, labels_BA: what `Vlm.answer_logits` returns.
    """
    is_answer_BA = labels_BA != IGNORED
    return logits_BAV[is_answer_BA], labels_BA[is_answer_BA]


def cross_entropy(logits_TV: Tensor, tokens_T: Tensor) -> Tensor:
    """Returns the mean cross-entropy over the answer tokens of a batch."""
    return F.cross_entropy(logits_TV, tokens_T)


def token_kl(logits_TV: Tensor, teacher: Logits, temperature: float) -> Tensor:
    """Returns the mean over answer tokens of KL(teacher || student), with both distributions at a temperature.

    As in the README of ClinKD, a teacher with more words is cut to the vocabulary of the student, only tokens of
    answers count, and there is no factor of temperature squared. Where only k logits of the teacher are known, its
    distribution is that of these k words; their probabilities sum to 1.
    """
    log_student_TV = F.log_softmax(logits_TV / temperature, dim=1)
    if teacher.words_Tk is None:
        log_teacher = F.log_softmax(teacher.values_Tk[:, : logits_TV.shape[1]].float() / temperature, dim=1)
        return F.kl_div(log_student_TV, log_teacher, reduction="batchmean", log_target=True)
    log_teacher = F.log_softmax(teacher.values_Tk.float() / temperature, dim=1)
    log_student_Tk = log_student_TV.gather(1, teacher.words_Tk)
    return (log_teacher.exp() * (log_teacher - log_student_Tk)).sum(dim=1).mean()


def most_likely(logits_TV: Tensor, k: int) -> Logits:
    """Returns the k largest logits of each answer token, of all words if there are fewer than k."""
    values_Tk, words_Tk = logits_TV.topk(min(k, logits_TV.shape[1]), dim=1)
    return Logits(values_Tk, words_Tk)


def mixed(cross: Tensor, divergence: Tensor | None, weight: float) -> Tensor:
    """Returns (weight x KL + CE) / (1 + weight), as the figure of ClinKD writes the loss."""
    return cross if divergence is None else (weight * divergence + cross) / (1 + weight)
