"""One NIfTI file to voxels, by nibabel; and axial slices of it to an image."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError

from mmpkd.cohort.facts import BadSample

PERCENTILES = (0.5, 99.5)  # of a volume's foreground: values that become 0 and 255
MAX_VOXELS = 2**28  # a gigabyte as float32; a brain at 1 mm has a thirtieth of it


def read_nifti(root: Path, file: str) -> np.ndarray:
    """X x Y x Z float32, scaled as it says; x runs to the right, y to the front, z to the head, as nearly as axes do.

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
    return voxels.reshape(voxels.shape[:3])


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


def read_slices(root: Path, file: str, shares: Sequence[float]) -> tuple[np.ndarray, list[int]]:
    """H x W (of one slice) or H x W x 3 uint8, and the level of each slice.

    Raises:
        BadSample: see `read_nifti` and `axial_slices`.
    """
    slices_HWS, levels = axial_slices(read_nifti(root, file), shares, file)
    return slices_HWS[:, :, 0] if len(shares) == 1 else slices_HWS, levels


def read_slice_mask(
    root: Path, file: str, levels: Sequence[int], shape: tuple[int, ...], values: Sequence[int] = ()
) -> np.ndarray:
    """H x W bool: what is not 0 in these slices of a mask, the front on top; `shape` is that of the image's slice.

    With `values`, what has one of them.

    Raises:
        BadSample: see `read_nifti`; it is of another size than its image, or has more values than two.
    """
    voxels_XYZ = read_nifti(root, file)
    if voxels_XYZ.shape[1::-1] != tuple(shape[:2]) or max(levels) >= voxels_XYZ.shape[2]:
        sides = " x ".join(map(str, voxels_XYZ.shape))
        raise BadSample(file, f"the mask has {sides} voxels, a slice of its image {shape[1]} x {shape[0]}")
    slices_XYS = voxels_XYZ[:, :, list(levels)]
    if values:
        return np.rot90(np.isin(slices_XYS, values).any(axis=2))
    present = np.unique(voxels_XYZ)
    if len(present) > 2:
        mend = "say with mask_value which is the region"
        raise BadSample(file, f"the mask holds {len(present)} different values; two are wanted: {mend}")
    return np.rot90((slices_XYS != 0).any(axis=2))
