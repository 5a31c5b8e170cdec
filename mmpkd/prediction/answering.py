"""A student that answers, ready for images and questions; and the picture of an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmpkd.cohort.decode import measure_appearance, to_8_bit, to_stored_square
from mmpkd.config import IMAGE, EvaluationConfig
from mmpkd.frames import Letterbox
from mmpkd.prediction.input_images import read_input_image, warnings_of
from mmpkd.scoring.overlays import FONT, GAP, LINE, MAX_SIDE, MIN_SIDE, wrapped_lines
from mmpkd.types import ConfigError
from mmpkd.vlm import student as student_of
from mmpkd.vlm.boxes import GRID, Box, parse
from mmpkd.vlm.rows import batch, item, restored
from mmpkd.vlm.vocabulary import PIECE, Words

ANSWERED, ASKED = (0, 255, 255), (255, 160, 0)  # colours of the boxes of an answer (cyan) and of a question (orange)
DASH = 8  # pixels, length of a dash and of the gap after it
UNKNOWN_WORDS = "words that the student has not learnt"


@dataclass(frozen=True)
class Answer:
    """The answer of a student to a question about an image.

    text: the answer; its boxes are on the 0 to 1000 grid of the image, as those of the question.
    margin: mean over its tokens of the difference between the two largest probabilities, from 0 to 1.
    image: the image at its own size, 8 bits, H x W or H x W x 3.
    warnings: keys of `mmpkd.prediction.input_images.WARNINGS` that apply to the image, and `UNKNOWN_WORDS`.
    """

    question: str
    text: str
    margin: float
    image: NDArray[np.uint8]
    warnings: tuple[str, ...] = ()

    @property
    def boxes(self) -> list[Box]:
        """The boxes of the answer in pixels of the image."""
        return _in_pixels(self.text, self.image)

    def picture(self) -> Image.Image:
        """Returns the image with the boxes of the answer (solid, cyan) and of the question (dashed, orange), and below
        it question and answer. A box whose corners are in the wrong order is not drawn."""
        height, width = self.image.shape[:2]
        factor = min(max(1.0, MIN_SIDE / max(width, height)), MAX_SIDE / max(width, height))
        shown = with_boxes(self.image, self.question, self.text, factor)
        width = max(shown.width, MIN_SIDE)
        notes = [f"warning: {'; '.join(self.warnings)}"] if self.warnings else []
        texts = [f"question: {self.question}", f"answer: {self.text or '(empty)'}", *notes]
        lines = [line for text in texts for line in wrapped_lines(text, width - 2 * GAP)]
        legend = [(ANSWERED, False, "in the answer")] if self.boxes else []
        legend += [(ASKED, True, "in the question")] if parse(self.question) else []
        height = shown.height + 2 * GAP + LINE * (len(lines) + bool(legend))
        picture = Image.new("RGB", (width, height), "white")
        picture.paste(shown, (0, 0))
        draw, top = ImageDraw.Draw(picture), shown.height + GAP
        left = GAP
        for colour, dashed, text in legend:
            _draw_box(draw, Box(left, top + 2, left + 24, top + 16), 1.0, colour, dashed)
            draw.text((left + 32, top), text, "black", FONT)
            left += 48 + round(FONT.getlength(text))
        for number, line in enumerate(lines, start=bool(legend)):
            draw.text((GAP, top + number * LINE), line, "black", FONT)
        return picture


class Answerer:
    """An exported student that answers, ready for images and questions.

    Raises:
        ConfigError: the path holds no such student, or its student reads another image than the scan itself.
    """

    def __init__(self, path: Path | str) -> None:
        student = student_of.read(Path(path))
        self.card, self.config, self.origin = student.card, student.config, student.origin
        if self.config.reads != (IMAGE,):
            problem = f"the student reads the further image {self.config.reads[0]!r} of its cohort"
            advice = "score it there with python -m mmpkd.evaluate, or name a student that reads the image"
            raise ConfigError.at("model", f"{problem}, which a file of an image does not hold; {advice}")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vlm = student.vlm.to(self.device)

    def __call__(self, image: Path | str, *questions: str) -> list[Answer]:
        """Returns the answers to questions about the image in a file. Boxes in questions are on its 0 to 1000 grid.

        Raises:
            BadSample: the file cannot be read, or has another bit depth than the training images.
        """
        path, card, processor = Path(image), self.card, self.vlm.processor
        raw = read_input_image(path, card)
        noticed = warnings_of(raw, path.name, card, self.origin, measure_appearance(raw, card.depth))
        square_CHW = torch.from_numpy(to_stored_square(raw, card.image_size, card.channels, card.depth))
        letterbox, picture = Letterbox(raw.shape[0], raw.shape[1], card.image_size), to_8_bit(raw, card.depth)
        items = [item(processor, letterbox, question) for question in questions]
        texts: list[str] = []
        margins: list[float] = []
        size = EvaluationConfig().batch_size  # a file may ask thousands of questions about an image
        for part in (items[start : start + size] for start in range(0, len(items), size)):
            rows = batch(processor, part, square_CHW[None], [0] * len(part)).to(self.device)
            given = self.vlm.answer(rows, self.config.max_new_tokens)
            texts, margins = texts + given.texts, margins + given.margins
        return [
            Answer(
                question,
                restored(text, letterbox, processor.box_steps),
                margin,
                picture,
                (*noticed, *([UNKNOWN_WORDS] if self.unknown_words(question) else [])),
            )
            for question, text, margin in zip(questions, texts, margins, strict=True)
        ]

    def unknown_words(self, question: str) -> list[str]:
        """Returns the words of a question that a student with the words of a cohort has never seen, outside boxes."""
        tokens = self.vlm.processor.tokens
        if not isinstance(tokens, Words):
            return []
        return [piece for piece in PIECE.findall(re.sub(r"<box>.*?</box>", " ", question)) if piece not in tokens.ids]


def with_boxes(image: NDArray[np.uint8], question: str, answer: str, factor: float) -> Image.Image:
    """Returns an image (H x W or H x W x 3), enlarged by a factor, with the boxes of an answer (solid, cyan) and of its
    question (dashed, orange). Boxes in the texts are on the 0 to 1000 grid of the image."""
    shown = Image.fromarray(image).convert("RGB")
    shown = shown.resize((max(1, round(shown.width * factor)), max(1, round(shown.height * factor))))
    draw = ImageDraw.Draw(shown)
    for box in _in_pixels(question, image):
        _draw_box(draw, box, factor, ASKED, dashed=True)
    for box in _in_pixels(answer, image):
        _draw_box(draw, box, factor, ANSWERED, dashed=False)
    return shown


def _in_pixels(text: str, image: NDArray[np.uint8]) -> list[Box]:
    height, width = image.shape[:2]
    sides = np.array([width, height, width, height]) / GRID
    return [Box(*(np.array(box) * sides).tolist()) for box in parse(text)]


def _draw_box(draw: ImageDraw.ImageDraw, box: Box, factor: float, colour: tuple[int, int, int], dashed: bool) -> None:
    """Draws the outline of a box with a thin black line on either side, so that it is seen on any ground."""
    left, top, right, bottom = (value * factor for value in box)
    if right < left or bottom < top:
        return
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    for start, end in pairwise(corners):
        for piece in _dashes(start, end) if dashed else [(*start, *end)]:
            draw.line(piece, "black", 5)
            draw.line(piece, colour, 3)


def _dashes(start: Sequence[float], end: Sequence[float]) -> Iterator[tuple[float, float, float, float]]:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1e-9)
    along = [(end[axis] - start[axis]) / length for axis in (0, 1)]
    position = 0.0
    while position < length:
        until = min(position + DASH, length)
        (x0, x1), (y0, y1) = ([start[axis] + along[axis] * place for place in (position, until)] for axis in (0, 1))
        yield x0, y0, x1, y1
        position += 2 * DASH
