"""Validation of a student: classification and localisation scores from the same forward pass.

After most epochs of a training only the goals are needed. All other scores, standard errors and the scores of
baselines are computed where they are used: at the rungs of early stopping and after the last epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, EvaluationConfig
from mmpkd.images import Images
from mmpkd.machine.checksums import fingerprint
from mmpkd.scoring import baselines, classify, localize, stats
from mmpkd.scoring.forward import ForwardPass
from mmpkd.scoring.patients import auroc_of_patients, rarer_class
from mmpkd.scoring.regions import Regions, foreground
from mmpkd.scoring.saliency import MAPS, Columns, columns_explained
from mmpkd.scoring.stats import Floats
from mmpkd.student import Student
from mmpkd.types import CohortError, DivergedError, Task

UNION = "any"  # label of the union of all ROIs of an image
BASELINES: dict[str, dict[str, float]] = {}  # computed once: a worker trains many students on one cohort
OWN = "student"  # name of the student's own maps beside those of baselines
ROI_GOALS = ("pointing", "mass", "pixel_ap")
GOALS = ("val/auroc", "val/auroc_patient", *(f"val/{score}" for score in ROI_GOALS))  # scores that can be goals
USUAL_GOALS = ("val/auroc", "val/auroc_patient", "val/pointing")  # the goals, unless a sweep names others


class Labels(NamedTuple):
    """The labels of some samples, in the layout of a student's logits."""

    tasks: tuple[Task, ...]
    target_NK: NDArray[np.float32]
    known_NK: NDArray[np.bool_]


class Evaluator:
    """Scores students on fixed samples. Everything that depends on the samples alone is computed once.

    It reads images, labels and ROIs, never a privileged column; none of these reaches the training.

    Args:
        train_rows: training samples. Their mean ROI is a further baseline, `<score>_prior`; nothing else reads their
            ROIs.
        labels: labels of the samples at `rows`, if the student's tasks are not those of the store.
        replicates: number of replicates of the bootstrap over patients.
        reads: names of the images that the student reads.
        goals: the scores of GOALS that `score_goals` computes, where the samples have them.
        record: whether to record the forward pass as a CUDA graph; `device` is a GPU then.
        train_store: the cohort of `train_rows`, if it is another one with the same ROI labels.

    Attributes:
        scored: logits and maps, as `predict` returns them, of the last student that was scored completely; None if
            none was.
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
        goals: Sequence[str] = GOALS,
        record: bool = False,
        train_store: Store | None = None,
    ) -> None:
        self.store, self.rows, self.train_rows, self.replicates = store, rows, train_rows, replicates
        self.train_store = train_store or store
        labels = labels or Labels(store.facts.tasks, store.target_NK[rows], store.known_NK[rows])
        self.tasks, self.target_NK, self.known_NK = labels
        self.map = MAPS[config.map]()
        self.one_each = len(np.unique(store.patient_N[rows])) == len(rows)  # no patient has several of these images
        self.scored: tuple[NDArray[np.float64], Tensor] | None = None
        self.regions: Regions | None = None
        self.foreground_NHW: NDArray[np.bool_] | None = None
        self.with_patients = "val/auroc_patient" in goals and store.facts.several_images
        self.roi_goals = [score for score in ROI_GOALS if f"val/{score}" in goals] if store.facts.roi_labels else []
        self.union = config.roi == "union"
        self.roi_labels = (UNION,) if self.union and store.facts.roi_labels else store.facts.roi_labels
        self.one_map = not self.map.per_label and len(self.roi_labels) > 1
        self.explained: list[Columns] = []
        if store.facts.roi_labels:
            if self.map.per_label:
                self.explained = columns_explained(store.facts.roi_labels, self.tasks)
            if self.union and self.explained:
                self.explained = [tuple(sorted({column for columns in self.explained for column in columns}))]
            if config.within == "foreground":
                self.foreground_NHW = foreground(store.image_NCHW[rows].max(axis=1))
            roi_NRHW, box_N4 = self._united(store.roi_mask(rows)), store.content_box_N4[rows]
            self.regions = Regions.of(roi_NRHW, box_N4, grid, device, self.foreground_NHW)
        images = Images(store, rows, reads, device)
        self._forward = ForwardPass(images, self.map, self.explained, config.batch_size, device, record)

    @cached_property
    def weight_RN(self) -> Floats:
        """The replicates of the bootstrap over patients, see `stats.patient_weights`."""
        return stats.patient_weights(self.store.patient_N[self.rows], self.replicates)

    @cached_property
    def prior_Rhw(self) -> Tensor | None:
        """The mean ROI of the training samples, if the ROIs of training samples may be read."""
        if self.regions is None or self.train_rows is None:
            return None
        return baselines.mean_roi_of(self.train_store, self.train_rows, self.regions.grid, self.union or self.one_map)

    @cached_property
    def fixed(self) -> dict[str, float]:
        """The scores that are the same for every student: scores of baselines, the highest attainable scores, and the
        number of patients of the rarest class."""
        rarer_K = rarer_class(self.target_NK, self.known_NK, self.store.patient_N[self.rows])
        scored = rarer_K > 0
        fixed = {"val/auroc_rarer_class": float(rarer_K[scored].min())} if scored.any() else {}
        if self.regions is not None:
            train_rows = None if self.train_rows is None else self.train_rows.tolist()
            maps = self.regions.grid, self.union, self.one_map, self.foreground_NHW is None, self.regions.image_P.device
            stores = self.store.fingerprint, self.train_store.fingerprint
            key = fingerprint([*stores, self.rows.tolist(), train_rows, *maps])
            if key not in BASELINES:
                BASELINES[key] = _prefixed(self._of_baselines(self.regions))
            fixed |= BASELINES[key]
        return fixed

    def _of_baselines(self, regions: Regions) -> dict[str, float]:
        maps = baselines.baseline_maps(regions, self.prior_Rhw)
        measured = {name: localize.measure(map_Phw, regions) for name, map_Phw in maps.items()}
        scores = baselines.baseline_scores(measured, regions)
        return localize.summarize(scores | localize.bounds(regions, self.one_map))

    def _united(self, roi_NRHW: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray(roi_NRHW.any(axis=1, keepdims=True)) if self.union else roi_NRHW

    def require_scorable(self) -> None:
        """Checks that every task can be scored.

        Raises:
            CohortError: a task has no label with both classes among these samples.
        """
        for task, labels in classify.scorable(self.target_NK, self.known_NK, self.tasks).items():
            if not labels:
                raise CohortError(f"task '{task}' has a single class among the {len(self.rows)} validation samples")

    def __call__(self, student: Student) -> dict[str, float]:
        """Returns metrics under `val/`: scores, their standard errors over patients, and the scores of baselines.

        Raises:
            DivergedError: the weights after the last step give logits that are not finite.
        """
        self.scored = logits_NK, map_NRhw = self.predict(student)
        _require_finite(logits_NK)
        weight_RN = None if self.one_each else self.weight_RN
        metrics = _prefixed(classify.score(logits_NK, self.target_NK, self.known_NK, self.tasks, weight_RN))
        if self.store.facts.several_images:
            metrics |= _prefixed(self._of_patients(logits_NK))
        if self.regions is not None:
            scores = localize.score(map_NRhw, self.regions)
            metrics |= _prefixed(localize.summarize(scores, self.weight_RN, self.roi_labels))
        return metrics | self.fixed

    def score_goals(self, student: Student) -> dict[str, float]:
        """Returns only the goals, with the same bits as a complete scoring, and the two counts that explain a missing
        `val/auroc_patient`. Nothing else is computed. The results are copied to the host at once; only the histograms
        of `val/pixel_ap` make it wait for the device before.

        Raises:
            DivergedError: see `__call__`.
        """
        logits_NK, map_NRhw = self._forward(student, maps=bool(self.roi_goals))
        results = [logits_NK.flatten()]
        if self.regions is not None and self.roi_goals:
            map_Phw = localize.by_pair_unchecked(map_NRhw, self.regions)
            results.append(localize.measure_goals(map_Phw, self.regions, self.roi_goals).flatten())
        value = torch.cat(results).cpu().numpy()
        logits, measured = value[: logits_NK.numel()].reshape(logits_NK.shape), value[logits_NK.numel() :]
        _require_finite(logits)
        scores = {"auroc": classify.aurocs(logits, self.target_NK, self.known_NK, self.tasks)[0]}
        if self.with_patients:
            scores |= self._of_patients(logits, error=False)
        if self.regions is not None and self.roi_goals:
            columns = zip(self.roi_goals, measured.reshape(-1, len(self.roi_goals)).T, strict=True)
            of_goals = localize.summarize({goal: self.regions.by_place(value_P) for goal, value_P in columns})
            scores |= {goal: of_goals[goal] for goal in self.roi_goals}
        return _prefixed(scores)

    def _of_patients(self, logits_NK: Floats, error: bool = True) -> dict[str, float]:
        """Returns scores by patient. It is called in every fold if any patient of the cohort has several images."""
        labels = self.target_NK, self.known_NK, self.tasks
        return auroc_of_patients(logits_NK, *labels, self.store.patient_N[self.rows], error)

    def predict(self, student: Student) -> tuple[NDArray[np.float64], Tensor]:
        """Returns logits (N, K) and maps (N, R, h, w) of every sample; R is 1 if one map serves all labels."""
        if self.regions is None or self.roi_goals:
            logits_NK, map_NRhw = self._forward(student, maps=self.regions is not None)
        else:  # a forward pass with maps rounds otherwise, and `score_goals` has none with maps
            logits_NK, map_NRhw = self._forward(student, maps=False)[0], self._forward(student, maps=True)[1]
        return logits_NK.cpu().numpy(), map_NRhw

    def thresholds(self, map_NRhw: Tensor) -> dict[str, float]:
        """Returns the threshold of `iou_tuned` of each ROI label, chosen by `localize.tuned_thresholds`."""
        if self.regions is None:
            return {}
        measured_PS = localize.measure(localize.by_pair(map_NRhw, self.regions), self.regions)
        threshold_R = localize.tuned_thresholds(measured_PS, self.regions)
        return dict(zip(self.roi_labels, threshold_R.tolist(), strict=True))

    def table(self, map_NRhw: Tensor, threshold_R: Floats | None = None, original: bool = False) -> pd.DataFrame:
        """Returns one row for each (sample, label) with an ROI: every score, the scores of baselines, and the highest
        attainable scores. If one map serves several labels, a row also holds the highest score that a map for its label
        alone could attain (`_max_alone`).

        Args:
            map_NRhw: the maps that `predict` returned.
            threshold_R: the thresholds of `iou_tuned`; see `localize.by_image`. The thresholds of the baselines are
                always tuned on the pairs of this table.
            original: whether to score in the frame of the original images, one at a time, instead of the stored
                squares.
        """
        assert self.regions is not None, "a cohort without ROIs has no table of them"
        maps = baselines.baseline_maps(self.regions, self.prior_Rhw) | {OWN: localize.by_pair(map_NRhw, self.regions)}
        scored_regions = self.regions
        if original:
            measured, cells_Phw, seen_Phw = self._measure_originals(self.regions, maps)
            scored_regions = replace(self.regions, cells_Phw=cells_Phw, seen_Phw=seen_Phw)
        else:
            measured = {name: localize.measure(map_Phw, self.regions) for name, map_Phw in maps.items()}
        scores = localize.by_image(measured.pop(OWN), self.regions, threshold_R)
        scores |= baselines.baseline_scores(measured, self.regions)
        scores |= localize.bounds(scored_regions, self.one_map)
        if self.one_map:
            alone = localize.bounds(scored_regions, one_map=False)
            scores |= {f"{name}_alone": value_NR for name, value_NR in alone.items()}
        return localize.table(scores, self.regions, self.store.sample_ids[self.rows].tolist(), self.roi_labels)

    def _measure_originals(self, regions: Regions, maps: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Scores maps in the frame of the original images.

        Returns:
            The result of `localize.measure_original` for all pairs, by the name of the map; and `cells_Phw` and
            `seen_Phw` of `Regions`, computed from the original ROIs.
        """
        cells: list[Tensor] = []
        seen: list[Tensor] = []
        measured: dict[str, list[Tensor]] = {name: [] for name in maps}
        pairs = zip(regions.image_P.tolist(), regions.label_P.tolist(), strict=True)
        for image, labelled in groupby(enumerate(pairs), key=lambda numbered: numbered[1][0]):
            letterbox = self.store.letterbox(self.rows[image])
            roi_RHW = self._united(self.store.original_rois(self.rows[image])[None])[0]
            inside_HW = None if self.foreground_NHW is None else letterbox.original_mask(self.foreground_NHW[image])
            for pair, (_, label) in labelled:
                cells_hw, seen_hw = localize.original_shares(roi_RHW[label], letterbox, regions.grid, inside_HW)
                cells.append(cells_hw[None])
                seen.append(seen_hw[None])
                for name, map_Phw in maps.items():
                    scores_1S = localize.measure_original(map_Phw[pair], roi_RHW[label], letterbox, inside_HW)
                    measured[name].append(scores_1S)
        none = torch.empty(0, localize.NUM_MEASURED)  # for a part in which no image has an ROI
        empty, device = torch.empty(0, *regions.grid), regions.image_P.device
        cells_Phw, seen_Phw = (torch.cat([empty, *share]).to(device) for share in (cells, seen))
        return {name: torch.cat([none, *parts]) for name, parts in measured.items()}, cells_Phw, seen_Phw


def _require_finite(logits_NK: Floats) -> None:
    if not np.isfinite(logits_NK).all():
        raise DivergedError(
            "the student's logits are no longer finite after an epoch: lower optimizer.lr, or set optimizer.clip_norm"
        )


def _prefixed(metrics: dict[str, float]) -> dict[str, float]:
    return {f"val/{name}": value for name, value in metrics.items()}
