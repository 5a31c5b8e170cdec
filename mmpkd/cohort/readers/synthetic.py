"""A cohort whose answer is known: does privileged knowledge make a student see what it overlooks?

Every image shows a lesion in noise. Its class is the lesion's subtle texture (lines across, lines
down, or checks), and beside it stands a conspicuous marker. Training labels are noisy, and in
training the marker agrees with the noisy label, so a student taught by labels alone reads the
marker and explains even their errors by it. In validation and test labels are the truth and the
marker is independent of it, so that student is no better than chance and looks at the marker.
The privileged views (table, text, superior image) speak of the truth and never of the marker or of
the label's error: a teacher fitted to them, noisy labels and all, has no use for the marker.
`benchmarks/known_answer.py` measures what follows; `docs/decisions/known_answer.md` says how the knobs were chosen.
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
from mmpkd.config import Fraction, Positive, Strict
from mmpkd.types import lay_out

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLASSES = ("lamellar", "columnar", "reticular")  # lines across, lines down, checks: unchanged by any flip
TASKS = lay_out([("pattern", "multiclass", CLASSES)])
COLUMNS = {
    column.name: column
    for column in (
        Column("margin", "descriptor"),
        Column("echo", "descriptor"),
        Column("signs", "descriptor", "multivalued", separator="&"),
        Column("stiffness", "descriptor", "numeric"),  # kPa
        Column("uptake", "descriptor", "numeric"),  # no unit
        Column("age", "context", "numeric"),  # years; tells nothing
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
STIFFNESS = (40.0, 65.0, 90.0)  # mean by class, kPa, with a standard deviation of 18
UPTAKE = (3.0, 4.5, 3.0)  # mean by class, with a standard deviation of 1
GLYPHS = ("bar", "post", "ring")


class SyntheticParams(Strict):
    """The knobs. The defaults are those of the known-answer benchmark; lengths are native pixels."""

    seed: Annotated[int, Field(ge=0)] = 0
    train: Positive = 800  # images of each official split; a patient has one to three
    val: Positive = 300
    test: Positive = 300
    side: Annotated[int, Field(ge=32)] = 48  # of the square image: give `cohort.image_size` the same
    texture: Fraction = 0.16  # amplitude of the lesion's texture; the grain of the image is 0.06
    label_noise: Fraction = 0.3  # share of training images that carry one of the other two labels
    marker: bool = True  # False paints none and leaves every other pixel as it was
    accuracy: Fraction = 0.75  # how often a categorical descriptor, or a typical sign, tells the truth
    report_accuracy: Fraction = 0.9  # how often the report does
    missing: Fraction = 0.15  # share of cells, and of reports, that are not there


class Synthetic(Reader):
    """Generated lesions of three textures, with tabular, text and superior-image views, and ROI masks.

    Table: one row an image; descriptors tell the truth imperfectly and with gaps, `age` tells
    nothing, `assessment` nearly states the truth (95 %), `pathology` states it and is forbidden.
    Text: a sentence or two of `report`. View `superior`: the same scene with the texture made plain,
    less noise and no marker. ROI: the lesion. Splits are official, by patient; a patient's images
    share their class. Each image depends on the seed and its own position alone.
    """

    Params = SyntheticParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = False
    credentialed: ClassVar[bool] = False

    def __init__(self, root: Path | None, params: SyntheticParams) -> None:
        self.params = params

    def scan(self) -> Scan:
        """The table, drawn anew from the seed."""
        table = self._table
        names = table["label"].map(lambda index: CLASSES[index])
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
        """Paint one sample, grey, `side` x `side`, uint8."""
        position, truth, glyph = self._scenes[sample_id]
        knobs = self.params
        scene = _Scene(np.random.default_rng([knobs.seed, 1, position]), knobs.side, truth)
        plain = scene.paint(texture=min(0.4, 3 * knobs.texture), grain=0.02)
        image = scene.paint(texture=knobs.texture, grain=0.06)
        if knobs.marker:
            scene.mark(image, glyph)
        return RawImage(_grey(image), {"superior": _grey(plain)}, [("lesion", scene.lesion)])

    @cached_property
    def _table(self) -> pd.DataFrame:
        """Per image: patient, split, and as class indices its truth, its label and its marker's glyph."""
        knobs = self.params
        generator = np.random.default_rng([knobs.seed, 0])
        parts = []
        for split, count in (("train", knobs.train), ("val", knobs.val), ("test", knobs.test)):
            patient = np.repeat(np.arange(count), generator.integers(1, 4, count))[:count]
            truth = generator.integers(0, 3, count)[patient]
            wrong = generator.random(count) < knobs.label_noise
            noisy = np.where(wrong, _other_class(truth, generator), truth)
            elsewhere = generator.integers(0, 3, count)
            label, glyph = (noisy, noisy) if split == "train" else (truth, elsewhere)
            image = pd.Series(patient).groupby(patient).cumcount().to_numpy()
            names = [f"{split}-{one:04d}" for one in patient]
            index = pd.Index([f"{name}-{number}" for name, number in zip(names, image, strict=True)], name="sample")
            columns = {"patient": names, "split": split, "truth": truth, "label": label, "glyph": glyph}
            parts.append(pd.DataFrame(columns, index=index))
        return pd.concat(parts)

    @cached_property
    def _scenes(self) -> dict[str, tuple[int, int, int]]:
        """Position, truth and glyph by sample id."""
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
        told = np.where(generator.random(len(truth)) < accuracy, truth, _other_class(truth, generator))
        return [WORDS[name][index] for index in told]


def _other_class(truth: Ints, generator: np.random.Generator) -> Ints:
    """One of the other two classes, each as often."""
    return (truth + generator.integers(1, 3, len(truth))) % 3


def _signs(truth: Ints, accuracy: float, generator: np.random.Generator) -> list[str]:
    """Several signs a lesion: its class's own as often as `accuracy`, each other one half as seldom
    as that is wrong; 'none' where there is none."""
    own_N3 = np.eye(3, dtype=bool)[truth]
    seen_N3 = generator.random((len(truth), 3)) < np.where(own_N3, accuracy, (1 - accuracy) / 2)
    return [
        "&".join(word for word, is_seen in zip(WORDS["signs"], seen, strict=True) if is_seen) or "none"
        for seen in seen_N3
    ]


class _Scene:
    """Where the lesion lies, how it is lined, and what clutters the background; drawn once, painted twice."""

    def __init__(self, generator: np.random.Generator, side: int, truth: int) -> None:
        self.generator = generator
        self.side = side
        radius = generator.uniform(side / 6, side / 4.5)
        y, x = generator.uniform(radius + 1, side - radius - 1, 2)
        row, column = np.mgrid[:side, :side] + 0.5
        distance = np.hypot(row - y, column - x)
        self.lesion: NDArray[np.bool_] = distance < radius
        self.opacity: Floats = np.clip(radius - distance + 0.5, 0, 1)
        across, down = (np.sin(2 * np.pi * (axis / 4 + generator.random())) for axis in (row, column))
        self.texture: Floats = (across, down, np.sqrt(2) * across * down)[truth]  # of equal power
        self.clutter: Floats = 0.06 * _smooth(generator, side)
        self.corner = self._free_corner()

    def paint(self, texture: float, grain: float) -> Floats:
        """Grey values around [0, 1]; the lesion is a little darker than its surroundings."""
        noise = grain * self.generator.normal(size=(self.side, self.side))
        return 0.45 + self.clutter + noise + self.opacity * (texture * self.texture - 0.08)

    def mark(self, image: Floats, glyph: int) -> None:
        """Stamp a bright glyph on a dark plate, a sixth of the side wide."""
        image[self.corner] = np.where(_paint_glyph(GLYPHS[glyph], self.side // 6), 0.9, 0.1)

    def _free_corner(self) -> tuple[slice, slice]:
        """A corner for the marker, one of those that the lesion leaves free."""
        inset, size = self.side // 24, self.side // 6
        ends = (slice(inset, inset + size), slice(self.side - inset - size, self.side - inset))
        free = [(y, x) for y in ends for x in ends if not self.lesion[y, x].any()]
        return free[self.generator.integers(len(free))]


def _smooth(generator: np.random.Generator, side: int) -> Floats:
    """Noise of unit variance at 6 x 6 knots, linear between them."""
    at = np.linspace(0, 5, side)
    weight = np.clip(1 - np.abs(at[:, None] - np.arange(6)), 0, 1)
    smooth: Floats = weight @ generator.normal(size=(6, 6)) @ weight.T
    return smooth


def _paint_glyph(name: str, size: int) -> NDArray[np.bool_]:
    """A horizontal bar, a vertical post, or a ring; each looks the same mirrored."""
    middle = np.abs(np.arange(size) - (size - 1) / 2)
    ring = np.maximum(middle[:, None], middle)
    bar: NDArray[np.bool_] = np.repeat((middle < 1.1)[:, None], size, axis=1)
    shapes: dict[str, NDArray[np.bool_]] = {"bar": bar, "post": bar.T, "ring": (ring > 1) & (ring < size / 2 - 1)}
    return shapes[name]


def _grey(image: Floats) -> NDArray[np.uint8]:
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
