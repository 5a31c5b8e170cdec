"""The images of some samples, on the device that trains or scores a student."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE

MAX_SHARE = 0.25  # of the GPU memory that this process may use: images that need more stay on the host
NUM_BUFFERS = 2  # batches on their way to a GPU: one is copied while the next one is gathered


class Images:
    """Stored images of the samples at `rows`, in batches of uint8 on a device.

    On a CPU a batch is gathered from the memory map of the store. A GPU keeps all images in its memory if they fit
    into `MAX_SHARE` of what the process may use. Otherwise a thread gathers batches into pinned memory and copies them
    on a stream of its own while the GPU computes. Neither way makes the caller wait for the GPU.

    Args:
        rows: positions of the samples in the store.
        reads: names of the images that the student reads; their channels are concatenated.
        resident: whether the device keeps all images; by default this depends on the device and its memory.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        reads: Sequence[str],
        device: torch.device,
        resident: bool | None = None,
    ) -> None:
        self._store, self._rows, self._reads, self._device = store, rows, tuple(reads), device
        if resident is None:
            resident = device.type == "cuda" and self._num_bytes() <= MAX_SHARE * usable_bytes(device)
        self._image_NCHW = torch.from_numpy(store.images(rows, reads)).to(device) if resident else None
        # torch keeps freed memory apart for each stream, so that the copies of all epochs share one.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and not resident else None

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, order_N: Tensor, size: int) -> Iterator[Tensor]:
        """Yields the images (B, C, H, W) of the samples in the given order, `size` at a time.

        Args:
            order_N: positions among the samples, on the CPU.
        """
        if self._image_NCHW is not None:
            yield from (self._image_NCHW[part] for part in on_its_way(order_N, self._device).split(size))
        elif self._stream is not None:
            yield from self._prefetched(order_N.split(size), self._stream)
        else:
            yield from (self._gather(part).to(self._device) for part in order_N.split(size))

    def _gather(self, part: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._store.images(self._rows[part.numpy()], self._reads)))

    def _prefetched(self, parts: Sequence[Tensor], stream: torch.cuda.Stream) -> Iterator[Tensor]:
        def fetch(part: Tensor) -> tuple[Tensor, torch.cuda.Event]:
            pinned_BCHW = self._gather(part).pin_memory()  # torch keeps pinned memory until its copy has ended
            with torch.cuda.stream(stream):
                return pinned_BCHW.to(self._device, non_blocking=True), stream.record_event()

        coming: deque[Future[tuple[Tensor, torch.cuda.Event]]] = deque()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as thread:
            coming.extend(thread.submit(fetch, part) for part in parts[:NUM_BUFFERS])
            for index in range(len(parts)):
                image_BCHW, copied = coming.popleft().result()
                if index + NUM_BUFFERS < len(parts):
                    coming.append(thread.submit(fetch, parts[index + NUM_BUFFERS]))
                torch.cuda.current_stream().wait_event(copied)
                image_BCHW.record_stream(torch.cuda.current_stream())
                yield image_BCHW

    def _num_bytes(self) -> int:
        views = [self._store.image_NCHW if name == IMAGE else self._store.view(name) for name in self._reads]
        return len(self._rows) * sum(int(view[0].nbytes) for view in views)


def usable_bytes(device: torch.device) -> float:
    """Returns the bytes of a GPU's memory that this process may allocate."""
    _, total = torch.cuda.mem_get_info(device)
    return total * torch.cuda.get_per_process_memory_fraction(device.index)  # which refuses a device without an index


def on_its_way(values: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the CPU to a device, without making the caller wait for a GPU."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
