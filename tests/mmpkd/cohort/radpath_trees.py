"""A small copy of CPM-RadPath: label files, slide features and NIfTI volumes, every file of it written here."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmpkd.cohort.readers.radpath import AGE, CLASS, ID

LPS = ((-1, 0, 0), (0, -1, 0), (0, 0, 1))  # how the challenge's volumes are stored
RAS = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
PER_PART = 6
SHAPE = (12, 14, 21)
BRAIN = slice(2, 9), slice(3, 11), slice(5, 16)  # levels 5 to 15
PATIENT = "CPM19_CBICA_AAA_1"


def nifti(voxels: np.ndarray, axes: Any = RAS, order: str = "<", code: int = 4, **fields: Any) -> bytes:
    """A NIfTI-1 file, oriented by its sform unless `q` (b, c, d, handedness) is given."""
    kind = {2: "u1", 4: "i2", 16: "f4", 512: "u2"}.get(code, "i2")
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    rank = voxels.ndim
    struct.pack_into(f"{order}{1 + rank}h", header, 40, rank, *voxels.shape)
    struct.pack_into(f"{order}2h", header, 70, code, 8 * np.dtype(kind).itemsize)
    struct.pack_into(f"{order}4f", header, 76, fields.get("q", (0, 0, 0, 1))[3], 1, 1, 1)
    struct.pack_into(f"{order}3f", header, 108, fields.get("offset", 352), *fields.get("scale", (0, 0)))
    if "q" in fields:
        struct.pack_into(f"{order}2h", header, 252, 1, 0)
        struct.pack_into(f"{order}3f", header, 256, *fields["q"][:3])
    elif axes is not None:
        struct.pack_into(f"{order}2h", header, 252, 0, 1)
        # The least corner is at -9 in space, whichever way round the voxels are stored.
        origins = [
            -9.0 - sum(min(0, one) * (side - 1) for one, side in zip(row, voxels.shape, strict=False)) for row in axes
        ]
        affine = (value for row, origin in zip(axes, origins, strict=True) for value in (*row, origin))
        struct.pack_into(f"{order}12f", header, 280, *affine)
    header[344:348] = b"n+1\0"
    return bytes(header) + np.asarray(voxels, f"{order}{kind}").tobytes(order="F")


def volume(seed: int = 0) -> np.ndarray:
    """X x Y x Z in RAS: zero, but for a box whose values rise to the right by 1, to the front by 10, upwards by 100.

    Seeds other than 0 add noise, because patients with equal images are refused.
    """
    x, y, z = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    voxels = np.zeros(SHAPE, np.int16)
    voxels[BRAIN] = (50 + x + 10 * y + 100 * z)[BRAIN]
    if seed:
        voxels[BRAIN] += np.random.default_rng(seed).integers(0, 2000, SHAPE, np.int16)[BRAIN]
    return voxels


def patients() -> pd.DataFrame:
    number = np.arange(3 * PER_PART)
    table = pd.DataFrame({ID: [f"CPM19_CBICA_AA{chr(65 + one)}_1" for one in number]})
    return table.assign(
        **{CLASS: [("G", "O", "A")[one % 3] for one in number], AGE: [str(9000 + one) for one in number]}
    )


def features() -> pd.DataFrame:
    random = np.random.default_rng(0)
    return patients()[[ID]].assign(**{str(one): random.normal(size=3 * PER_PART) for one in range(4)})


def write_tree(root: Path) -> Path:
    (root / "labels").mkdir(parents=True)
    for position, part in enumerate(("train", "val", "test")):
        some = patients().iloc[position * PER_PART : (position + 1) * PER_PART]
        some.to_csv(root / "labels" / f"split_1_{part}.csv", index=False)
    features().to_csv(root / "slide_features.csv", index=False)
    for seed, patient in enumerate(patients()[ID]):
        (root / patient).mkdir()
        stored = volume(seed)[::-1, ::-1]
        (root / patient / f"{patient}_t1ce.nii.gz").write_bytes(gzip.compress(nifti(stored, LPS)))
    return root
