"""Reads images for an exported student in the same way as its training cohort, and warns about unusual images."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np

from mmpkd.cohort.decode import Appearance, Depth, read_image, to_8_bit
from mmpkd.cohort.facts import BadSample
from mmpkd.cohort.formats import dicom, nifti
from mmpkd.cohort.formats.masks import FEW_VALUES, two_valued_mask
from mmpkd.cohort.formats.nifti import is_nifti, read_slices
from mmpkd.cohort.remarks import BLACK, WHITE
from mmpkd.export.origin import Origin
from mmpkd.export.student_file import Card
from mmpkd.types import ConfigError
from mmpkd.vlm.student import VlmCard

OTHER_FILES = re.compile(
    r"\.(csv|tsv|txt|md|rst|log|jsonl?|xml|html?|ya?ml|toml|ini|cfg|parquet|feather|xlsx?|ods|pdf|docx?|py|ipynb|sh|db"
    r"|sqlite|npy|npz|pkl|pt|safetensors|bvals?|bvecs?)(\.gz)?$",
    re.IGNORECASE,
)
MIN_RANGE = 8  # of 255: an image with a smaller range of grey levels, but for a hundredth of its pixels, is flat
MOSTLY = 0.9  # share of training images in colour from which a grey image is unusual
MAX_LOSSY_SHARE = 0.1  # largest share of pixels between dark and bright in a lossily compressed mask

# By key: the warning in the table row of an image, and the warning on the console about all such images.
MASK = "hardly more than two values"
WARNINGS: Mapping[str, str] = {
    "in colour": "are in colour, and the student sees only their brightness: was it trained on such images?",
    "without colour": "are grey, and the student was trained on images in colour",
    "no volume": "are not NIfTI volumes; the student was trained on slices of those, each scaled by its own range",
    MASK: "hold only two values, or hardly more: are they masks?",
    "hardly any contrast": f"vary by fewer than {MIN_RANGE} of 255 grey levels all over, as empty images do",
    "nearly black": f"have a mean grey level below {BLACK} of 255, as the student sees them",
    "nearly white": f"have a mean grey level above {WHITE} of 255, as the student sees them",
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
    # A link to nothing counts as a file, which is then reported as unreadable.
    present = sorted(path for path in root.rglob("*") if path.is_file() or (path.is_symlink() and not path.exists()))
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


def read_input_image(path: Path, card: Card | VlmCard) -> np.ndarray:
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


def warnings_of(
    image: np.ndarray, file: str, card: Card | VlmCard, origin: Origin | None, look: Appearance
) -> tuple[str, ...]:
    """Returns the keys of `WARNINGS` that apply to an image (H x W or H x W x 3, as in its file) for a student with
    this card and origin. `look` holds the brightness and colour of the image."""
    # The channels of a student of volumes are slices, not colours.
    learnt_colour = origin is not None and not card.slices and (origin.coloured or 0) >= MOSTLY
    # A mask volume is blank once it is spread over its own range, and a picture of one value is empty.
    is_mask = (is_nifti(file) or not look.is_blank) and _is_like_a_mask(image)
    conditions = (
        card.channels == 1 and look.is_coloured,
        learnt_colour and not look.is_coloured and not is_mask,
        bool(card.slices) and not is_nifti(file),
        is_mask,
        not is_mask and _is_flat(image, card.depth),
        not is_mask and look.mean < BLACK,
        not is_mask and look.mean > WHITE,
    )
    return tuple(warning for warning, applies in zip(WARNINGS, conditions, strict=True) if applies)


def warnings_in_words(warned: Mapping[str, Sequence[str]], root: Path, names: Sequence[str]) -> list[str]:
    """Returns the warnings about all images of a folder.

    Args:
        warned: by key of `WARNINGS` the names of the images that have this warning.
        names: the names of all images, as paths below `root`.
    """
    lines = []
    for warning, text in WARNINGS.items():
        if images := warned.get(warning):
            advice = _without(images, root, names) if warning == MASK and len(names) > 1 else ""
            lines.append(f"{len(images)} of {len(names)} images {text}{advice}")
    return lines


def _without(masks: Sequence[str], root: Path, names: Sequence[str]) -> str:
    """Returns advice on how to leave masks out."""
    images = [name for name in names if name not in set(masks)]
    if not images:
        return " If so, name the folder of the images"
    for pattern in _patterns(images):
        matching = {name for name in names if _matches(Path(name), pattern)}
        if matching == set(images):
            return f" pattern={shlex.quote(pattern)} leaves them out and keeps the others"
    return f" If so, move the images to a folder of their own, and name it instead of images={root}"


def _patterns(names: Sequence[str]) -> Iterator[str]:
    """Yields patterns that match all of these paths, from the strictest to the most general."""
    files = [PurePosixPath(name).name for name in names]
    digits = {re.sub(r"\d", "?", glob.escape(file)) for file in files}
    yield from digits if len(digits) == 1 else ()
    suffix = PurePosixPath(files[0]).suffix
    if all(file.removesuffix(suffix)[-1:].isdigit() and file.endswith(suffix) for file in files):
        yield f"*[0-9]{glob.escape(suffix)}"
    yield f"*{glob.escape(_common_start([file[::-1] for file in files])[::-1])}"
    yield f"{glob.escape(_common_start(files))}*"
    folder = os.path.commonpath([str(PurePosixPath(name).parent) for name in names])
    if folder:
        yield f"{glob.escape(folder)}/*"


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)  # all others lie between them and share what these two share
    return "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


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
