"""Reads images for an exported student in the same way as its training cohort, and warns about unusual images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from mmpkd.cohort.decode import Appearance, Depth, read_image, to_8_bit
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats import dicom, nifti
from mmpkd.cohort.formats.masks import FEW_VALUES, two_valued_mask
from mmpkd.cohort.formats.nifti import is_nifti, read_slices
from mmpkd.export.student_file import Card
from mmpkd.types import ConfigError

OTHER_FILES = re.compile(
    r"\.(csv|tsv|txt|md|rst|log|jsonl?|xml|html?|ya?ml|toml|ini|cfg|parquet|feather|xlsx?|ods|pdf|docx?|py|ipynb|sh|db"
    r"|sqlite|npy|npz|pkl|pt|safetensors|bvals?|bvecs?)(\.gz)?$",
    re.IGNORECASE,
)
MIN_RANGE = 8  # of 255: an image with a smaller range of grey levels, but for a hundredth of its pixels, is flat
MAX_LOSSY_SHARE = 0.1  # largest share of pixels between dark and bright in a lossily compressed mask

# By key: the warning in the table row of an image, and the warning on the console about all such images.
WARNINGS: Mapping[str, str] = {
    "in colour": "are in colour, and the student sees only their brightness: was it trained on such images?",
    "no volume": "are not NIfTI volumes; the student was trained on slices of those, each scaled by its own range",
    "hardly more than two values": "hold only two values, or hardly more: are they masks? Leave them out with pattern=",
    "hardly any contrast": f"vary by fewer than {MIN_RANGE} of 255 grey levels all over, as empty images do",
}

NO_VOLUMES = (
    "is a NIfTI volume, and the student does not state the slices that it was trained on: it was trained on pictures, "
    "or exported by an earlier version; then repeat the mmpkd.train command that made it"
)


def is_no_image(path: Path) -> bool:
    """Whether the name of a file shows that it is no image: it is hidden, or named like a table, a text or similar."""
    return path.name.startswith(".") or OTHER_FILES.search(path.name) is not None


def input_images(root: Path, pattern: str) -> tuple[list[Path], list[Path]]:
    """Returns the images to predict, and the files that are skipped because their names show that they are no images.

    Args:
        root: an image, or a folder that is searched with all its subfolders.
        pattern: a glob, which the name of a file in the folder must match; with `/`, its path below the folder. All
            files match an empty pattern.

    Raises:
        ConfigError: there is no image, or there is a pattern although `root` is a file.
    """
    if root.is_file():
        if pattern:
            raise ConfigError.at("pattern", f"chooses files of a folder, and {root} is a file; leave it out")
        return [root], []
    present = sorted(path for path in root.rglob("*") if path.is_file())
    matching = [path for path in present if _matches(path.relative_to(root), pattern)]
    images = [path for path in matching if not is_no_image(path)]
    if pattern and present and not matching:
        example = next((path for path in present if not is_no_image(path)), present[0]).relative_to(root)
        problem = f"none of {len(present)} files below {root} matches {pattern!r}"
        raise ConfigError.at("pattern", f"{problem}; one of them is {example.as_posix()}")
    if not images:
        raise ConfigError.at("images", f"no {'image' if matching else 'file'} at {root.absolute()}")
    return images, [path for path in matching if is_no_image(path)]


def _matches(path: Path, pattern: str) -> bool:
    return not pattern or fnmatchcase(path.as_posix() if "/" in pattern else path.name, pattern)


def spacing_of(path: Path) -> float | None:
    """Returns the distance of neighbouring columns of an image in millimetres, or None where its file does not state
    it: only DICOM and NIfTI do so reliably (the resolution of a PNG or JPEG is one of printing)."""
    if is_nifti(path.name):
        return nifti.read_spacing(path.parent, path.name)
    return dicom.read_spacing(path.parent, path.name) if dicom.is_dicom(path.parent, path.name) else None


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
    is_mask = _is_like_a_mask(image)
    is_flat = not is_mask and _is_flat(image, card.depth)
    conditions = (is_coloured, bool(card.slices) and not is_nifti(file), is_mask, is_flat)
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


def _is_flat(image: np.ndarray, depth: Depth) -> bool:
    thinned = image[:: max(1, image.shape[0] // 200), :: max(1, image.shape[1] // 200)]
    low, high = np.percentile(to_8_bit(thinned, depth), [0.5, 99.5])
    return bool(high - low < MIN_RANGE)
