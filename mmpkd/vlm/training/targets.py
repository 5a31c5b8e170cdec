"""What the training items teach: true answers, answers of the teacher for images without any, and corrected answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from mmpkd.vlm import boxes
from mmpkd.vlm.config import CorrectionsConfig, PseudoLabelsConfig
from mmpkd.vlm.scores.answers import containment
from mmpkd.vlm.scores.text import rouge_l

MIN_IOU = 0.5  # a box points right if its IoU with a true box is larger, as in Recall@0.5


class Corrected(NamedTuple):
    """A corrected answer, and the number of the teacher's draw that gave it."""

    text: str
    draw: int


class Targets(nn.Module):
    """The text that each training item teaches at present.

    It is a module, so that checkpoints hold the corrections. They hold the numbers of the draws and no text, because
    a checkpoint leaves the cache, and a corrected answer may say what a patient has; see `recover`.

    Args:
        answer_I: the true answer of each item, or NaN.
        pseudo: the teacher's answers for items without one: text and margin, by position of the item.
    """

    def __init__(
        self,
        answer_I: pd.Series,
        pseudo: Mapping[int, tuple[str, float]],
        rule: PseudoLabelsConfig,
        epochs: int,
    ):
        super().__init__()
        self._rule, self._epochs = rule, epochs
        self._true = {place: str(text) for place, text in enumerate(answer_I) if isinstance(text, str)}
        admitted = [(margin, place) for place, (_, margin) in pseudo.items() if margin >= rule.margin]
        self._by_margin = [place for _, place in sorted(admitted, key=lambda pair: (-pair[0], pair[1]))]
        self._pseudo = {place: pseudo[place][0] for place in self._by_margin}
        self._corrected: dict[int, Corrected] = {}
        self._corrected_at = 0  # the epoch before which the last round took place

    @property
    def true(self) -> Mapping[int, str]:
        """The true answers, by position of the item."""
        return self._true

    def correct(self, corrected: Mapping[int, Corrected], epoch: int) -> None:
        """Replaces the targets of these items until the next round, which begins from the true answers again.

        Args:
            epoch: the epoch before which this round takes place, counted from 0.
        """
        self._corrected, self._corrected_at = dict(corrected), epoch

    def recover(self, sampled: Callable[[Sequence[int], int, int], Sequence[str]]) -> None:
        """Asks the teacher again for the corrected answers, after a checkpoint has been read.

        Args:
            sampled: function that returns one answer of the teacher to each of the given items; its further arguments
                are the epoch of the round and the number of the draw.
        """
        places, epoch = sorted(self._corrected), self._corrected_at
        for draw in sorted({each.draw for each in self._corrected.values()}):
            for place, text in zip(places, sampled(places, epoch, draw), strict=True):
                if self._corrected[place].draw == draw:
                    self._corrected[place] = Corrected(text, draw)

    def at(self, epoch: int) -> dict[int, str]:
        """Returns the target of each item that takes part in an epoch, counted from 0, by position of the item.

        With a curriculum, the answers of the teacher enter in order of their margins, the same number in each epoch.
        """
        count = len(self._by_margin)
        if self._rule.curriculum > 0:
            count = math.ceil(count * min(1.0, (epoch + 1) / (self._rule.curriculum * self._epochs)))
        admitted = {place: self._pseudo[place] for place in self._by_margin[:count]}
        corrected = {place: each.text for place, each in self._corrected.items()}
        return {**self._true, **corrected, **admitted}

    def get_extra_state(self) -> dict[str, Any]:
        return {"epoch": self._corrected_at, "draws": {place: each.draw for place, each in self._corrected.items()}}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self._corrected_at = state["epoch"]
        self._corrected = {place: Corrected("", draw) for place, draw in state["draws"].items()}


def rounds_begin(epochs: int, rounds: int) -> list[int]:
    """Returns the epochs, counted from 0, before which targets are corrected."""
    return [round(epochs * number / (rounds + 1)) for number in range(1, rounds + 1)]


def score(answer: str, truth: str, similarity: str) -> float:
    """Returns how well an answer fits the truth, from 0 to 1: the best IoU if the truth has boxes, else a similarity.

    Boxes and words are compared in the same text, so that an answer with a box is judged by its box alone.
    """
    if true_boxes := boxes.parse(truth):
        return max((boxes.iou(pointed, box) for pointed in boxes.parse(answer) for box in true_boxes), default=0.0)
    return rouge_l(truth, answer) if similarity == "rouge_l" else containment(truth, answer)


def is_wrong(answer: str, truth: str, rule: CorrectionsConfig) -> bool:
    """Returns whether an answer points wrong (no box with an IoU above 0.5) or is less similar than the threshold."""
    value = score(answer, truth, rule.similarity)
    return value <= MIN_IOU if boxes.parse(truth) else value < rule.threshold


def corrections(
    true: Mapping[int, str],
    answers: Mapping[int, str],
    rule: CorrectionsConfig,
    sampled: Callable[[Sequence[int], int], Sequence[str]],
) -> dict[int, Corrected]:
    """Returns new targets for the items that the student answers wrong.

    Args:
        answers: the student's answers, by position of the item.
        sampled: function that returns one answer of the teacher, which sees the truth, to each of the given items; its
            second argument is the number of the draw.
    """
    wrong = sorted(place for place, answer in answers.items() if is_wrong(answer, true[place], rule))
    best: dict[int, Corrected] = {}
    highest: NDArray[np.float64] = np.full(len(wrong), -1.0)
    for draw in range(rule.answers if wrong else 0):
        for index, (place, text) in enumerate(zip(wrong, sampled(wrong, draw), strict=True)):
            value = score(text, true[place], rule.similarity)
            if value > highest[index]:
                highest[index], best[place] = value, Corrected(text, draw)
    return best
