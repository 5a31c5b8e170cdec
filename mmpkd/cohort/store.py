"""Reads a store, which is a prepared cohort on disk. `prepare.py` writes stores.

A store is a folder with these files:

images.npy        the images, N x C x H x W uint8, letterboxed
views/<name>.npy  the same for each further image; may be deleted once no model that reads this view will be trained
samples.parquet   columns sample, patient, split, row, height and width (of the original image), top, left, bottom and
                  right (the place of the image in its square), label/<task>/<label> (NaN: unknown),
                  privileged/<column>, perceptual_hash (see `likeness`; older stores lack it)
text.parquet      column sample, and one column per section of the reports
questions.parquet columns sample, question, answer, task and modality (see `questions`)
rois.parquet      columns sample, label, height, width, runs (run lengths at the original size) and store_runs (run
                  lengths at the stored size)
manifest.json     written last; a folder without this file is not a store
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort import questions, splits
from mmpkd.cohort.facts import Column, Facts, Section, label_columns
from mmpkd.cohort.likeness import Hashes, Pictures
from mmpkd.config import IMAGE
from mmpkd.frames import Letterbox, from_run_lengths
from mmpkd.machine.checksums import DamagedError, first_changed, unsealed
from mmpkd.types import CohortError, Task

SCHEMA = 5  # version of the stores; must be raised when the layout of a store or the way it is filled changes
MANIFEST = "manifest.json"
STORES = "stores"  # folder in the cache; the name of a store in this folder consists of its reader and fingerprint
VIEWS = "views/"
BOX = ("top", "left", "bottom", "right")
LABEL, PRIVILEGED = "label/", "privileged/"
HASH = "perceptual_hash"
Part = Literal["train", "val", "test"]


class Store:
    """A prepared cohort, opened read-only: images, labels, regions and privileged data.

    Attributes:
        fingerprint: hash that changes if the data or the options change, but not if the data are moved.
        sample_ids: ids of the samples, N strings.
        patient_N: patient of each sample as an integer code.
        patient_ids: the patient's own name for each sample, N strings. It may be written to files on the user's disk,
            but never to a log.
        image_NCHW: stored images, uint8, memory-mapped.
        target_NK: labels, multi-hot over the logits of all tasks; 0 if the label is unknown.
        known_NK: whether each label is known. For a multi-class task, either all columns are known or none.
        content_box_N4: top, left, bottom and right edge of the image in its square, in pixels. Bottom and right are
            exclusive.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]):
        self.path = path
        self.manifest = manifest
        samples = pd.read_parquet(path / "samples.parquet").set_index("sample")
        # This fact is computed from the samples, because older manifests lack it and samples may have been left out.
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
        """Opens a store and checks it against its manifest. The files of further images may be missing (see `view`).

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
        remedy = f"delete it (rm -r {path}) and it is prepared again"
        if schema != SCHEMA:
            raise CohortError(f"{path} has store schema {schema}, this program reads {SCHEMA}: {remedy}")
        if not path.name.endswith(manifest["fingerprint"]) and path.parent.name == STORES:
            raise CohortError(f"{path} holds another cohort, {manifest['fingerprint']}: move it away, or {remedy}")
        for name, size in manifest["files"].items():
            actual = (path / name).stat().st_size if (path / name).is_file() else None
            if actual != size and not (actual is None and name.startswith(VIEWS)):
                problem = "is missing" if actual is None else f"has {actual} bytes, its manifest says {size}"
                raise CohortError(f"{path / name} {problem}: {remedy}")
        expected = manifest.get("checksums", {})
        tables = {name: each for name, each in expected.items() if name.endswith(".parquet")}
        arrays = {name: each for name, each in expected.items() if name not in tables and (path / name).exists()}
        if name := first_changed(path, tables) or first_changed(path, arrays, since=path / MANIFEST):
            raise CohortError(f"{path / name} is damaged: its checksum differs from the manifest; {remedy}")
        try:
            store = cls(path, manifest)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CohortError(f"{path} is damaged ({type(error).__name__}): {remedy}") from None
        splits.check_patients(store._samples["split"], store._samples["patient"])
        return store

    def rows(self, part: Part, fold: int = 0) -> NDArray[np.int64]:
        """Returns the positions of a part's samples in the store, ascending.

        Args:
            fold: number of the fold that is the validation part, from 0. It must be 0 if the validation part is
                official.

        Raises:
            CohortError: the fold does not exist, or is not 0 although the validation part is official.
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
        """The number of values that `cohort.fold` can take. It is 1 if the validation part is official."""
        return splits.num_folds(self.split_N)

    @cached_property
    def split_N(self) -> NDArray[np.str_]:
        """The part of each sample, N strings: train, val or test if the split is official, else fold0 ... or test."""
        return self._samples["split"].to_numpy(dtype=str)

    def digests(self) -> NDArray[np.int64]:
        """Returns a 64-bit hash of each stored image (N). Images with equal pixels have equal hashes."""
        hashed = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in self.image_NCHW)
        return np.frombuffer(b"".join(hashed), np.int64)

    @property
    def is_compared(self) -> bool:
        """Whether the images of different patients were compared when the store was prepared. Old versions did not."""
        return HASH in self._samples

    def perceptual_hashes(self) -> Hashes:
        """Returns the perceptual hash of each image (N); it is computed from the pixels if an old store lacks it."""
        return self._samples[HASH].to_numpy(np.uint64) if self.is_compared else self.pictures.hashes()

    @property
    def pictures(self) -> Pictures:
        """The images as they are compared with others."""
        return Pictures(self.image_NCHW, np.arange(len(self.sample_ids)), self.content_box_N4)

    def privileged(self, names: Sequence[str]) -> pd.DataFrame:
        """Returns the named privileged columns. The rows are in the store's order, the index is the sample id, and
        missing values are NaN."""
        return self._samples[[PRIVILEGED + name for name in names]].set_axis(list(names), axis=1)

    def text(self, sections: Sequence[str]) -> pd.DataFrame:
        """Returns the named sections of the reports. The rows are in the store's order, the index is the sample id, and
        missing sections are NaN."""
        table = pd.read_parquet(self.path / "text.parquet", columns=["sample", *sections])
        return table.set_index("sample").loc[self._samples.index]

    @cached_property
    def questions(self) -> pd.DataFrame:
        """The questions about the images, in an order that never changes: the columns of `questions.COLUMNS`, and
        `row`, the position of the image in the store.

        Raises:
            CohortError: the cohort has no questions, or the file is damaged.
        """
        if self.facts.questions is None:
            raise CohortError(f"{self.path} holds no questions; choose a cohort with questions, such as synthetic_vqa")
        path = self.path / "questions.parquet"
        try:
            return questions.located(pd.read_parquet(path), self._samples.index)
        except (OSError, ValueError, LookupError, TypeError) as error:
            problem = f"{path} is damaged ({type(error).__name__})"
            raise CohortError(f"{problem}; delete the store (rm -r {self.path}) and it is prepared again") from None

    def view(self, name: str) -> NDArray[np.uint8]:
        """Returns the view `name`, a further image of each sample, as a memory-mapped array N x C x H x W.

        Raises:
            CohortError: the view's file has been deleted.
        """
        try:
            view: NDArray[np.uint8] = np.load(self.path / VIEWS / f"{name}.npy", mmap_mode="r")
        except FileNotFoundError:
            remedy = f"to restore it, delete the store (rm -r {self.path}) and it is prepared again"
            raise CohortError(f"the further image {name!r} has been deleted from {self.path}; {remedy}") from None
        return view

    def images(self, rows: NDArray[np.int64], names: Sequence[str] = (IMAGE,)) -> NDArray[np.uint8]:
        """Returns the images of the samples at `rows`, n x C x H x W. The channels of all named images (the main image
        and views) are concatenated."""
        images = [self.image_NCHW[rows] if name == IMAGE else self.view(name)[rows] for name in names]
        return images[0] if len(images) == 1 else np.concatenate(images, axis=1)

    def roi_mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns a mask for each sample and ROI label in the stored square, n x R x H x W.

        The mask is the union of the label's regions, and False everywhere if the sample has no region of this label.
        """
        size = self.facts.image_size
        mask = np.zeros((len(rows), len(self.facts.roi_labels), size, size), bool)
        for position, row in enumerate(rows):
            for index in range(len(self.facts.roi_labels)):
                for runs in self._runs.get((int(row), index), ()):
                    mask[position, index] |= from_run_lengths(runs, (size, size))
        return mask

    def rois(self, row: int) -> list[tuple[int, NDArray[np.int32]]]:
        """Returns a sample's regions in the order of the labels, as pairs of the label's position among the ROI labels
        and the run lengths in the stored square."""
        labels = range(len(self.facts.roi_labels))
        return [(index, runs) for index in labels for runs in self._runs.get((row, index), ())]

    def letterbox(self, row: int) -> Letterbox:
        """Returns the transform from a sample's original image to the stored square."""
        height, width = self._samples[["height", "width"]].iloc[row]
        return Letterbox(int(height), int(width), self.facts.image_size)

    def original_rois(self, row: int) -> NDArray[np.bool_]:
        """Returns a mask for each ROI label at the sample's original size, R x height x width: the union of the regions
        as the source draws them."""
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
        """Returns the run lengths of the regions by (row, position of the label).

        Args:
            column: `runs` for the original size, or `store_runs` for the stored square.
        """
        runs: dict[tuple[int, int], list[NDArray[np.int32]]] = {}
        if self.facts.roi_labels:
            rois = pd.read_parquet(self.path / "rois.parquet", columns=["sample", "label", column])
            rows = self._samples.index.get_indexer(pd.Index(rois["sample"]))
            for row, label, lengths in zip(rows, rois["label"], rois[column], strict=True):
                runs.setdefault((int(row), self.facts.roi_labels.index(label)), []).append(lengths)
        return runs


def stored_facts(facts: Facts) -> dict[str, Any]:
    """Returns the facts as a manifest holds them. Without questions they are as earlier versions wrote them."""
    content = asdict(facts)
    if facts.questions is None:
        del content["questions"]
    return content


def read_facts(content: Mapping[str, Any]) -> Facts:
    """Converts the facts of a manifest, which `stored_facts` wrote, back to `Facts`."""
    tuples = {name: tuple(content[name]) for name in ("unlisted", "roi_labels", "views")}
    tasks = tuple(Task(**{**task, "labels": tuple(task["labels"])}) for task in content["tasks"])
    columns = {name: Column(**column) for name, column in content["columns"].items()}
    sections = {name: Section(**section) for name, section in content["sections"].items()}
    parts = {"tasks": tasks, "columns": columns, "sections": sections}
    return Facts(**{**content, **tuples, **parts, "questions": questions.read_facts(content.get("questions"))})
