"""One validation of a student: classification and localisation of the same forward pass."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd import classify, localize, stats
from mmpkd.cohort.store import Store
from mmpkd.config import EvaluationConfig
from mmpkd.fit import autocast
from mmpkd.saliency import MAPS
from mmpkd.student import Student
from mmpkd.types import CohortError, DivergedError


class Evaluator:
    """The scores of a student on fixed samples; what depends on the samples alone is computed once.

    Sees images, labels and ROIs, never a privileged column; nothing here reaches the training.

    Raises:
        CohortError: a task without any label that has both classes among these samples.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        config: EvaluationConfig,
        grid: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.tasks = store.facts.tasks
        self.target_NK, self.known_NK = store.target_NK[rows], store.known_NK[rows]
        for task, labels in classify.scorable(self.target_NK, self.known_NK, self.tasks).items():
            if not labels:
                raise CohortError(f"task '{task}' has a single class among the {len(rows)} validation samples")
        self.image_NCHW = torch.from_numpy(store.image_NCHW[rows])
        self.batch_size = config.batch_size
        self.map = MAPS[config.map]
        self.device = device
        self.weight_RN = stats.patient_weights(store.patient_N[rows])
        self.regions: localize.Regions | None = None
        self.fixed: dict[str, float] = {}
        if store.facts.roi_labels:
            lit = localize.foreground(store.image_NCHW[rows].max(axis=1)) if config.within == "foreground" else None
            self.regions = localize.Regions.of(store.roi_mask(rows), store.content_box_N4[rows], grid, device, lit)
            self.fixed = _prefixed(localize.summarize(localize.baselines(self.regions)))

    def __call__(self, student: Student) -> dict[str, float]:
        """Metrics under `val/`: scores, their standard errors over patients, and what chance scores.

        Raises:
            DivergedError: the last step left weights that give no finite logits.
        """
        logits_NK, map_Nhw = self.look(student)
        if not np.isfinite(logits_NK).all():
            raise DivergedError(
                "the student's logits are no longer finite after an epoch: "
                "lower optimizer.lr, or set optimizer.clip_norm"
            )
        metrics = _prefixed(classify.score(logits_NK, self.target_NK, self.known_NK, self.tasks, self.weight_RN))
        if self.regions is not None:
            metrics |= _prefixed(localize.summarize(localize.score(map_Nhw, self.regions), self.weight_RN))
        return metrics | self.fixed

    def look(self, student: Student) -> tuple[NDArray[np.float64], Tensor]:
        """Logits (N, K) and maps (N, h, w) of every sample."""
        student.eval()
        wanted = () if self.regions is None else (student.depth - 1,)
        logits, maps = [], []
        with torch.inference_mode(), autocast(self.device):
            for image_BCHW in self.image_NCHW.split(self.batch_size):
                output = student(image_BCHW.to(self.device).float() / 255, attention_layers=wanted)
                logits.append(output.logits_BK.float())
                if wanted:
                    maps.append(self.map(output))
        logits_NK = torch.cat(logits).double().cpu().numpy()
        return logits_NK, torch.cat(maps) if maps else torch.empty(0)


def _prefixed(metrics: dict[str, float]) -> dict[str, float]:
    return {f"val/{name}": value for name, value in metrics.items()}
