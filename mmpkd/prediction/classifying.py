"""A student that classifies, ready for images, and its prediction for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mmpkd.cohort.decode import measure_appearance, to_8_bit, to_stored_square
from mmpkd.export import student_file
from mmpkd.export.usage import label_names
from mmpkd.frames import Letterbox
from mmpkd.prediction.files import called
from mmpkd.prediction.input_images import read_input_image, spacing_of, warnings_of
from mmpkd.scoring import overlays
from mmpkd.scoring.saliency import MAPS

NAMED = 3  # labels of a task that the text below an overlay names


@dataclass(frozen=True)
class Prediction:
    """The prediction of a student for one image.

    probabilities: calibrated probabilities by `task/label`.
    called: decision by task: the likeliest class or, for a multi-label task, all labels above their thresholds.
    map_Rhw: saliency on the patch grid; one map for all tasks, or one per task.
    image: the image at its own size, 8 bits, H x W or H x W x 3.
    warnings: keys of `mmpkd.prediction.input_images.WARNINGS` that apply to the image.
    spacing: distance of neighbouring columns of the image in millimetres; None if its file does not state it.
    """

    probabilities: dict[str, float]
    called: dict[str, tuple[str, ...]]
    map_Rhw: NDArray[np.float32]
    image: NDArray[np.uint8]
    letterbox: Letterbox
    warnings: tuple[str, ...] = ()
    spacing: float | None = None

    def overlays(self) -> list[Image.Image]:
        """Returns the overlay of each map, see `mmpkd.scoring.overlays.overlay`."""
        return [overlays.overlay(self.image, self.letterbox.original_map(map_hw)) for map_hw in self.map_Rhw]

    def pictures(self, lines: Sequence[str]) -> list[Image.Image]:
        """Returns for each map the image beside its overlay, see `mmpkd.scoring.overlays.beside`.

        `lines` has a line for each task. A picture has all of them, or that of its task if each task has a map.
        """
        notes = [f"warning: {'; '.join(self.warnings)}"] if self.warnings else []
        texts = [[line, *notes] for line in lines] if len(self.map_Rhw) > 1 else [[*lines, *notes]]
        pairs = zip(self.overlays(), texts, strict=True)
        return [overlays.beside(self.image, overlaid, text, self.spacing) for overlaid, text in pairs]


class Predictor:
    """An exported student that is ready for images.

    Raises:
        ConfigError: the path holds no exported student.
    """

    def __init__(self, path: Path | str) -> None:
        exported = student_file.read(Path(path))
        self.student, self.card, self.origin = exported.student, exported.card, exported.origin
        self._probabilities = exported.probabilities
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student.to(self.device)
        self.names = label_names(self.card)

    def __call__(self, image: Path | str) -> Prediction:
        """Returns the prediction for the image in a file.

        Raises:
            BadSample: the file cannot be read; it has another bit depth than the training images; or it is a volume
                and the student was not trained on volumes.
        """
        path, card = Path(image), self.card
        raw = read_input_image(path, card)
        look = measure_appearance(raw, card.depth)
        pixels_CHW = to_stored_square(raw, card.image_size, card.channels, card.depth)
        pixels_BCHW = torch.from_numpy(pixels_CHW).to(self.device)[None].float() / 255
        columns = [tuple(range(task.columns.start, task.columns.stop)) for task in card.tasks]
        logits_BK, map_BRhw = MAPS[card.map]()(self.student, pixels_BCHW, columns)
        probability_K = self._probabilities(logits_BK.float().cpu().numpy())[0]
        probabilities = dict(zip(self.names, probability_K.tolist(), strict=True))
        letterbox = Letterbox(raw.shape[0], raw.shape[1], card.image_size)
        return Prediction(
            probabilities,
            called(card, probabilities),
            map_BRhw[0].float().cpu().numpy(),
            to_8_bit(raw, card.depth),
            letterbox,
            warnings_of(raw, path.name, card, self.origin, look),
            spacing_of(path),
        )

    def lines(self, prediction: Prediction) -> list[str]:
        """Returns a line for each task: its likeliest labels with their probabilities, and the decision."""
        lines = []
        for task in self.card.tasks:
            probability = {name: prediction.probabilities[f"{task.name}/{name}"] for name in task.logit_names}
            likeliest = sorted(probability, key=lambda name: -probability[name])
            shown = ", ".join(f"{name} {probability[name]:.3f}" for name in likeliest[:NAMED])
            more = f", and {len(likeliest) - NAMED} less likely" if len(likeliest) > NAMED else ""
            decision = ", ".join(prediction.called[task.name]) or "none"
            lines.append(f"{task.name}: {shown}{more}; decision: {decision}")
        return lines
