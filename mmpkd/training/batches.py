"""The batches of an epoch: which samples, in which order, in which views."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd import fit
from mmpkd.augment import Draws, View, apply_light, apply_view, draw
from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, AugmentationConfig, TrialConfig
from mmpkd.images import Images, on_its_way
from mmpkd.types import Batch


@dataclass(frozen=True)
class StepInputs:
    """What distinguishes one step from another: everything else of a batch follows on the device."""

    image_BCHW: Tensor  # uint8, as stored
    position_B: Tensor  # positions among the training samples
    draws: Draws

    @classmethod
    def of(cls, tensors: Sequence[Tensor], augmentation: AugmentationConfig) -> StepInputs:
        """Returns the inputs whose `tensors` these are."""
        image_BCHW, position_B, shift_B2, mirrored_B2, *further = tensors
        turn_B22 = further.pop(0) if augmentation.moves else None
        light_B2 = further.pop(0) if augmentation.lights else None
        return cls(image_BCHW, position_B, Draws(shift_B2, mirrored_B2, turn_B22, light_B2))

    def tensors(self) -> list[Tensor]:
        """Returns all tensors of these inputs."""
        return [self.image_BCHW, self.position_B, *(numbers for numbers in self.draws if numbers is not None)]


class TrainingSamples:
    """The training samples of a run: their images, and on the device their labels, patients and places in the store."""

    def __init__(self, config: TrialConfig, store: Store, rows: NDArray[np.int64], device: torch.device) -> None:
        self.device, self.count = device, len(rows)
        self.image_size, self.augmentation = store.facts.image_size, config.augmentation
        self.images = Images(store, rows, config.student.reads, device)
        arrays = (rows, store.patient_N[rows], store.target_NK[rows], store.known_NK[rows])
        self.row_N, self.patient_N, self.target_NK, self.known_NK = (fit.on_device(each, device) for each in arrays)
        has_box = config.student.reads == (IMAGE,)  # further images have letterboxes that the store does not keep
        self.content_box_N4 = fit.on_device(store.content_box_N4[rows], device) if has_box else None

    def inputs(self, size: int, order: torch.Generator, views: torch.Generator) -> Iterator[StepInputs]:
        """Yields the inputs of the steps of one epoch, with `size` samples in each step but the last.

        Args:
            order: generator of the order of the samples.
            views: generator of the views; its draws for a step do not depend on the steps that follow.
        """
        order_N = torch.randperm(self.count, generator=order)
        of_image = self.image_size, self.augmentation, views
        draws = Draws.joined([draw(len(part), *of_image) for part in order_N.split(size)])
        draws, position_N = draws.each(self._move), self._move(order_N)
        for start, image_BCHW in zip(range(0, self.count, size), self.images.batches(order_N, size), strict=True):
            part = slice(start, start + size)
            yield StepInputs(image_BCHW, position_N[part], draws.each(itemgetter(part)))

    def batch(self, inputs: StepInputs) -> tuple[Batch, View]:
        """Returns the batch of a step, and the view that its images show.

        The view is for teachers whose inputs must move as the images do; an objective never sees the view.
        """
        chosen_B, view = inputs.position_B, inputs.draws.view(self.image_size)
        image_BCHW = apply_view(inputs.image_BCHW, view).float() / 255
        box_B4 = None if self.content_box_N4 is None else self.content_box_N4[chosen_B]
        batch = Batch(
            patient_B=self.patient_N[chosen_B],
            image_BCHW=apply_light(image_BCHW, view, box_B4),
            target_BK=self.target_NK[chosen_B],
            known_BK=self.known_NK[chosen_B],
            rows_B=self.row_N[chosen_B],
        )
        return batch, view

    def _move(self, values: Tensor) -> Tensor:
        return on_its_way(values, self.device)
