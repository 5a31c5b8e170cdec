"""Generates a cohort for which it is known whether privileged data help a student to see what it otherwise overlooks.

Every image shows a lesion in noise, and a conspicuous marker in a corner. The class of the image is the lesion's subtle
texture (lines across, lines down, or checks). Training labels are noisy, and the marker of a training image agrees with
the noisy label. Therefore a student that learns from labels alone reads the marker, and even predicts the label errors
from the marker. In the validation and test parts, labels are true and the marker is independent of them, so that such a
student is at chance and attends to the marker. The privileged data (table, text, superior image) depend on the true
class and never on the marker or the label error. Therefore a teacher that is fitted to privileged data and noisy labels
cannot use the marker. `benchmarks/known_answer.py` measures the effect; `docs/decisions/known_answer.md` explains how
the options were chosen.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from mmpkd.cohort.facts import Column, RawImage, Reader, Scan, encode_labels
from mmpkd.types import Fraction, Positive, Strict, lay_out

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLASSES = ("lamellar", "columnar", "reticular")  # lines across, lines down, checks: flips do not change the class
TASKS = lay_out([("pattern", "multiclass", CLASSES)])
COLUMNS = {
    column.name: column
    for column in (
        Column("margin", "descriptor"),
        Column("echo", "descriptor"),
        Column("signs", "descriptor", "multivalued", separator="&"),
        Column("stiffness", "descriptor", "numeric"),  # kPa
        Column("uptake", "descriptor", "numeric"),  # no unit
        Column("age", "context", "numeric"),  # years; independent of the class
        Column("assessment", "near_label"),
        Column("pathology", "forbidden"),
        Column("patient", "id"),
    )
}
WORDS = {
    "margin": ("circumscribed", "indistinct", "spiculated"),
    "echo": ("hyperechoic", "isoechoic", "hypoechoic"),
    "signs": ("halo", "calcifications", "shadowing"),
    "assessment": CLASSES,
    "report": ("bands that run across", "bands that run down", "a mesh"),
}
STIFFNESS = (40.0, 65.0, 90.0)  # mean of each class in kPa; the standard deviation is 18 kPa
UPTAKE = (3.0, 4.5, 3.0)  # mean of each class; the standard deviation is 1
GLYPHS = ("bar", "post", "ring")


class SyntheticParams(Strict):
    """The options. The known-answer benchmark uses the default values. Lengths are in pixels of the original image."""

    LATER = ("lesion", "labelled")

    seed: Annotated[int, Field(ge=0)] = 0
    train: Positive = 800  # number of images, also for val and test; a patient has one to three
    val: Positive = 300
    test: Positive = 300
    labelled: Positive | None = None  # number of training images with a label; None: all
    side: Annotated[int, Field(ge=32)] = 48  # side of the image; `cohort.image_size` should be the same
    lesion: Annotated[float, Field(gt=0, le=1)] = 1.0  # size of lesions; at 1 their radius is 1/6 to 1/4.5 of `side`
    texture: Fraction = 0.16  # amplitude of the lesion's texture; the image noise has a standard deviation of 0.06
    label_noise: Fraction = 0.3  # share of training images with a wrong label, one of the other two
    marker: bool = True  # False paints no marker and changes no other pixel
    accuracy: Fraction = 0.75  # probability that a categorical descriptor, or a typical sign, is true
    report_accuracy: Fraction = 0.9  # probability that the report is true
    missing: Fraction = 0.15  # share of cells and of reports that are missing


class Synthetic(Reader):
    """Generates lesions of three textures, with tabular, text and superior-image views, and ROI masks.

    The table has a row per image. Its descriptors state the true class with a probability that the options set, and
    have missing cells. `age` is independent of the class, `assessment` is true for 95 % of the images, and `pathology`
    states the class and is forbidden. The text is the section `report` with one or two sentences. The view `superior`
    is the same scene with a strong texture, less noise and no marker. The ROI is the lesion. Splits are official and by
    patient, and all images of a patient have the same class. Each image depends only on the seed and on its own
    position in the table.
    """

    Params = SyntheticParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = False
    credentialed: ClassVar[bool] = False

    def __init__(self, root: Path | None, params: SyntheticParams) -> None:
        self.params = params

    def scan(self) -> Scan:
        """Generates the table of all samples from the option `seed`."""
        table = self._table
        names = table["label"].map(lambda index: CLASSES[index])
        if self.params.labelled is not None:  # the training images come first
            names.iloc[self.params.labelled : self.params.train] = None
        return Scan(
            tasks=TASKS,
            samples=table[["patient", "split"]],
            labels=encode_labels(TASKS[0], names),
            privileged=self._privileged,
            columns=COLUMNS,
            unlisted=("scanner",),
            roi_labels=("lesion",),
            views=("superior",),
            text=self._report,
        )

    def load(self, sample_id: str) -> RawImage:
        """Paints the image of a sample and its view, which are grey, `side` x `side`, uint8."""
        position, truth, glyph = self._scenes[sample_id]
        knobs = self.params
        scene = Scene(np.random.default_rng([knobs.seed, 1, position]), knobs.side, knobs.lesion, truth)
        plain = scene.paint(texture=min(0.4, 3 * knobs.texture), grain=0.02)
        image = scene.paint(texture=knobs.texture, grain=0.06)
        if knobs.marker:
            scene.mark(image, glyph)
        return RawImage(grey_levels(image), {"superior": grey_levels(plain)}, [("lesion", scene.lesion)])

    @cached_property
    def _table(self) -> pd.DataFrame:
        """A table with a row per image: the patient, the split, and three integers from 0 to 2, which are the true
        class, the label and the marker's glyph."""
        knobs = self.params
        generator = np.random.default_rng([knobs.seed, 0])
        parts = []
        for split, count in (("train", knobs.train), ("val", knobs.val), ("test", knobs.test)):
            patient = np.repeat(np.arange(count), generator.integers(1, 4, count))[:count]
            truth = generator.integers(0, 3, count)[patient]
            is_noisy = generator.random(count) < knobs.label_noise
            noisy = np.where(is_noisy, _other_class(truth, generator), truth)
            independent = generator.integers(0, 3, count)
            label, glyph = (noisy, noisy) if split == "train" else (truth, independent)
            image = pd.Series(patient).groupby(patient).cumcount().to_numpy()
            names = [f"{split}-{number:04d}" for number in patient]
            index = pd.Index([f"{name}-{number}" for name, number in zip(names, image, strict=True)], name="sample")
            columns = {"patient": names, "split": split, "truth": truth, "label": label, "glyph": glyph}
            parts.append(pd.DataFrame(columns, index=index))
        return pd.concat(parts)

    @cached_property
    def _scenes(self) -> dict[str, tuple[int, int, int]]:
        """Maps each sample id to the image's position in the table, its true class and its glyph."""
        table = self._table
        drawn = zip(range(len(table)), table["truth"].tolist(), table["glyph"].tolist(), strict=True)
        return dict(zip(table.index.tolist(), drawn, strict=True))

    @cached_property
    def _privileged(self) -> pd.DataFrame:
        truth, knobs = self._table["truth"].to_numpy(), self.params
        generator = np.random.default_rng([knobs.seed, 2])
        noise_2N = generator.normal(size=(2, len(truth)))
        columns = {
            "margin": self._words_by_class("margin", truth, knobs.accuracy, generator),
            "echo": self._words_by_class("echo", truth, knobs.accuracy, generator),
            "signs": _signs(truth, knobs.accuracy, generator),
            "stiffness": np.round(np.take(STIFFNESS, truth) + 18 * noise_2N[0], 1).clip(0),
            "uptake": np.round(np.take(UPTAKE, truth) + noise_2N[1], 2).clip(0),
            "age": np.round(generator.uniform(30, 85, len(truth))),
            "assessment": self._words_by_class("assessment", truth, 0.95, generator),
        }
        frame = pd.DataFrame(columns, index=self._table.index)
        return frame.mask(generator.random(frame.shape) < knobs.missing)

    @cached_property
    def _report(self) -> pd.DataFrame:
        truth, knobs = self._table["truth"].to_numpy(), self.params
        generator = np.random.default_rng([knobs.seed, 3])
        pattern = self._words_by_class("report", truth, knobs.report_accuracy, generator)
        opening = generator.choice(["Solitary lesion", "One round lesion", "A lesion"], len(truth))
        closing = generator.choice(["", " No effusion.", " Compared with earlier images, unchanged."], len(truth))
        report = pd.Series([f"{a} with {b}.{c}" for a, b, c in zip(opening, pattern, closing, strict=True)])
        report.index = self._table.index
        return report.mask(generator.random(len(truth)) < knobs.missing).to_frame("report")

    @staticmethod
    def _words_by_class(name: str, truth: Ints, accuracy: float, generator: np.random.Generator) -> list[str]:
        """Draws a word per sample: its true class's word with probability `accuracy`, else another class's word."""
        class_N = np.where(generator.random(len(truth)) < accuracy, truth, _other_class(truth, generator))
        return [WORDS[name][index] for index in class_N]


def _other_class(truth: Ints, generator: np.random.Generator) -> Ints:
    """Draws a wrong class for each image: one of the two classes other than the true one, with equal probability."""
    return (truth + generator.integers(1, 3, len(truth))) % 3


def _signs(truth: Ints, accuracy: float, generator: np.random.Generator) -> list[str]:
    """Draws the signs of each lesion. The sign of its class is drawn with probability `accuracy`, and each other sign
    with probability (1 - accuracy) / 2. The text is 'none' if no sign was drawn."""
    own_N3 = np.eye(3, dtype=bool)[truth]
    seen_N3 = generator.random((len(truth), 3)) < np.where(own_N3, accuracy, (1 - accuracy) / 2)
    return [
        "&".join(word for word, is_seen in zip(WORDS["signs"], seen, strict=True) if is_seen) or "none"
        for seen in seen_N3
    ]


class Scene:
    """The place and texture of a lesion and the background clutter. They are drawn at random once, and then painted
    into both the image and the view `superior`."""

    def __init__(self, generator: np.random.Generator, side: int, size: float, truth: int) -> None:
        self.generator = generator
        self.side = side
        radius = size * generator.uniform(side / 6, side / 4.5)
        y, x = generator.uniform(radius + 1, side - radius - 1, 2)
        row, column = np.mgrid[:side, :side] + 0.5
        distance = np.hypot(row - y, column - x)
        self.lesion: NDArray[np.bool_] = distance < radius
        self.opacity: Floats = np.clip(radius - distance + 0.5, 0, 1)
        across, down = (np.sin(2 * np.pi * (axis / 4 + generator.random())) for axis in (row, column))
        self.texture: Floats = (across, down, np.sqrt(2) * across * down)[truth]  # of equal power
        self.clutter: Floats = 0.06 * _smooth(generator, side)
        self.corner = self._free_corner()

    def paint(self, texture: float, grain: float, darkness: float = 0.08) -> Floats:
        """Paints the scene as grey values, most of them in [0, 1]. The lesion is slightly darker than its surroundings.

        Args:
            texture: amplitude of the lesion's texture.
            grain: standard deviation of the image noise.
            darkness: by how much the lesion is darker than its surroundings.
        """
        noise = grain * self.generator.normal(size=(self.side, self.side))
        return 0.45 + self.clutter + noise + self.opacity * (texture * self.texture - darkness)

    def mark(self, image: Floats, glyph: int) -> None:
        """Paints the marker, a bright glyph on a dark square, into the image. It is a sixth as wide as the image."""
        image[self.corner] = np.where(_paint_glyph(GLYPHS[glyph], self.side // 6), 0.9, 0.1)

    def _free_corner(self) -> tuple[slice, slice]:
        """Draws a random corner for the marker from the corners that the lesion does not reach."""
        inset, size = self.side // 24, self.side // 6
        ends = (slice(inset, inset + size), slice(self.side - inset - size, self.side - inset))
        free = [(y, x) for y in ends for x in ends if not self.lesion[y, x].any()]
        return free[self.generator.integers(len(free))]


def _smooth(generator: np.random.Generator, side: int) -> Floats:
    """Draws smooth noise: random values with unit variance at 6 x 6 knots, interpolated linearly between the knots."""
    position = np.linspace(0, 5, side)
    weight = np.clip(1 - np.abs(position[:, None] - np.arange(6)), 0, 1)
    smooth: Floats = weight @ generator.normal(size=(6, 6)) @ weight.T
    return smooth


def _paint_glyph(name: str, size: int) -> NDArray[np.bool_]:
    """Returns the mask of a glyph (a horizontal bar, a vertical post or a ring). Each glyph is mirror-symmetric."""
    middle = np.abs(np.arange(size) - (size - 1) / 2)
    ring = np.maximum(middle[:, None], middle)
    bar: NDArray[np.bool_] = np.repeat((middle < 1.1)[:, None], size, axis=1)
    shapes: dict[str, NDArray[np.bool_]] = {"bar": bar, "post": bar.T, "ring": (ring > 1) & (ring < size / 2 - 1)}
    return shapes[name]


def grey_levels(image: Floats) -> NDArray[np.uint8]:
    """Converts grey values in [0, 1] to uint8; values beyond are clipped."""
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
