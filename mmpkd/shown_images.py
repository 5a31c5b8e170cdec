"""Images that an exported student is shown: read as its cohort read its own, and what is odd about them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from mmpkd.cohort.decode import Look, read_image
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats.masks import FEW_VALUES, two_valued
from mmpkd.cohort.formats.nifti import is_nifti, read_slices
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

NO_VOLUMES = (
    "is a NIfTI volume, and the student does not say which slices of one it learnt from: it learnt from pictures; or "
    "it was exported before students said so, and the mmpkd.train command that made it writes it anew"
)


def is_no_image(path: Path) -> bool:
    """By the name: tables, texts and the like, and what systems hide."""
    return path.name.startswith(".") or OTHER_FILES.search(path.name) is not None


def read_shown(path: Path, card: Card) -> np.ndarray:
    """H x W or H x W x 3 at its own size, of the depth that the student learnt from; slices of a volume as it learnt.

    Raises:
        BadSample: it cannot be read, has another depth, or is a volume and the student says no slices.
    """
    if not is_nifti(path.name):
        image = read_image(path.parent, path.name)
    elif card.slices:
        image, _ = read_slices(path.parent, path.name, card.slices)
    else:
        raise BadSample(path.name, NO_VOLUMES)
    if (bits := image.dtype.itemsize * 8) != card.depth.bits:
        trained = f"the student was trained on {card.depth.bits}-bit images; save it as they were"
        raise BadSample(path.name, f"has {bits}-bit pixels, and {trained}")
    return image


def warnings_of(image: np.ndarray, file: str, card: Card, look: Look) -> tuple[str, ...]:
    """Keys of `WARNINGS`, of an image as its file has it (H x W or H x W x 3) and its `look`, before a student of
    this card."""
    is_coloured = card.channels == 1 and look.is_coloured
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
