"""What is odd about images that a student is shown, though they can be read; and which files are plainly no images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from mmpkd.cohort.decode import look
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.masks import FEW_VALUES, two_valued
from mmpkd.cohort.nifti import is_nifti
from mmpkd.export import Card

OTHER_FILES = re.compile(
    r"\.(csv|tsv|txt|md|rst|log|jsonl?|xml|html?|ya?ml|toml|ini|cfg|parquet|feather|xlsx?|ods|pdf|docx?|py|ipynb|sh|db"
    r"|sqlite|npy|npz|pkl|pt|safetensors|bvals?|bvecs?)(\.gz)?$",
    re.IGNORECASE,
)
LOSSY_MASK = 0.1  # share of pixels between dark and bright from which a picture is not looked at as a lossy mask

# What a row of the table says of an image, and what the console says of all such images.
WARNINGS: Mapping[str, str] = {
    "in colour": "are in colour, and the student sees their brightness alone: was it trained on such images?",
    "no volume": "are no NIfTI volumes, and the student was trained on slices of those, each spread by its own range",
    "hardly more than two values": "hold two values only, or hardly more: are they masks?",
}


def is_no_image(path: Path) -> bool:
    """By the name: tables, texts and the like, and what systems hide."""
    return path.name.startswith(".") or OTHER_FILES.search(path.name) is not None


def warnings_of(image: np.ndarray, file: str, card: Card) -> tuple[str, ...]:
    """Keys of `WARNINGS`, of an image as its file has it (H x W or H x W x 3) before a student of this card."""
    is_coloured = card.channels == 1 and look(image, card.depth).is_coloured
    held = (is_coloured, bool(card.slices) and not is_nifti(file), _is_like_a_mask(image))
    return tuple(warning for warning, holds in zip(WARNINGS, held, strict=True) if holds)


def _is_like_a_mask(image: np.ndarray) -> bool:
    """Of a few values, or of two with lossy edges; looked at closely only where some of its pixels are like that."""
    some = image[:: max(1, image.shape[0] // 200), :: max(1, image.shape[1] // 200)]
    if len(np.unique(some)) <= FEW_VALUES and len(np.unique(image)) <= FEW_VALUES:
        return True
    largest = int(some.max())
    if np.mean((some > largest / 8) & (some < largest * 7 / 8)) <= LOSSY_MASK:
        with suppress(BadSample):  # which is how a picture ends
            two_valued(image, "")
            return True
    return False
