"""The batches of an epoch: which samples, in which order, in which views."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmpkd import fit
from mmpkd.augment import View, apply_light, apply_view, draw_views
from mmpkd.config import IMAGE
from mmpkd.training.stages import Run
from mmpkd.types import Batch


def batches(run: Run, epoch: int) -> Iterator[tuple[Batch, View]]:
    """Yields the training samples in the order and views of this epoch, which are determined by seed and epoch alone.

    The view is for teachers whose inputs must move as the images do; an objective never sees the view.
    """
    config, store, device = run.config, run.store, run.device
    order = torch.randperm(len(run.rows), generator=fit.generator_for(config.seed, *run.purpose("order", epoch)))
    view_generator = fit.generator_for(config.seed, *run.purpose("views", epoch))
    for positions in order.split(config.optimizer.batch_size):
        rows = run.rows[positions.numpy()]
        view = draw_views(len(rows), store.facts.image_size, config.augmentation, view_generator)
        image_BCHW = apply_view(fit.on_device(store.images(rows, config.student.reads), device), view).float() / 255
        box_B4 = torch.from_numpy(store.content_box_N4[rows]) if config.student.reads == (IMAGE,) else None
        batch = Batch(
            sample_ids=tuple(store.sample_ids[rows]),
            patient_B=fit.on_device(store.patient_N[rows], device),
            image_BCHW=apply_light(image_BCHW, view, box_B4),
            target_BK=fit.on_device(store.target_NK[rows], device),
            known_BK=fit.on_device(store.known_NK[rows], device),
            rows_B=fit.on_device(rows, device),
        )
        yield batch, view
