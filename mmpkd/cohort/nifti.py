"""One NIfTI file to voxels, by nibabel."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError

from mmpkd.cohort.facts import BadSample

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
