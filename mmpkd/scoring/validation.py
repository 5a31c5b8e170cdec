"""One validation of a student: classification and localisation of the same forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, EvaluationConfig
from mmpkd.fit import autocast
from mmpkd.scoring import baselines, classify, localize, stats
from mmpkd.scoring.patients import by_patient
from mmpkd.scoring.saliency import MAPS, columns_explained
from mmpkd.scoring.stats import Floats
from mmpkd.student import Student
from mmpkd.types import CohortError, DivergedError, Task

UNION = "any"  # label of the region that all ROIs of an image make together


class Labels(NamedTuple):
    """What is known of some samples, in the layout of a student's logits."""

    tasks: tuple[Task, ...]
    target_NK: NDArray[np.float32]
    known_NK: NDArray[np.bool_]


class Evaluator:
    """The scores of a student on fixed samples; what depends on the samples alone is computed once.

    Sees images, labels and ROIs, never a privileged column; nothing here reaches the training.

    Args:
        train_rows: samples whose mean ROI is one more yardstick, `<score>_prior`; nothing else reads their ROIs.
        labels: those of the samples at `rows`, where the student's tasks are not the store's.
        replicates: of the bootstrap over patients.
        reads: the images that the student reads.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        config: EvaluationConfig,
        grid: tuple[int, int],
        device: torch.device,
        train_rows: NDArray[np.int64] | None = None,
        labels: Labels | None = None,
        replicates: int = 200,
        reads: Sequence[str] = (IMAGE,),
    ) -> None:
        self.store, self.rows = store, rows
        labels = labels or Labels(store.facts.tasks, store.target_NK[rows], store.known_NK[rows])
        self.tasks, self.target_NK, self.known_NK = labels
        self.image_NCHW = torch.from_numpy(store.images(rows, reads))
        self.batch_size = config.batch_size
        self.map = MAPS[config.map]()
        self.device = device
        self.weight_RN = stats.patient_weights(store.patient_N[rows], replicates)
        self.regions: localize.Regions | None = None
        self.prior_Rhw: Tensor | None = None
        self.foreground_NHW: NDArray[np.bool_] | None = None
        self.fixed: dict[str, float] = {}
        self.union = config.roi == "union"
        self.roi_labels = (UNION,) if self.union and store.facts.roi_labels else store.facts.roi_labels
        self.one_map = not self.map.per_label and len(self.roi_labels) > 1
        if store.facts.roi_labels:
            self.explained = columns_explained(store.facts.roi_labels, self.tasks) if self.map.per_label else []
            if self.union and self.explained:
                self.explained = [tuple(sorted({column for one in self.explained for column in one}))]
            if config.within == "foreground":
                self.foreground_NHW = localize.foreground(store.image_NCHW[rows].max(axis=1))
            roi_NRHW, box_N4 = self._together(store.roi_mask(rows)), store.content_box_N4[rows]
            self.regions = localize.Regions.of(roi_NRHW, box_N4, grid, device, self.foreground_NHW)
            if train_rows is not None:
                self.prior_Rhw = _mean_roi(store, train_rows, grid, self.union or self.one_map)
            fixed = localize.baseline_scores(self.regions, self.prior_Rhw)
            fixed |= localize.bounds(self.regions, self.one_map)
            self.fixed = _prefixed(localize.summarize(fixed))

    def _together(self, roi_NRHW: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray(roi_NRHW.any(axis=1, keepdims=True)) if self.union else roi_NRHW

    def require_scorable(self) -> None:
        """
        Raises:
            CohortError: a task without any label that has both classes among these samples.
        """
        for task, labels in classify.scorable(self.target_NK, self.known_NK, self.tasks).items():
            if not labels:
                raise CohortError(f"task '{task}' has a single class among the {len(self.rows)} validation samples")

    def __call__(self, student: Student) -> dict[str, float]:
        """Metrics under `val/`: scores, their standard errors over patients, and what chance scores.

        Raises:
            DivergedError: the last step left weights that give no finite logits.
        """
        logits_NK, map_NRhw = self.predict(student)
        if not np.isfinite(logits_NK).all():
            raise DivergedError(
                "the student's logits are no longer finite after an epoch: "
                "lower optimizer.lr, or set optimizer.clip_norm"
            )
        metrics = _prefixed(classify.score(logits_NK, self.target_NK, self.known_NK, self.tasks, self.weight_RN))
        if self.store.facts.several_images:
            metrics |= _prefixed(self._of_patients(logits_NK))
        if self.regions is not None:
            found = localize.score(map_NRhw, self.regions)
            metrics |= _prefixed(localize.summarize(found, self.weight_RN, self.roi_labels))
        return metrics | self.fixed

    def _of_patients(self, logits_NK: Floats) -> dict[str, float]:
        """The AUROC of patients, of every fold where the cohort has a patient of several images: folds are compared."""
        patients = by_patient(logits_NK, self.target_NK, self.known_NK, self.tasks, self.store.patient_N[self.rows])
        weight_RP = self.weight_RN[:, patients.first_P]
        scores = classify.score(patients.logits_PK, patients.target_PK, patients.known_PK, self.tasks, weight_RP)
        return {
            "auroc_patient": scores["auroc"],
            "auroc_patient_se": scores["auroc_se"],
            "auroc_patient_undefined": scores["auroc_undefined"],
            "auroc_patient_mixed": float(patients.mixed_PK.any(axis=1).sum()),
        }

    def predict(self, student: Student) -> tuple[NDArray[np.float64], Tensor]:
        """Logits (N, K) and maps (N, R, h, w) of every sample, with R = 1 where one map serves all labels."""
        student.eval()
        logits, maps = [], []
        with autocast(self.device):
            for image_BCHW in self.image_NCHW.split(self.batch_size):
                image_BCHW = image_BCHW.to(self.device).float() / 255
                if self.regions is not None:
                    logits_BK, map_BRhw = self.map(student, image_BCHW, self.explained)
                    maps.append(map_BRhw)
                else:
                    with torch.inference_mode():
                        logits_BK = student(image_BCHW).logits_BK
                logits.append(logits_BK.float())
        logits_NK = torch.cat(logits).double().cpu().numpy()
        return logits_NK, torch.cat(maps) if maps else torch.empty(len(logits_NK), 0, 0, 0)

    def thresholds(self, map_NRhw: Tensor) -> dict[str, float]:
        """By ROI label, the threshold of `iou_tuned` that these samples choose (see `localize.tuned`)."""
        if self.regions is None:
            return {}
        tuned_R = localize.tuned(localize.measure(localize.by_pair(map_NRhw, self.regions), self.regions), self.regions)
        return dict(zip(self.roi_labels, tuned_R.tolist(), strict=True))

    def table(self, map_NRhw: Tensor, threshold_R: Floats | None = None, original: bool = False) -> pd.DataFrame:
        """One row for each (sample, label) that has an ROI, with every score, those of maps that have not looked, and
        the highest attainable; where one map serves several labels, as well that of a label alone (`_max_alone`).

        Args:
            map_NRhw: from `predict`.
            threshold_R: of `iou_tuned`, see `localize.finish`; not of the baselines, which are tuned on these pairs.
            original: score in the frame of the original images, one at a time, not in the stored squares.
        """
        assert self.regions is not None, "a cohort without ROIs has no table of them"
        maps = {"": localize.by_pair(map_NRhw, self.regions)}
        maps |= {f"_{name}": map_Phw for name, map_Phw in localize.unseeing(self.regions, self.prior_Rhw).items()}
        drawn = self.regions
        if original:
            measured, cells_Phw, seen_Phw = self._measure_originals(self.regions, maps)
            drawn = replace(self.regions, cells_Phw=cells_Phw, seen_Phw=seen_Phw)
        else:
            measured = {name: localize.measure(map_Phw, self.regions) for name, map_Phw in maps.items()}
        found: dict[str, Floats] = {}
        for name, measured_PS in measured.items():
            told = localize.finish(measured_PS, self.regions, None if name else threshold_R)
            found |= {f"{score}{name}": values for score, values in told.items()}
        found |= localize.bounds(drawn, self.one_map)
        if self.one_map:
            found |= {f"{name}_alone": value_NR for name, value_NR in localize.bounds(drawn, one_map=False).items()}
        return localize.table(found, self.regions, self.store.sample_ids[self.rows].tolist(), self.roi_labels)

    def _measure_originals(
        self, regions: localize.Regions, maps: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What `localize.measure` finds of each map, by name; and `cells` and `seen` of the ROIs as they were drawn."""
        cells: list[Tensor] = []
        seen: list[Tensor] = []
        measured: dict[str, list[Tensor]] = {name: [] for name in maps}
        pairs = zip(regions.image_P.tolist(), regions.label_P.tolist(), strict=True)
        for image, found in groupby(enumerate(pairs), key=lambda numbered: numbered[1][0]):
            letterbox = self.store.letterbox(self.rows[image])
            roi_RHW = self._together(self.store.original_rois(self.rows[image])[None])[0]
            lit = None if self.foreground_NHW is None else letterbox.original_mask(self.foreground_NHW[image])
            for pair, (_, label) in found:
                cells_hw, seen_hw = localize.original_shares(roi_RHW[label], letterbox, regions.grid, lit)
                cells.append(cells_hw[None])
                seen.append(seen_hw[None])
                for name, map_Phw in maps.items():
                    measured[name].append(localize.measure_original(map_Phw[pair], roi_RHW[label], letterbox, lit))
        none = torch.empty(0, localize.NUM_MEASURED)  # of a part in which no image has an ROI
        empty, device = torch.empty(0, *regions.grid), regions.image_P.device
        cells_Phw, seen_Phw = (torch.cat([empty, *share]).to(device) for share in (cells, seen))
        return {name: torch.cat([none, *parts]) for name, parts in measured.items()}, cells_Phw, seen_Phw


def _mean_roi(store: Store, rows: NDArray[np.int64], grid: tuple[int, int], one_map: bool) -> Tensor | None:
    """`priors.mean_roi` of the samples at `rows`: a map for each label, or one of all labels' ROIs together."""

    def masks(row: int) -> Tensor:
        roi_RHW = torch.from_numpy(store.roi_mask(np.array([row]))[0])
        return roi_RHW.any(dim=0, keepdim=True) if one_map else roi_RHW

    with_roi = [int(row) for row in rows if store.rois(int(row))]
    return baselines.mean_roi(((masks(row), store.content_box_N4[row].tolist()) for row in with_roi), grid)


def _prefixed(metrics: dict[str, float]) -> dict[str, float]:
    return {f"val/{name}": value for name, value in metrics.items()}
