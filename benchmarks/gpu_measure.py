"""How benchmarks/gpu.py measures: the card, its peak, the operations of a model, time and profiles of steps."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from mmpkd.student import Student

Advance = Callable[[int], None]  # takes this number of training steps
MARKS = (
    "Optimizer.",
    "enumerate(",
    "ProfilerStep",
    "Torch-Compiled",
    "## Call",
)  # spans that a profile shows beside real work
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Budget:
    """Seconds that may be spent, counted from now.

    Attributes:
        was_short: whether something was left out because nothing was left.
    """

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds
        self.was_short = False

    def left(self) -> float:
        return max(0.0, self.end - time.perf_counter())

    def is_spent(self) -> bool:
        """Returns whether nothing is left for what comes next, which is then left out."""
        self.was_short |= self.left() == 0
        return self.left() == 0

    def part(self, seconds: float) -> Budget:
        """Returns the budget of a part, which is never more than what is left of the whole."""
        return Budget(min(seconds, self.left()))


class Rate(NamedTuple):
    """The speed of a variant. The extremes are those of the timed spans, of which there are two or more."""

    images_per_second: float
    ms_per_step: float
    slowest: float  # images a second
    fastest: float
    steps: int
    peak_mib: float  # memory that torch reserved on the GPU; 0 on a CPU


class Profile(NamedTuple):
    """What one step does, without what a call of several steps does once."""

    launches: float  # kernel launches by the host; on a CPU, operations of torch, nested ones included
    waits: float  # calls in which the host waits for the GPU
    device_ms: float  # time that kernels and copies take on the GPU
    table: str  # the ten rows with the most time


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Returns the time in seconds after all work of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def card() -> dict[str, Any]:
    """Returns the names and versions on which all figures depend."""
    facts: dict[str, Any] = {"device": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
        facts["gib"] = torch.cuda.get_device_properties(0).total_memory / 2**30
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            facts["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError) as error:
            facts["driver"] = f"unknown ({type(error).__name__})"
    versions = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
    return facts | {"cuda": torch.version.cuda, "gpu": torch.cuda.is_available()} | versions


def matmul_peak(side: int, repetitions: int = 10) -> float:
    """Returns the operations a second of a product of two square matrices of random numbers: the median of some
    products after a warm-up, in bfloat16 on a GPU and in float32 on a CPU."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    left, right = (torch.randn(side, side, device=device(), dtype=dtype) for _ in range(2))
    seconds = []
    for repetition in range(3 + repetitions):
        if torch.cuda.is_available():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            left @ right
            end.record()
            end.synchronize()
            spent = start.elapsed_time(end) / 1000
        else:
            started = time.perf_counter()
            left @ right
            spent = time.perf_counter() - started
        if repetition >= 3:
            seconds.append(spent)
    return 2 * side**3 / sorted(seconds)[len(seconds) // 2]


def flops_of(student: Student) -> float:
    """Returns the floating-point operations of one image in one training step, forward and backward.

    A matrix product with P parameters takes 2 P operations for each token forward, and 4 P backward: 2 P for the
    gradient of the weights, and 2 P for that of its input. The input of the patch embedding has no gradient. Attention
    takes 4 N D for each of N tokens forward in each of L layers (q k and its product with v, of width D), and twice as
    much backward. The recomputation inside of a fused attention kernel does not count. With all in the blocks this is
    the usual 6 P N + 12 L N^2 D.
    """
    model = student.model
    patches = student.grid[0] * student.grid[1]
    tokens = patches + student.num_prefix
    block_params = _matmul_params(model.blocks)
    patch_params = model.patch_embed.proj.weight.numel()
    head_params = _matmul_params(model.get_classifier())
    attention = 12 * student.depth * tokens**2 * model.embed_dim
    return float(6 * block_params * tokens + 4 * patch_params * patches + 6 * head_params + attention)


def _matmul_params(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def rate_of(advance: Advance, batch_size: int, steps: int, seconds: float, warm_up: int) -> Rate:
    """Times spans of `steps` steps until they took `seconds`, at least two of them.

    Args:
        warm_up: steps before anything is timed, in which libraries choose kernels and graphs are captured.
    """
    advance(warm_up)
    spans: list[float] = []
    while len(spans) < 2 or sum(spans) < seconds:
        started = now()
        advance(steps)
        spans.append(now() - started)
    images = [batch_size * steps / span for span in spans]
    mean = sum(spans) / len(spans) / steps
    peak = torch.cuda.max_memory_reserved() / 2**20 if torch.cuda.is_available() else 0.0
    return Rate(batch_size / mean, 1000 * mean, min(images), max(images), steps * len(spans), peak)


def profile_of(advance: Advance, steps: tuple[int, int]) -> Profile:
    """Profiles two calls with different numbers of steps, whose difference is what the further steps did."""
    fewer, more = (_counts(advance, number) for number in steps)
    per_step = [(high - low) / (steps[1] - steps[0]) for low, high in zip(fewer[:3], more[:3], strict=True)]
    return Profile(per_step[0], per_step[1], per_step[2], more[3])


def _counts(advance: Advance, steps: int) -> tuple[int, int, float, str]:
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        advance(steps)
        now()
    launches, waits, milliseconds = count(profiler.events(), cuda)
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=60)
    return launches, waits, milliseconds, table


def count(events: Iterable[Any], cuda: bool) -> tuple[int, int, float]:
    """Returns the launches, the waits and the milliseconds on the GPU among the events of a profile.

    On a GPU, a copy that blocks counts as a wait, and a replayed graph as one launch. On a CPU the operations of torch
    count as launches, and nothing waits.
    """
    launches = waits = 0
    microseconds = 0.0
    for event in events:
        if event.device_type == DeviceType.CUDA:
            if not event.name.startswith(MARKS) and not getattr(event, "is_user_annotation", False):
                microseconds += event.time_range.elapsed_us()
        elif cuda:
            launches += event.name.startswith(LAUNCHES)
            waits += event.name.startswith(WAITS) or event.name == "cudaMemcpy"
        else:
            launches += event.name.startswith("aten::")
    return launches, waits, microseconds / 1000
