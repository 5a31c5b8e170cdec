"""One NIfTI file to voxels, by nibabel; and axial slices of it to an image."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError

from mmpkd.cohort.facts import BadSample

PERCENTILES = (0.5, 99.5)  # of a volume's foreground: values that become 0 and 255
MOST_APART = 0.5  # voxels that a mask may lie from its image: headers are rounded
MAX_VOXELS = 2**28  # a gigabyte as float32; a brain at 1 mm has a thirtieth of it


class SlicePosition(NamedTuple):
    """Which slices of a volume an image is of, and where in space its voxels lie."""

    levels: list[int]
    affine: np.ndarray  # 4 x 4, from voxels to millimetres


def read_nifti(root: Path, file: str) -> np.ndarray:
    """The voxels of `read_volume`.

    Raises:
        BadSample: see `read_volume`.
    """
    return read_volume(root, file)[0]


def read_volume(root: Path, file: str) -> tuple[np.ndarray, np.ndarray]:
    """X x Y x Z float32, scaled as it says; x runs to the right, y to the front, z to the head, as nearly as axes do;
    and the affine of these voxels.

    Raises:
        BadSample: missing, truncated, not NIfTI, not three-dimensional, too large, without an orientation.
    """
    try:
        image = nibabel.load(root / file)
        if not isinstance(image, nibabel.Nifti1Image):
            raise BadSample(file, "is not a NIfTI file")
        sides = image.shape
        if len(sides) < 3 or any(side > 1 for side in sides[3:]) or min(sides) < 1:
            raise BadSample(file, f"has the sides {', '.join(map(str, sides))}; a volume has three")
        if image.get_data_dtype().kind not in "iuf":  # type: ignore[no-untyped-call]
            raise BadSample(file, "has voxels that are no real numbers")
        if math.prod(sides) > MAX_VOXELS:
            raise BadSample(file, f"has {math.prod(sides):,} voxels; {MAX_VOXELS:,} are allowed")
        if not image.header["qform_code"] and not image.header["sform_code"]:
            raise BadSample(file, "does not say how it is oriented")
        axes = aff2axcodes(image.affine)  # type: ignore[no-untyped-call]
        if not np.isfinite(image.affine).all() or None in axes:
            raise BadSample(file, "says that two of its axes run the same way, or that one runs nowhere")
        upright = nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]
        voxels: np.ndarray = upright.get_fdata(dtype=np.float32)
    except (ImageFileError, HeaderDataError):
        raise BadSample(file, "is not a NIfTI file") from None
    except (EOFError, zlib.error):
        raise BadSample(file, "is truncated or damaged") from None
    except OSError as error:  # BadGzipFile is one, and nibabel's for too few bytes
        raise BadSample(file, f"cannot be read: {error.strerror or 'is truncated or damaged'}") from None
    except (ValueError, TypeError, OverflowError, MemoryError) as error:  # a damaged header
        raise BadSample(file, f"does not decode ({type(error).__name__})") from None
    if not np.isfinite(voxels).all():
        raise BadSample(file, "holds values that are not finite numbers")
    return voxels.reshape(voxels.shape[:3]), upright.affine


def is_nifti(file: str) -> bool:
    """By the suffix."""
    return file.lower().endswith((".nii", ".nii.gz"))


def axial_slices(voxels_XYZ: np.ndarray, shares: Sequence[float], file: str) -> tuple[np.ndarray, list[int]]:
    """H x W x S uint8, the front on top, and the level of each slice: at these shares of the foreground's height.

    Intensities have no unit: percentiles of the volume's own foreground, which is what has not the corner's value,
    become 0 and 255.

    Raises:
        BadSample: it has the same value everywhere.
    """
    foreground_XYZ = voxels_XYZ != voxels_XYZ[0, 0, 0]
    levels = np.flatnonzero(foreground_XYZ.any(axis=(0, 1)))
    if not len(levels):
        raise BadSample(file, "has the same value everywhere")
    low, high = np.percentile(voxels_XYZ[foreground_XYZ], PERCENTILES)
    chosen = [round(levels[0] + share * (levels[-1] - levels[0])) for share in shares]
    slices_XYS = (voxels_XYZ[:, :, chosen] - low) / max(float(high - low), 1e-6)
    slices_XYS = np.where(foreground_XYZ[:, :, chosen], slices_XYS.clip(0, 1), 0)
    return np.rot90((255 * slices_XYS).round().astype(np.uint8)), chosen


def read_slices(root: Path, file: str, shares: Sequence[float]) -> tuple[np.ndarray, SlicePosition]:
    """H x W (of one slice) or H x W x 3 uint8, and where in the volume they are.

    Raises:
        BadSample: see `read_nifti` and `axial_slices`.
    """
    voxels_XYZ, affine = read_volume(root, file)
    slices_HWS, levels = axial_slices(voxels_XYZ, shares, file)
    return slices_HWS[:, :, 0] if len(shares) == 1 else slices_HWS, SlicePosition(levels, affine)


def read_slice_mask(
    root: Path, file: str, place: SlicePosition, shape: tuple[int, ...], values: Sequence[int] = ()
) -> np.ndarray:
    """H x W bool: what is not 0 in these slices of a mask, the front on top; `shape` is that of the image's slice.

    With `values`, what has one of them.

    Raises:
        BadSample: see `read_volume`; it is of another size than its image or lies elsewhere, has more values than two,
            or none that is 0.
    """
    (voxels_XYZ, affine), levels = read_volume(root, file), place.levels
    if voxels_XYZ.shape[1::-1] != tuple(shape[:2]) or max(levels) >= voxels_XYZ.shape[2]:
        sides = " x ".join(map(str, voxels_XYZ.shape))
        raise BadSample(file, f"the mask has {sides} voxels, a slice of its image {shape[1]} x {shape[0]}")
    if (distance := _distance(affine, place.affine, voxels_XYZ.shape)) > MOST_APART:
        mend = "save the mask with the affine of its image"
        raise BadSample(file, f"the mask lies elsewhere than its image, up to {distance:.3g} voxels away: {mend}")
    slices_XYS = voxels_XYZ[:, :, list(levels)]
    if values:
        return np.rot90(np.isin(slices_XYS, values).any(axis=2))
    present = np.unique(voxels_XYZ)
    if len(present) > 2:
        mend = "say with mask_value which is the region"
        raise BadSample(file, f"the mask holds {len(present)} different values; two are wanted: {mend}")
    if present.all():
        raise BadSample(
            file, "the mask has no voxel of value 0, which is the ground: say with mask_value which value is the region"
        )
    return np.rot90((slices_XYS != 0).any(axis=2))


def _distance(first: np.ndarray, second: np.ndarray, sides: tuple[int, ...]) -> float:
    """How far apart two affines put a corner of a volume at most, in sides of the smallest voxel."""
    corners_4K = np.stack([*np.meshgrid(*[(0, side - 1) for side in sides], indexing="ij"), np.ones((2, 2, 2))])
    apart_K = np.linalg.norm((first - second)[:3] @ corners_4K.reshape(4, -1), axis=0)
    return float(apart_K.max() / np.linalg.norm(second[:3, :3], axis=0).min())
