"""Reads images for an exported student in the same way as its training cohort, and warns about unusual images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from mmpkd.cohort.decode import Appearance, read_image
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats.masks import FEW_VALUES, two_valued_mask
from mmpkd.cohort.formats.nifti import is_nifti, read_slices
from mmpkd.export.student_file import Card

OTHER_FILES = re.compile(
    r"\.(csv|tsv|txt|md|rst|log|jsonl?|xml|html?|ya?ml|toml|ini|cfg|parquet|feather|xlsx?|ods|pdf|docx?|py|ipynb|sh|db"
    r"|sqlite|npy|npz|pkl|pt|safetensors|bvals?|bvecs?)(\.gz)?$",
    re.IGNORECASE,
)
MAX_LOSSY_SHARE = 0.1  # largest share of pixels between dark and bright in a lossily compressed mask

# By key: the warning in the table row of an image, and the warning on the console about all such images.
WARNINGS: Mapping[str, str] = {
    "in colour": "are in colour, and the student sees only their brightness: was it trained on such images?",
    "no volume": "are not NIfTI volumes; the student was trained on slices of those, each scaled by its own range",
    "hardly more than two values": "hold only two values, or hardly more: are they masks?",
}

NO_VOLUMES = (
    "is a NIfTI volume, and the student does not state the slices that it was trained on: it was trained on pictures, "
    "or exported by an earlier version; then repeat the mmpkd.train command that made it"
)


def is_no_image(path: Path) -> bool:
    """Whether the name of a file shows that it is no image: it is hidden, or named like a table, a text or similar."""
    return path.name.startswith(".") or OTHER_FILES.search(path.name) is not None


def read_input_image(path: Path, card: Card) -> np.ndarray:
    """Returns an image (H x W or H x W x 3) at its own size, in the student's bit depth; for a volume, its slices.

    Raises:
        BadSample: the file cannot be read, has another bit depth, or is a volume although the student states no slices.
    """
    if not is_nifti(path.name):
        image = read_image(path.parent, path.name)
    elif card.slices:
        image, _ = read_slices(path.parent, path.name, card.slices)
    else:
        raise BadSample(path.name, NO_VOLUMES)
    if (bits := image.dtype.itemsize * 8) != card.depth.bits:
        trained = f"the student was trained on {card.depth.bits}-bit images; save it with that depth"
        raise BadSample(path.name, f"has {bits}-bit pixels, but {trained}")
    return image


def warnings_of(image: np.ndarray, file: str, card: Card, look: Appearance) -> tuple[str, ...]:
    """Returns the keys of `WARNINGS` that apply to an image (H x W or H x W x 3, as in its file) for a student with
    this card. `look` holds the brightness and colour of the image."""
    is_coloured = card.channels == 1 and look.is_coloured
    conditions = (is_coloured, bool(card.slices) and not is_nifti(file), _is_like_a_mask(image))
    return tuple(warning for warning, applies in zip(WARNINGS, conditions, strict=True) if applies)


def _is_like_a_mask(image: np.ndarray) -> bool:
    """Whether an image has only a few values, or two values with edges blurred by lossy compression. All pixels are
    read only if a sample suggests it."""
    thinned = image[:: max(1, image.shape[0] // 200), :: max(1, image.shape[1] // 200)]
    if len(np.unique(thinned)) <= FEW_VALUES and len(np.unique(image)) <= FEW_VALUES:
        return True
    largest = int(thinned.max())
    if np.mean((thinned > largest / 8) & (thinned < largest * 7 / 8)) <= MAX_LOSSY_SHARE:
        with suppress(BadSample):  # raised for a picture that is not a mask
            two_valued_mask(image, "")
            return True
    return False
