"""The outputs of a student for all samples that are scored: logits and saliency maps, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmpkd.fit import autocast
from mmpkd.images import Images
from mmpkd.machine.recording import Recorder
from mmpkd.scoring.saliency import Columns, SaliencyMap
from mmpkd.student import Student


class ForwardPass:
    """Computes a student's logits and maps for some images.

    Args:
        explained: see `SaliencyMap.__call__`.
        record: whether to record the computation as a CUDA graph, which needs a GPU.
    """

    def __init__(
        self,
        images: Images,
        saliency_map: SaliencyMap,
        explained: Sequence[Columns],
        batch_size: int,
        device: torch.device,
        record: bool,
    ) -> None:
        self._images, self._map, self._explained = images, saliency_map, explained
        self._batch_size, self._device, self._record = batch_size, device, record
        self._recorders: dict[tuple[Student, bool], Recorder] = {}

    def __call__(self, student: Student, maps: bool) -> tuple[Tensor, Tensor]:
        """Returns logits (N, K) in double precision and maps (N, R, h, w), which are empty without `maps`."""
        student.eval()

        def outputs(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            image_BCHW = inputs[0].float() / 255
            with autocast(self._device):
                if maps:
                    logits_BK, map_BRhw = self._map(student, image_BCHW, self._explained)
                    return logits_BK.float(), map_BRhw
                with torch.inference_mode():
                    return (student(image_BCHW).logits_BK.float(),)

        call = outputs
        if self._record and not (maps and self._map.per_label):  # a map for a label looks its logits up on the host
            if (student, maps) not in self._recorders:
                self._recorders[student, maps] = Recorder(outputs, self._device, "a validation batch")
            call = self._recorders[student, maps]
        order_N = torch.arange(len(self._images))
        batches = [call([image_BCHW]) for image_BCHW in self._images.batches(order_N, self._batch_size)]
        logits_NK, *maps_of_all = (torch.cat(each) for each in zip(*batches, strict=True))
        return logits_NK.double(), maps_of_all[0] if maps else torch.empty(len(logits_NK), 0, 0, 0)
