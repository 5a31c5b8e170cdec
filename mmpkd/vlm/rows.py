"""Questions about images as batches of token ids, padded on the left, so that all answers end at the same position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpkd.frames import Letterbox
from mmpkd.vlm.boxes import BARE, GRID, TAGGED, Box, with_boxes_moved, written
from mmpkd.vlm.vocabulary import Processor

IGNORED = -100  # label of a position without a target


class Item(NamedTuple):
    """A question, and its answer if it has one, as token ids. It is made once and used in every epoch."""

    question: list[int]
    answer: list[int] | None  # with the end token


@dataclass(frozen=True)
class Rows:
    """A batch for a model, one row for each question (B). The images (M) are distinct; several rows may share one.

    `labels_BL` is the token id where an answer stands, its end token included, and -100 elsewhere. A position's label
    is its own token, as the library expects it; the logits of the position before predict it.
    """

    input_ids_BL: Tensor
    labels_BL: Tensor
    mask_BL: Tensor  # 1 where a token stands, 0 on the padding
    token_types_BL: Tensor  # 1 at visual tokens, 0 elsewhere
    image_MCHW: Tensor  # uint8
    image_B: Tensor  # the image of each row; it stays on the CPU, where images are put in order
    num_answer: int  # tokens of the longest answer

    def to(self, device: torch.device) -> Rows:
        """Returns the batch on a device."""
        values: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and name != "image_B" else value
            for name, value in vars(self).items()
        }
        return Rows(**values)


def item(
    processor: Processor, letterbox: Letterbox, question: str, answer: str | None = None, hint: str | None = None
) -> Item:
    """Returns a question as token ids.

    Args:
        letterbox: how the original image lies in the stored square. Boxes in the texts are on the 0 to 1000 grid of the
            original image and are moved to the grid of the square.
        answer: the answer to learn; None if the model shall answer.
        hint: the true answer, which is shown to a teacher as part of the question.
    """
    tokens = processor.tokens

    def encoded(text: str) -> list[int]:
        return tokens.encode(moved(text, letterbox, processor.box_steps))

    ids = encoded(question)
    if hint is not None:
        ids += [*processor.hint, *encoded(hint)]
    return Item(ids, None if answer is None else [*encoded(answer), tokens.end])


def batch(processor: Processor, items: Sequence[Item], image_MCHW: Tensor, image_B: Sequence[int] | Tensor) -> Rows:
    """Returns a batch of questions.

    Args:
        image_MCHW: distinct images, uint8, on any device.
        image_B: the index of each question's image among them.
    """
    tokens, side = processor.tokens, image_MCHW.shape[-1] // processor.token_pixels
    visual = [tokens.image] * side**2
    prompts = [[*processor.before, *visual, *processor.between, *ids, *processor.after] for ids, _ in items]
    answers = [answer or [] for _, answer in items]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids, labels, mask = [], [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        padding = length - len(prompt) - len(answer)
        ids.append([tokens.pad] * padding + prompt + answer)
        labels.append([IGNORED] * (padding + len(prompt)) + answer)
        mask.append([0] * padding + [1] * (length - padding))
    input_ids_BL = torch.tensor(ids)
    return Rows(
        input_ids_BL=input_ids_BL,
        labels_BL=torch.tensor(labels),
        mask_BL=torch.tensor(mask),
        token_types_BL=(input_ids_BL == tokens.image).int(),
        image_MCHW=image_MCHW,
        image_B=torch.as_tensor(image_B),
        num_answer=max(map(len, answers)),
    )


def moved(text: str, letterbox: Letterbox, steps: int) -> str:
    """Returns a text whose boxes are moved from the 0 to 1000 grid of the original image to a grid of the square.

    A box that would become empty there is one step wide, or high: it could not be learnt, or found, otherwise.
    """
    content = letterbox.content

    def move(box: Box) -> Box:
        left, right = _on_square(box.left, box.right, content.left, content.right, letterbox.size, steps)
        top, bottom = _on_square(box.top, box.bottom, content.top, content.bottom, letterbox.size, steps)
        return Box(left, top, right, bottom)

    return with_boxes_moved(text, move)


def restored(text: str, letterbox: Letterbox, steps: int) -> str:
    """Returns an answer whose boxes are moved back to the 0 to 1000 grid of the original image, and cut to it.

    In an answer without tagged boxes, pairs of points are moved as well, because scores read them as boxes.
    """
    content = letterbox.content

    def move(box: Box) -> Box:
        def back(value: float, low: int, high: int) -> float:
            return min(GRID, max(0.0, (value * letterbox.size / steps - low) / (high - low) * GRID))

        left, right = (back(value, content.left, content.right) for value in (box.left, box.right))
        top, bottom = (back(value, content.top, content.bottom) for value in (box.top, box.bottom))
        return Box(left, top, right, bottom)

    if TAGGED.search(text):
        return with_boxes_moved(text, move)
    return BARE.sub(lambda match: _untagged(move, Box(*map(float, match.groups()))), text)


def _untagged(move: Callable[[Box], Box], box: Box) -> str:
    return written(move(box)).removeprefix("<box>").removesuffix("</box>")


def _on_square(low: float, high: float, start: int, end: int, size: int, steps: int) -> tuple[float, float]:
    """Returns two coordinates along one side in steps of the square's grid."""
    first, second = (round((start + value / GRID * (end - start)) / size * steps) for value in (low, high))
    if high > low and first == second:
        return (first, first + 1) if first < steps else (first - 1, first)
    return first, second
