"""A stand-in for a cohort that is not prepared yet: its tables are real, its images and ROIs are random."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd.cohort import questions, reader_for, splits
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.source import scan_cohort
from mmpkd.cohort.store import LABEL, PRIVILEGED, Store
from mmpkd.config import CohortConfig
from mmpkd.frames import Letterbox


class StandIn(Store):
    """A stand-in for a prepared cohort: its tables are the real ones, but its pixels are random, and every image has a
    random ROI for every label.

    Args:
        samples: a table like samples.parquet of a store, without the geometry.
        images: whether the stand-in has pixels. False saves the memory for pixels where only tables are read.
        text: a table like text.parquet of a store.
        questions: a table like questions.parquet of a store.

    Attributes:
        notes: remarks of the reader on the tables, one sentence each.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        facts: Facts,
        samples: pd.DataFrame,
        images: bool = True,
        text: pd.DataFrame | None = None,
        questions: pd.DataFrame | None = None,
    ):
        self.fingerprint = os.urandom(8).hex()  # no other stand-in has the same regions
        self.facts, self._samples, self._text, self.raw_questions = facts, samples, text, questions
        labels = samples[[name for name in samples if str(name).startswith(LABEL)]].to_numpy(np.float32)
        self.sample_ids: NDArray[np.str_] = samples.index.to_numpy(dtype=str)
        self.patient_N: NDArray[np.int64] = np.unique(samples["patient"], return_inverse=True)[1].astype(np.int64)
        self.known_NK: NDArray[np.bool_] = ~np.isnan(labels)
        self.target_NK: NDArray[np.float32] = np.nan_to_num(labels, nan=0.0)
        size = facts.image_size
        self.content_box_N4: NDArray[np.int64] = np.tile([0, 0, size, size], (len(samples), 1)).astype(np.int64)
        shape = (len(samples) if images else 0, facts.channels, size, size)
        self.image_NCHW: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def thinned(self, most_train: int, most_val: int, fold: int) -> pd.DataFrame:
        """Returns a table of at most `most_train` and `most_val` evenly spaced samples, without privileged columns."""
        parts = ((self.rows("train", fold), most_train), (self.rows("val", fold), most_val))
        kept = np.sort(np.concatenate([evenly(rows, most) for rows, most in parts]))
        return self._samples[[name for name in self._samples if not str(name).startswith(PRIVILEGED)]].iloc[kept]

    def some(self, rows: NDArray[np.int64]) -> StandIn:
        """Returns a stand-in with the samples at `rows` and all their teacher inputs; all samples share one image."""
        subset = StandIn(self.facts, self._samples.iloc[rows], images=False, text=self._text)
        size = self.facts.image_size
        pixels = np.random.default_rng(0).integers(0, 256, (self.facts.channels, size, size), np.uint8)
        subset.image_NCHW = np.broadcast_to(pixels, (len(rows), *pixels.shape))
        return subset

    def text(self, sections: Sequence[str]) -> pd.DataFrame:
        assert self._text is not None
        return self._text.loc[self._samples.index, list(sections)]

    @cached_property
    def questions(self) -> pd.DataFrame:
        assert self.raw_questions is not None
        return questions.located(questions.about(self.raw_questions, self._samples.index), self._samples.index)

    def letterbox(self, row: int) -> Letterbox:
        return Letterbox(self.facts.image_size, self.facts.image_size, self.facts.image_size)

    def view(self, name: str) -> NDArray[np.uint8]:
        return self.image_NCHW

    def roi_mask(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        size = self.facts.image_size
        masks = np.zeros((len(rows), len(self.facts.roi_labels), size, size), bool)
        corners = np.random.default_rng(0).integers(0, size * 2 // 3, (len(rows), 2))
        for mask, (top, left) in zip(masks, corners, strict=True):
            mask[:, top : top + size // 4, left : left + size // 4] = True
        return masks


def stand_in(config: CohortConfig) -> StandIn:
    """Reads the tables of a cohort, but no pixels, and assigns its patients to parts as `prepare` does.

    Raises:
        ConfigError, CohortError: the same mistakes in the tables that `prepare` reports.
    """
    reader = reader_for(config)
    scan = scan_cohort(config, reader)
    samples = scan.samples.assign(split=splits.assign(scan), patient=scan.samples["patient"].astype(str))
    table = pd.concat([samples, scan.labels.add_prefix(LABEL), scan.privileged.add_prefix(PRIVILEGED)], axis=1)
    facts = scan.facts(config.image_size, reader.credentialed)
    tables = StandIn(facts, table, images=False, text=scan.text, questions=scan.questions)
    tables.notes = scan.notes
    return tables


def evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Returns at most `most` of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]
