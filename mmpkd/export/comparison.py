"""Random images on which an export is compared with its student."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mmpkd.export.student_file import Card, Exported
from mmpkd.scoring.stats import Floats

NUM_IMAGES = 4


def random_squares(card: Card) -> NDArray[np.uint8]:
    """Returns images in the form that the student sees, N x C x S x S."""
    shape = (NUM_IMAGES, card.channels, card.image_size, card.image_size)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def random_originals(card: Card) -> list[NDArray[np.uint8 | np.uint16]]:
    """Returns images at sizes of their own, H x W or H x W x 3, in the student's bit depth and within its window."""
    generator = np.random.default_rng(0)
    window = card.depth.window or (0, 256 if card.depth.bits == 8 else 65_536)
    low = max(int(window[0]), 0)
    shapes = [(card.image_size + count, 2 * card.image_size)[:: 1 if count % 2 else -1] for count in range(NUM_IMAGES)]
    kind = np.uint8 if card.depth.bits == 8 else np.uint16
    further = () if card.channels == 1 else (3,)
    return [generator.integers(low, max(int(window[1]), low + 1), (*shape, *further)).astype(kind) for shape in shapes]


def difference(exported: Exported, pixels_NCHW: NDArray[np.uint8], probability_NK: Floats) -> float:
    """Returns the largest difference between given probabilities and those of the student for stored squares."""
    with torch.inference_mode():
        logits_NK = exported.student(torch.from_numpy(pixels_NCHW).float() / 255).logits_BK
    return float(np.abs(probability_NK - exported.probabilities(logits_NK.numpy())).max())
