"""Keeps a worker process to the share of a GPU that it has reserved: the GPUs it sees, and the memory it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sweep.workers import mps

# Memory that a process takes on a GPU beside what PyTorch allocates: its CUDA context and its loaded kernels. On an
# H100 (driver 580, PyTorch 2.11) it was 525 MiB at first, 800 MiB after the kernels of a step, and 830 MiB in each of
# 16 trials that shared the GPU under MPS.
CONTEXT_BYTES: Final = 850 * 2**20


def enter_device(gpus: float, mps_folder: Path) -> None:
    """Prepares this worker process for the share of a GPU that it has reserved. It must be called before the process
    uses CUDA.

    A worker that shares a GPU may not take the memory of the others. A worker uses MPS if it runs on this machine, even
    if it shares its GPU with no other trial, because in the compute mode Exclusive_Process it could not use the GPU
    beside MPS. Ray (2.60) shows all GPUs of a machine to a worker that has reserved none, so they are hidden here.

    Args:
        gpus: share of a GPU, from 0 to 1.
        mps_folder: folder of MPS on this machine, which exists if MPS runs.
    """
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    mps.join(mps_folder)
    if gpus < 1:
        _limit_memory(gpus)


def memory_fraction(gpus: float, total_bytes: int) -> float:
    """Returns the fraction of a GPU's memory that PyTorch may allocate in a process which has reserved a share of the
    GPU. The CUDA context of the process is not in the fraction, but must fit into the share, too.
    """
    return max(gpus - CONTEXT_BYTES / total_bytes, 0.0)


def _limit_memory(gpus: float) -> None:
    import torch  # takes seconds, and a worker without a GPU may not need it

    if torch.cuda.is_available():
        total_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(gpus, total_bytes))
