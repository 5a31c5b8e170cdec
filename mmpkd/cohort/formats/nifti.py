"""Reads the voxels of a NIfTI file with nibabel, and makes images of its axial slices."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmpkd.cohort.facts import BadSample

PERCENTILES = (0.5, 99.5)  # percentiles of a volume's foreground that become 0 and 255
MAX_DISTANCE = 0.5  # a mask may be displaced from its image by this many voxels, because headers are rounded
MAX_VOXELS = 2**28  # such a volume takes a gigabyte as float32; a brain at 1 mm has a thirtieth of these voxels


class SlicePosition(NamedTuple):
    """The slices of a volume that an image shows, and the position of the volume's voxels in space."""

    levels: list[int]
    affine: np.ndarray  # 4 x 4, maps voxel indices to millimetres


def read_nifti(root: Path, file: str) -> np.ndarray:
    """Reads a volume by `read_volume` and returns its voxels alone.

    Raises:
        BadSample: `read_volume` cannot read the file.
    """
    return read_volume(root, file)[0]


def read_volume(root: Path, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the voxels of a volume, X x Y x Z float32, and their affine. The header's scaling is applied.

    The axes are reordered and flipped so that x runs to the right, y to the front and z to the head, as closely as the
    axes of the file allow.

    Raises:
        BadSample: the file is missing, truncated, not NIfTI, not three-dimensional, too large, or states no
            orientation.
    """
    import nibabel  # few cohorts hold volumes
    from nibabel.filebasedimages import ImageFileError
    from nibabel.orientations import aff2axcodes
    from nibabel.spatialimages import HeaderDataError

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
    except OSError as error:  # BadGzipFile and nibabel's error for too few bytes are OSErrors
        raise BadSample(file, f"cannot be read: {error.strerror or 'is truncated or damaged'}") from None
    except (ValueError, TypeError, OverflowError, MemoryError) as error:  # a damaged header
        raise BadSample(file, f"does not decode ({type(error).__name__})") from None
    if not np.isfinite(voxels).all():
        raise BadSample(file, "holds values that are not finite numbers")
    return voxels.reshape(voxels.shape[:3]), upright.affine


def read_spacing(root: Path, file: str) -> float | None:
    """Returns the distance of neighbouring columns of an axial slice in millimetres, from a file that `read_volume` can
    read, or None if its header does not state millimetres."""
    import nibabel  # few cohorts hold volumes

    image = nibabel.load(root / file)
    assert isinstance(image, nibabel.Nifti1Image)
    if image.header.get_xyzt_units()[0] != "mm":  # type: ignore[no-untyped-call]
        return None
    to_right = int(np.flatnonzero(nibabel.io_orientation(image.affine)[:, 0] == 0)[0])  # type: ignore[no-untyped-call]
    return float(np.linalg.norm(image.affine[:3, to_right]))


def is_nifti(file: str) -> bool:
    """Returns whether the suffix of a file is one of NIfTI."""
    return file.lower().endswith((".nii", ".nii.gz"))


def axial_slices(voxels_XYZ: np.ndarray, shares: Sequence[float], file: str) -> tuple[np.ndarray, list[int]]:
    """Returns axial slices of a volume, H x W x S uint8 with the front on top, and the z index of each slice.

    The foreground consists of all voxels that differ from the corner voxel. Because intensities have no unit,
    percentiles of the volume's own foreground (`PERCENTILES`) become 0 and 255.

    Args:
        shares: heights of the S slices within the foreground, from 0 (its lowest slice) to 1 (its highest slice).

    Raises:
        BadSample: the volume has the same value everywhere.
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
    """Reads axial slices as an image, uint8, H x W (one slice) or H x W x 3, and returns also their position.

    Raises:
        BadSample: `read_volume` cannot read the file, or the volume has the same value everywhere.
    """
    voxels_XYZ, affine = read_volume(root, file)
    slices_HWS, levels = axial_slices(voxels_XYZ, shares, file)
    return slices_HWS[:, :, 0] if len(shares) == 1 else slices_HWS, SlicePosition(levels, affine)


def read_slice_mask(
    root: Path, file: str, place: SlicePosition, shape: tuple[int, ...], values: Sequence[int] = ()
) -> np.ndarray:
    """Reads the slices of a mask that an image shows, and returns their union, H x W bool with the front on top.

    Args:
        place: the slices that the image shows.
        shape: the shape of the image.
        values: values of the region in the mask. Without values, the region is all voxels that are not 0.

    Raises:
        BadSample: `read_volume` cannot read the file, or the mask has another size or position than its image. Without
            `values`, it is also raised if the mask has more than two values or no voxel that is 0.
    """
    (voxels_XYZ, affine), levels = read_volume(root, file), place.levels
    if voxels_XYZ.shape[1::-1] != tuple(shape[:2]) or max(levels) >= voxels_XYZ.shape[2]:
        sides = " x ".join(map(str, voxels_XYZ.shape))
        raise BadSample(file, f"the mask has {sides} voxels, a slice of its image {shape[1]} x {shape[0]}")
    if (distance := _distance(affine, place.affine, voxels_XYZ.shape)) > MAX_DISTANCE:
        remedy = "save the mask with the affine of its image"
        raise BadSample(file, f"the mask lies elsewhere than its image, up to {distance:.3g} voxels away: {remedy}")
    slices_XYS = voxels_XYZ[:, :, list(levels)]
    if values:
        return np.rot90(np.isin(slices_XYS, values).any(axis=2))
    present = np.unique(voxels_XYZ)
    if len(present) > 2:
        remedy = "say with mask_value which is the region"
        raise BadSample(file, f"the mask holds {len(present)} different values; two are wanted: {remedy}")
    if present.all():
        raise BadSample(
            file, "the mask has no voxel of value 0, which is the ground: say with mask_value which value is the region"
        )
    return np.rot90((slices_XYS != 0).any(axis=2))


def _distance(first: np.ndarray, second: np.ndarray, sides: tuple[int, ...]) -> float:
    """Returns the largest distance between the positions at which two affines place the same corner of a volume.

    The unit is the shortest side of a voxel under the second affine.
    """
    corners_4K = np.stack([*np.meshgrid(*[(0, side - 1) for side in sides], indexing="ij"), np.ones((2, 2, 2))])
    distance_K = np.linalg.norm((first - second)[:3] @ corners_4K.reshape(4, -1), axis=0)
    return float(distance_K.max() / np.linalg.norm(second[:3, :3], axis=0).min())
