"""Generates a cohort of questions whose answers are known: the lesions of `synthetic`, under eight modalities.

Every image shows one lesion at a random place, without marker. Four questions are asked about it, one of each task:

VG    where is the lesion?                 <box>(187,250),(562,625)</box>
RO    what is the pattern of <box>...?     columnar
MII   is the lesion columnar?              yes, or no; both are equally frequent
GC    describe the image                   a columnar lesion in the left half

The answers are always true. The class is the lesion's texture, which is faint in the image and strong in the view
`superior` of the same scene, so that a teacher can see what a student overlooks. With `tint` above 0, the lesion's grey
value there tells the class too, which a teacher learns from fewer images than a texture. With `labelled` below 1, the
other training images have questions without answers.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from mmpkd.cohort.facts import RawImage, Reader, Scan
from mmpkd.cohort.questions import COLUMNS
from mmpkd.cohort.readers.synthetic import CLASSES, Floats, Scene, grey_levels
from mmpkd.types import Fraction, Positive, Strict
from mmpkd.vlm.boxes import GRID, Box, written


class Look(NamedTuple):
    """What a modality does to grey values: it multiplies their contrast around 0.45, and then adds to them."""

    contrast: float
    brightness: float


MODALITIES = {  # the prefixes of Med-GRIT-270k's file names; the looks are invented
    "ct": Look(1.0, 0.0),
    "mr": Look(0.9, 0.06),
    "x": Look(0.8, 0.1),
    "pet": Look(0.7, 0.12),
    "endoscopy": Look(1.1, -0.04),
    "dermoscopy": Look(1.2, 0.08),
    "fundus": Look(0.9, -0.08),
    "ultrasound": Look(1.1, -0.12),
}


class SyntheticVqaParams(Strict):
    """The options. Lengths are in pixels of the original image."""

    seed: Annotated[int, Field(ge=0)] = 0
    train: Positive = 800  # number of images, also for val and test; a patient has one to three
    val: Positive = 200
    test: Positive = 200
    side: Annotated[int, Field(ge=32)] = 48  # side of the image; `cohort.image_size` should be the same
    texture: Fraction = 0.16  # amplitude of the lesion's texture; the image noise has a standard deviation of 0.06
    darkness: Fraction = 0.08  # by how much the lesion is darker than its surroundings, which makes it easy to find
    tint: Fraction = 0.0  # by how much, in `superior` alone, the three classes differ in how dark the lesion is
    labelled: Fraction = 1.0  # share of training images whose questions have answers


class SyntheticVqa(Reader):
    """Generates images of lesions with four questions each. Splits are official and by patient; all images of a patient
    have the same class and the same modality. Each image depends only on the seed and on its position."""

    Params = SyntheticVqaParams
    VERSION: ClassVar[int] = 1
    needs_root: ClassVar[bool] = False
    credentialed: ClassVar[bool] = False

    def __init__(self, root: Path | None, params: SyntheticVqaParams) -> None:
        self.params = params

    def scan(self) -> Scan:
        """Generates the table of all images and questions from the option `seed`."""
        table = self._table
        nothing = pd.DataFrame(index=table.index)
        return Scan(
            tasks=(),
            samples=table[["patient", "split"]],
            labels=nothing,
            privileged=nothing,
            views=("superior",),
            questions=self._questions(),
        )

    def load(self, sample_id: str) -> RawImage:
        """Paints the image of a sample and its view, which are grey, `side` x `side`, uint8."""
        position = self._positions[sample_id]
        scene = self._scene(position)
        look = MODALITIES[str(self._table["modality"].iloc[position])]
        knobs = self.params
        tinted = knobs.darkness + (int(self._table["truth"].iloc[position]) - 1) * knobs.tint
        plain = scene.paint(texture=min(0.4, 3 * knobs.texture), grain=0.02, darkness=tinted)
        image = scene.paint(texture=knobs.texture, grain=0.06, darkness=knobs.darkness)
        return RawImage(grey_levels(_seen(image, look)), {"superior": grey_levels(_seen(plain, look))})

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {str(sample): position for position, sample in enumerate(self._table.index)}

    def _scene(self, position: int) -> Scene:
        generator = np.random.default_rng([self.params.seed, 1, position])
        return Scene(generator, self.params.side, 1.0, int(self._table["truth"].iloc[position]))

    @cached_property
    def _table(self) -> pd.DataFrame:
        """A table with a row per image: patient, split, modality, true class (0 to 2) and whether it has answers."""
        knobs = self.params
        generator = np.random.default_rng([knobs.seed, 0])
        parts = []
        for split, count in (("train", knobs.train), ("val", knobs.val), ("test", knobs.test)):
            patient = np.repeat(np.arange(count), generator.integers(1, 4, count))[:count]
            modality = generator.permutation(np.resize([*MODALITIES], count))[patient]
            truth = generator.integers(0, 3, count)[patient]
            # The first images of this order have answers, so that a larger share contains a smaller one.
            has_answer = generator.permutation(count) < round(knobs.labelled * count)
            image = pd.Series(patient).groupby(patient).cumcount().to_numpy()
            names = [f"{kind}_{split}-{number:04d}" for kind, number in zip(modality, patient, strict=True)]
            index = pd.Index([f"{name}-{number}" for name, number in zip(names, image, strict=True)], name="sample")
            columns = {"patient": names, "split": split, "modality": modality, "truth": truth}
            parts.append(pd.DataFrame({**columns, "has_answer": has_answer | (split != "train")}, index=index))
        return pd.concat(parts)

    def _questions(self) -> pd.DataFrame:
        table = self._table
        generator = np.random.default_rng([self.params.seed, 2])
        is_true_N = generator.random(len(table)) < 0.5
        other_N = generator.integers(1, 3, len(table))
        rows = []
        for position, (sample, image) in enumerate(table.iterrows()):
            truth = int(image["truth"])
            word, box = CLASSES[truth], _box(self._scene(position))
            named = word if is_true_N[position] else CLASSES[(truth + other_N[position]) % 3]
            half = "left" if box.left + box.right < GRID else "right"
            for task, question, answer in (
                ("VG", "where is the lesion?", written(box)),
                ("RO", f"what is the pattern of {written(box)}?", word),
                ("MII", f"is the lesion {named}?", "yes" if named == word else "no"),
                ("GC", "describe the image", f"a {word} lesion in the {half} half"),
            ):
                rows.append((sample, question, answer if image["has_answer"] else None, task, image["modality"]))
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _seen(image: Floats, look: Look) -> Floats:
    return 0.45 + look.contrast * (image - 0.45) + look.brightness


def _box(scene: Scene) -> Box:
    """Returns the box of the lesion's mask on the grid of questions, 0 to `GRID` along each side."""
    ends = [np.flatnonzero(scene.lesion.any(axis=axis))[[0, -1]] + (0, 1) for axis in (0, 1)]
    (left, right), (top, bottom) = (np.round(GRID * end / scene.side).astype(int).tolist() for end in ends)
    return Box(left, top, right, bottom)
