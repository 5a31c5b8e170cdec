"""The training steps that benchmarks/gpu.py compares: (a) what a user writes, (b) ours as it was, (c) ours now, (d) the
floor. Each is a function that builds a training and returns a function, which takes a number of steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from benchmarks.gpu_measure import Advance, device
from mmpkd import fit
from mmpkd.augment import View, apply_light, apply_view, draw_views
from mmpkd.build import build
from mmpkd.cohort.store import Store
from mmpkd.config import TrialConfig
from mmpkd.teachers.fitted import FittedTeacher
from mmpkd.training.epoch import train_epoch
from mmpkd.training.stages import Run
from mmpkd.training.step import loss_terms
from mmpkd.types import Batch

MEAN, STD = 0.5, 0.25  # the user's normalisation; the values do not matter for speed
RUNS_AHEAD = 2  # batches that each worker of a DataLoader prepares ahead, which is torch's default


def run_of(
    config: TrialConfig,
    store: Store,
    teachers: Mapping[str, FittedTeacher] = {},
    num_samples: int | None = None,
) -> Run:
    """Builds one training on the device, as `mmpkd.train` does.

    Args:
        num_samples: how many training samples it has, for which those of the store are repeated; None: those of the
            store.
    """
    widths = {name: teacher.width for name, teacher in teachers.items()}
    student, objectives = build(config, store.facts, widths)
    student.to(device())
    objectives.to(device())
    on_device = {name: teacher.to(device()) for name, teacher in teachers.items()}
    rows = store.rows("train")
    rows = rows if num_samples is None else np.resize(rows, num_samples)
    return Run(config, store, rows, student, objectives, on_device, device())


class Decoded(Dataset[tuple[Tensor, Tensor]]):
    """Images that are decoded from PNG files and augmented one at a time, with their labels."""

    def __init__(self, paths: list[Path], target_NK: NDArray[np.float32], size: int) -> None:
        self.paths, self.target_NK = paths, torch.from_numpy(target_NK)
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomCrop(size, padding=round(0.1 * size)),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([MEAN], [STD]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.open(self.paths[index])), self.target_NK[index]


def num_workers() -> int:
    return min(8, os.cpu_count() or 1)


def documented(config: TrialConfig, store: Store, paths: list[Path]) -> Advance:
    """(a) What a user writes: a DataLoader that decodes PNG files in worker processes, an eager model from timm under
    bfloat16 autocast, AdamW as torch builds it, and `loss.item()` at each step.

    The sampler never ends, so that the start of an epoch, at which the workers are idle, does not count.
    """
    rows = store.rows("train")[: len(paths)]
    dataset = Decoded(paths, store.target_NK[rows], config.cohort.image_size)
    batch_size, channels = config.optimizer.batch_size, store.facts.channels
    loader = DataLoader(
        dataset,
        batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=10**8),
        num_workers=num_workers(),
        prefetch_factor=RUNS_AHEAD,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )
    sizes = config.student.model_dump(exclude_none=True, include={"patch_size", "embed_dim", "depth", "num_heads"})
    model = timm.create_model(
        config.student.model,
        img_size=config.cohort.image_size,
        in_chans=channels,
        num_classes=store.target_NK.shape[1],
        **sizes,
    ).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr)
    batches = iter(loader)
    model.train()

    def advance(steps: int) -> None:
        for image_BCHW, target_BK in islice(batches, steps):
            image_BCHW, target_BK = (each.to(device(), non_blocking=True) for each in (image_BCHW, target_BK))
            optimizer.zero_grad()
            with fit.autocast(device()):
                loss = F.binary_cross_entropy_with_logits(model(image_BCHW).float(), target_BK)
            loss.backward()
            optimizer.step()
            loss.item()

    return advance


class Before:
    """(b) A training of ours as it was before issue 18, at commit b8a63b1: always eager, images gathered from the
    memory map in the training thread and copied synchronously, AdamW as torch builds it, the rate as a float."""

    def __init__(self, run: Run) -> None:
        self.run, self.rows, self.epoch = run, run.rows, 0
        groups = [
            {"params": group["params"], "weight_decay": group["weight_decay"]} for group in run.optimizer.param_groups
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=run.config.optimizer.lr)

    def train_epoch(self) -> dict[str, float]:
        """Trains one epoch and returns the mean of each loss term."""
        run, num_steps = self.run, -(-len(self.rows) // self.run.config.optimizer.batch_size)
        step, log = self.epoch * num_steps, fit.TermLog(self.epoch * num_steps)
        run.wake()
        with fit.seeded(run.config.seed, *run.purpose("epoch", self.epoch)):
            for batch, view in self._batches():
                terms = loss_terms(run, batch, view)
                log.add(terms)
                self._descend(terms, step, (run.stage.epochs or 1) * num_steps)
                step += 1
        self.epoch += 1
        return log.means()

    def _batches(self) -> Iterator[tuple[Batch, View]]:
        run, config, store = self.run, self.run.config, self.run.store
        order_generator = fit.generator_for(config.seed, *run.purpose("order", self.epoch))
        order = torch.randperm(len(self.rows), generator=order_generator)
        view_generator = fit.generator_for(config.seed, *run.purpose("views", self.epoch))
        for positions in order.split(config.optimizer.batch_size):
            rows = self.rows[positions.numpy()]
            view = draw_views(len(rows), store.facts.image_size, config.augmentation, view_generator)
            image_BCHW = apply_view(fit.on_device(store.images(rows), run.device), view).float() / 255
            batch = Batch(
                patient_B=fit.on_device(store.patient_N[rows], run.device),
                image_BCHW=apply_light(image_BCHW, view, torch.from_numpy(store.content_box_N4[rows])),
                target_BK=fit.on_device(store.target_NK[rows], run.device),
                known_BK=fit.on_device(store.known_NK[rows], run.device),
                rows_B=fit.on_device(rows, run.device),
            )
            yield batch, view

    def _descend(self, terms: Mapping[str, Tensor], step: int, num_steps: int) -> None:
        config = self.run.config
        self.optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        nn.utils.clip_grad_norm_(fit.parameters_of(self.optimizer), config.optimizer.clip_norm)
        schedule = config.schedule
        rate = fit.learning_rate(step, num_steps, config.optimizer.lr, schedule.warmup, schedule.final)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


def before(config: TrialConfig, store: Store) -> Advance:
    """(b) Ours as it was, see `Before`."""
    training = Before(run_of(config, store))
    rows = training.rows

    def advance(steps: int) -> None:
        training.rows = np.resize(rows, steps * config.optimizer.batch_size)
        training.train_epoch()

    return advance


def ours(config: TrialConfig, store: Store, most_steps: int, teachers: Mapping[str, FittedTeacher] = {}) -> Advance:
    """(c) Ours now: the function of the product that trains one epoch. Each call is an epoch of as many steps as are
    wanted, up to `most_steps`."""
    batch_size = config.optimizer.batch_size
    run = run_of(config, store, teachers, most_steps * batch_size)
    rows, epochs = run.rows, iter(range(run.stage.epochs or 1))

    def advance(steps: int) -> None:
        assert steps <= most_steps
        # The samples on the device stay where they are, because recorded steps read them there.
        run.rows, run.samples.count = rows[: steps * batch_size], steps * batch_size
        train_epoch(run, next(epochs))

    return advance


def floor(config: TrialConfig, store: Store, execution: str) -> Advance:
    """(d) The floor: forward pass, cross-entropy, backward pass and update on one batch that stays on the device,
    without augmentation, loss terms of the product, clipping or a schedule.

    Args:
        execution: `graph` captures the whole step as a CUDA graph; `eager` does not.
    """
    run, batch_size = run_of(config, store), config.optimizer.batch_size
    student, size = run.student, config.cohort.image_size
    image_BCHW = torch.rand(batch_size, store.facts.channels, size, size, device=device())
    target_BK = fit.on_device(store.target_NK[np.resize(run.rows, batch_size)], device())
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=config.optimizer.lr, fused=True, capturable=execution == "graph"
    )
    student.train()

    def step() -> None:
        optimizer.zero_grad()
        with fit.autocast(device()):
            loss = F.binary_cross_entropy_with_logits(student(image_BCHW).logits_BK.float(), target_BK)
        loss.backward()
        optimizer.step()

    take = captured(step) if execution == "graph" else step

    def advance(steps: int) -> None:
        for _ in range(steps):
            take()

    return advance


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Captures a step as a CUDA graph, after three eager steps on a side stream, and returns the graph's replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # autograd remembers the stream of the steps before
        step()
    return graph.replay
