"""Reads a store, which is a prepared cohort on disk. `prepare.py` writes it.

images.npy        N x C x H x W uint8, letterboxed
views/<name>.npy  the same for each further image; may be deleted when no model that reads it will be trained again
samples.parquet   sample, patient, split, row, height, width (original), top, left, bottom, right (where the
                  image lies in its square), label/<task>/<label> (NaN: unknown), privileged/<column>
text.parquet      sample and one column per section
rois.parquet      sample, label, height, width, runs, store_runs: run lengths at original and at stored size
manifest.json     written last; a folder without it is not a store
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort import splits
from mmpkd.cohort.facts import Column, Facts, Section, label_columns
from mmpkd.config import IMAGE
from mmpkd.frames import Letterbox, from_run_lengths
from mmpkd.machine.checksums import DamagedError, first_changed, unsealed
from mmpkd.types import CohortError, Task

SCHEMA = 5  # raise it when a store is laid out or filled differently
MANIFEST = "manifest.json"
STORES = "stores"  # folder of the cache; a store in it is named by its reader and fingerprint
VIEWS = "views/"
BOX = ("top", "left", "bottom", "right")
LABEL, PRIVILEGED = "label/", "privileged/"
Part = Literal["train", "val", "test"]


class Store:
    """A prepared cohort, opened read-only: images, labels, regions and privileged data.

    Attributes:
        fingerprint: changes when the data or the options change, but not when the data are moved.
        sample_ids: N strings.
        patient_N: integer codes.
        patient_ids: the patients' own names, N strings; for files on the user's disk, never for a log.
        image_NCHW: uint8, memory-mapped.
        target_NK: multi-hot over the logits of all tasks; 0 where unknown.
        known_NK: whether the label is known (all of a multi-class task's columns, or none).
        content_box_N4: top, left, bottom, right of the image in its square; half-open, pixels.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]):
        self.path = path
        self.manifest = manifest
        samples = pd.read_parquet(path / "samples.parquet").set_index("sample")
        # Computed from the samples, because older manifests lack it and samples may have been left out.
        several_images = bool(samples["patient"].duplicated().any())
        self.facts = replace(read_facts(manifest["facts"]), several_images=several_images)
        self.fingerprint: str = manifest["fingerprint"]
        labels = samples[[LABEL + name for name in label_columns(self.facts.tasks)]].to_numpy(np.float32)
        self._samples = samples
        self.sample_ids: NDArray[np.str_] = samples.index.to_numpy(dtype=str)
        self.patient_N: NDArray[np.int64] = np.unique(samples["patient"], return_inverse=True)[1].astype(np.int64)
        self.patient_ids: NDArray[np.str_] = samples["patient"].to_numpy(dtype=str)
        self.image_NCHW: NDArray[np.uint8] = np.load(path / "images.npy", mmap_mode="r")
        self.known_NK: NDArray[np.bool_] = ~np.isnan(labels)
        self.target_NK: NDArray[np.float32] = np.nan_to_num(labels, nan=0.0)
        self.content_box_N4: NDArray[np.int64] = samples[list(BOX)].to_numpy(np.int64)
        self._runs = self._read_rois("store_runs")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a store and checks it against its manifest. Further images may be missing, see `view`.

        Raises:
            CohortError: the store is incomplete or damaged, or a patient is in two parts.
        """
        try:
            written = (path / MANIFEST).read_bytes()
            schema = json.loads(written).get("schema")
            manifest = unsealed(written) if schema == SCHEMA else {}
        except PermissionError as error:
            raise CohortError(
                f"{path / MANIFEST} cannot be read ({error.strerror}); ask its owner for access"
            ) from error
        except (OSError, ValueError, AttributeError) as error:
            why = (
                f"{MANIFEST} {error}"
                if isinstance(error, DamagedError)
                else f"{type(error).__name__} reading {MANIFEST}"
            )
            raise CohortError(f"{path} is not a prepared cohort ({why}); delete it (rm -r {path})") from None
        mend = f"delete it (rm -r {path}) and it is prepared again"
        if schema != SCHEMA:
            raise CohortError(f"{path} has store schema {schema}, this program reads {SCHEMA}: {mend}")
        if not path.name.endswith(manifest["fingerprint"]) and path.parent.name == STORES:
            raise CohortError(f"{path} holds another cohort, {manifest['fingerprint']}: move it away, or {mend}")
        for name, size in manifest["files"].items():
            actual = (path / name).stat().st_size if (path / name).is_file() else None
            if actual != size and not (actual is None and name.startswith(VIEWS)):
                problem = "is missing" if actual is None else f"has {actual} bytes, its manifest says {size}"
                raise CohortError(f"{path / name} {problem}: {mend}")
        expected = manifest.get("checksums", {})
        tables = {name: each for name, each in expected.items() if name.endswith(".parquet")}
        arrays = {name: each for name, each in expected.items() if name not in tables and (path / name).exists()}
        if name := first_changed(path, tables) or first_changed(path, arrays, since=path / MANIFEST):
            raise CohortError(f"{path / name} is damaged: its checksum differs from the manifest; {mend}")
        try:
            store = cls(path, manifest)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CohortError(f"{path} is damaged ({type(error).__name__}): {mend}") from None
        splits.check_patients(store._samples["split"], store._samples["patient"])
        return store

    def rows(self, part: Part, fold: int = 0) -> NDArray[np.int64]:
        """Returns the ascending positions of a part's samples. `fold`, from 0, is the fold that validates.

        Raises:
            CohortError: there is no such fold, or the validation part is official.
        """
        split = self.split_N
        splits.refuse_fold(fold, self.num_folds)
        if "val" in split or part == "test":
            chosen = split == part
        else:
            is_val = split == f"{splits.FOLD}{fold}"
            chosen = is_val if part == "val" else ~is_val & np.char.startswith(split, splits.FOLD)
        return np.flatnonzero(chosen).astype(np.int64)

    @property
    def num_folds(self) -> int:
        """The number of values that `cohort.fold` can take; 1 where the validation part is official."""
        return splits.num_folds(self.split_N)

    @cached_property
    def split_N(self) -> NDArray[np.str_]:
        """The part of each sample, N strings: train, val or test; or fold0, fold1 ... and test."""
        return self._samples["split"].to_numpy(dtype=str)

    def digests(self) -> NDArray[np.int64]:
        """Returns a 64-bit hash of each stored image (N). Images with equal pixels have equal hashes."""
        hashed = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in self.image_NCHW)
        return np.frombuffer(b"".join(hashed), np.int64)

    def privileged(self, names: Sequence[str]) -> pd.DataFrame:
        """Returns privileged columns in the order of the store, index = sample id; NaN where missing."""
        return self._samples[[PRIVILEGED + name for name in names]].set_axis(list(names), axis=1)

    def text(self, sections: Sequence[str]) -> pd.DataFrame:
        """Returns sections of the reports in the order of the store, index = sample id; NaN where missing."""
        table = pd.read_parquet(self.path / "text.parquet", columns=["sample", *sections])
        return table.set_index("sample").loc[self._samples.index]

    def view(self, name: str) -> NDArray[np.uint8]:
        """Returns a further image of each sample, N x C x H x W, memory-mapped.

        Raises:
            CohortError: its file has been deleted.
        """
        try:
            view: NDArray[np.uint8] = np.load(self.path / VIEWS / f"{name}.npy", mmap_mode="r")
        except FileNotFoundError:
            mend = f"to restore it, delete the store (rm -r {self.path}) and it is prepared again"
            raise CohortError(f"the further image {name!r} has been deleted from {self.path}; {mend}") from None
        return view

    def images(self, rows: NDArray[np.int64], names: Sequence[str] = (IMAGE,)) -> NDArray[np.uint8]:
        """Returns the named images of the samples at `rows`, n x C x H x W; channels of several are concatenated."""
        images = [self.image_NCHW[rows] if name == IMAGE else self.view(name)[rows] for name in names]
        return images[0] if len(images) == 1 else np.concatenate(images, axis=1)

    def roi_mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns the union of each label's regions in the stored square, n x R x H x W; all False without a region."""
        size = self.facts.image_size
        mask = np.zeros((len(rows), len(self.facts.roi_labels), size, size), bool)
        for position, row in enumerate(rows):
            for index in range(len(self.facts.roi_labels)):
                for runs in self._runs.get((int(row), index), ()):
                    mask[position, index] |= from_run_lengths(runs, (size, size))
        return mask

    def rois(self, row: int) -> list[tuple[int, NDArray[np.int32]]]:
        """Returns a sample's regions in label order: position of the label, and run lengths in the stored square."""
        labels = range(len(self.facts.roi_labels))
        return [(index, runs) for index in labels for runs in self._runs.get((row, index), ())]

    def letterbox(self, row: int) -> Letterbox:
        """Returns the transform from a sample's original image to the stored square."""
        height, width = self._samples[["height", "width"]].iloc[row]
        return Letterbox(int(height), int(width), self.facts.image_size)

    def original_rois(self, row: int) -> NDArray[np.bool_]:
        """Returns the union of each label's regions at a sample's original size, R x height x width, as drawn."""
        letterbox = self.letterbox(row)
        shape = (letterbox.height, letterbox.width)
        mask = np.zeros((len(self.facts.roi_labels), *shape), bool)
        for index in range(len(mask)):
            for runs in self._original_runs.get((row, index), ()):
                mask[index] |= from_run_lengths(runs, shape)
        return mask

    @cached_property
    def _original_runs(self) -> dict[tuple[int, int], list[NDArray[np.int32]]]:
        return self._read_rois("runs")

    def _read_rois(self, column: str) -> dict[tuple[int, int], list[NDArray[np.int32]]]:
        """Returns run lengths by (row, position of the label), from the column `runs` or `store_runs`."""
        runs: dict[tuple[int, int], list[NDArray[np.int32]]] = {}
        if self.facts.roi_labels:
            rois = pd.read_parquet(self.path / "rois.parquet", columns=["sample", "label", column])
            rows = self._samples.index.get_indexer(pd.Index(rois["sample"]))
            for row, label, lengths in zip(rows, rois["label"], rois[column], strict=True):
                runs.setdefault((int(row), self.facts.roi_labels.index(label)), []).append(lengths)
        return runs


def read_facts(content: Mapping[str, Any]) -> Facts:
    """Returns the facts that a manifest holds as the output of `asdict`."""
    tuples = {name: tuple(content[name]) for name in ("unlisted", "roi_labels", "views")}
    tasks = tuple(Task(**{**task, "labels": tuple(task["labels"])}) for task in content["tasks"])
    columns = {name: Column(**column) for name, column in content["columns"].items()}
    sections = {name: Section(**section) for name, section in content["sections"].items()}
    return Facts(**{**content, **tuples, "tasks": tasks, "columns": columns, "sections": sections})
