"""Pre-trains a student without labels, before its training: see `masked_autoencoder`.

The weights are cached under the address of everything that determines them, as finished stages are.
"""

from __future__ import annotations

import os
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmpkd import command, fit
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.config import IMAGE, STUDENT, StageConfig, TrialConfig
from mmpkd.machine.checksums import DamagedError, fingerprint, require_whole_archive
from mmpkd.machine.files import locked
from mmpkd.near_names import near
from mmpkd.student import Student
from mmpkd.teachers.training import content_hash
from mmpkd.training import stages
from mmpkd.training.batches import TrainingSamples
from mmpkd.training.masked_autoencoder import MaskedAutoencoder, draw_masks, num_visible
from mmpkd.types import ConfigError, DivergedError, Mistake, SharedCache
from mmpkd.weights import weights_of

VERSION = 1  # raise it when a pre-training of the same configuration gives other weights
STAGE = StageConfig(name="pretrain", train=(STUDENT,))
WEIGHT_DECAY, WARMUP, CLIP_NORM = 0.05, 0.1, 1.0
TIMED_STEPS = 3


def check(config: TrialConfig, facts: Facts, student: Student | None) -> list[Mistake]:
    """Returns what is wrong with the pre-training of a configuration.

    Args:
        student: the student on the meta device; None if it cannot be built.
    """
    own = config.pretrain
    if own is None:
        return []
    mistakes = []
    if config.student.reads != (IMAGE,):
        problem = f"a student that is pre-trained reads {IMAGE} alone; name further images in pretrain.views"
        mistakes.append(Mistake("student.reads", problem))
    for name in own.views:
        if name == IMAGE:
            mistakes.append(Mistake("pretrain.views", f"{IMAGE!r} is always learned from; leave it out"))
        elif name not in facts.views:
            problem = f"the cohort has no further image {name!r}{near(name, facts.views)}"
            mistakes.append(Mistake("pretrain.views", problem))
    if len(set(own.views)) < len(own.views):
        mistakes.append(Mistake("pretrain.views", "a name is given twice"))
    if student is None:
        return mistakes
    from timm.layers.patch_embed import PatchEmbed  # timm takes three seconds, and few trainings begin with this one
    from timm.models.vision_transformer import VisionTransformer

    model = student.model
    if type(model) is not VisionTransformer or type(model.patch_embed) is not PatchEmbed or model.pos_embed is None:
        problem = f"{config.vit.model!r} cannot be pre-trained here: it is no plain ViT with a table of positions"
        mistakes.append(Mistake("student.model", f"{problem}, such as vit_small_patch16_224 or deit_small_patch16_224"))
        return mistakes
    count = student.grid[0] * student.grid[1]
    if not 0 < num_visible(own, count) < count:
        problem = f"{own.mask:g} of {count} patches leaves {num_visible(own, count)} visible; wanted 1 to {count - 1}"
        mistakes.append(Mistake("pretrain.mask", problem))
    return mistakes


def address(config: TrialConfig, store: Store, cache: Path) -> Path:
    """Returns the cache file of a pre-training. Its name is a content hash of everything that determines it, and of
    nothing that follows, so that trials that differ only in what follows share it."""
    kept = {key: getattr(config, key) for key in ("cohort", "student", "pretrain", "augmentation", "threads", "seed")}
    weights = weights_of(config.vit)
    sources = weights and content_hash([weights])  # a file may be replaced by another one of the same name
    identity = ["pretrain", VERSION, TrialConfig(**kept).fingerprint(), sources, store.sample_ids.tolist()]
    return cache / stages.STAGES / f"{store.fingerprint}-{fingerprint(identity)}.pt"


def pretrain(
    config: TrialConfig,
    store: Store,
    rows: NDArray[np.int64],
    student: Student,
    cache: Path,
    device: torch.device,
    shared: SharedCache | None = None,
) -> float:
    """Gives a new student the weights of its pre-training, from the cache or by training it. Returns the seconds that
    it took, including earlier attempts, or 0 if it is in the cache.

    One process of a machine trains, and the others wait for it. It saves its state every `config.checkpoint_seconds`,
    and the next attempt continues from there with the same numbers.

    Args:
        rows: positions of the training samples in the store, labelled or not; labels are never read.

    Raises:
        ConfigError: a file in the cache is damaged, or cannot be locked.
        DivergedError: the loss is no longer finite.
    """
    path, no_objectives = address(config, store, cache), nn.ModuleDict()
    if stages.recall([path], student, no_objectives, shared):  # a finished cache may be read-only: no lock before this
        return 0.0
    with locked(path, ConfigError.at):
        if stages.recall([path], student, no_objectives, shared):
            return 0.0
        seconds = _train(config, store, rows, student, device, path)
        stages.keep(path, [STAGE], student, no_objectives, shared)
        _begun(path).unlink(missing_ok=True)
    return seconds


def seconds_per_image(of: stages.Run) -> float:
    """Returns the seconds that an epoch of the pre-training of a run takes for each training sample. The student of the
    run is unchanged."""
    run = _Run(of.config, of.store, of.rows, deepcopy(of.student), of.device)
    run.epoch(0, at_most=1)  # allocates the state of the optimiser and lets libraries choose kernels
    started = time.perf_counter()
    num_images = run.epoch(0, at_most=TIMED_STEPS)[1]  # reads the loss, so that a GPU has ended its work
    return (time.perf_counter() - started) / num_images


class _Run:
    """The state of a pre-training: what is drawn follows from the seed and the epoch alone."""

    def __init__(
        self, config: TrialConfig, store: Store, rows: NDArray[np.int64], student: Student, device: torch.device
    ) -> None:
        assert config.pretrain is not None
        self.own, self.seed, self.device = config.pretrain, config.seed, device
        reads = (IMAGE, *self.own.views)
        stacked = config.model_copy(update={"student": config.vit.model_copy(update={"reads": reads})})
        self.samples, self.images = TrainingSamples(stacked, store, rows, device), len(reads)
        with fit.seeded(config.seed, "pretrain"):
            self.network = MaskedAutoencoder(student, len(reads), self.own).to(device)
        self.optimizer = fit.optimizer_for(self.network, nn.Module(), self.own.lr, WEIGHT_DECAY, fused=True)
        self.steps_per_epoch = -(-len(rows) // self.own.batch_size)

    def epoch(self, epoch: int, at_most: int | None = None) -> tuple[float, int]:
        """Trains an epoch, or its first `at_most` steps. Returns the mean loss and the number of images."""
        size, step, losses, num_images = self.own.batch_size, epoch * self.steps_per_epoch, list[Tensor](), 0
        order, views, masks = (
            fit.generator_for(self.seed, f"pretrain-{purpose}", epoch) for purpose in ("order", "views", "masks")
        )
        self.network.train()
        with fit.seeded(self.seed, "pretrain-epoch", epoch):  # drop path uses the global generator
            for inputs in self.samples.inputs(size, order, views):
                if len(losses) == at_most:
                    break
                rate = fit.learning_rate(step, self.own.epochs * self.steps_per_epoch, self.own.lr, WARMUP, 0.0)
                fit.set_learning_rate(self.optimizer, rate)
                image_BVCHW = self.samples.batch(inputs)[0].image_BCHW.unflatten(1, (self.images, -1))
                drawn = draw_masks(len(image_BVCHW), self.images, self.network.num_patches, self.own, masks)
                with fit.autocast(self.device):
                    loss = self.network(image_BVCHW, drawn.to(self.device))
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(fit.parameters_of(self.optimizer), CLIP_NORM)
                self.optimizer.step()
                losses.append(loss.detach())
                step, num_images = step + 1, num_images + len(image_BVCHW)
        return torch.stack(losses).mean().item(), num_images


def _train(
    config: TrialConfig, store: Store, rows: NDArray[np.int64], student: Student, device: torch.device, path: Path
) -> float:
    """Trains all epochs, or those after the last that an interrupted attempt has saved. Returns the seconds of all."""
    run = _Run(config, store, rows, student, device)
    first, seconds, loss = _resume(run, _begun(path))
    saved = time.monotonic()
    for epoch in command.progress_bar(range(first, run.own.epochs), "pre-training"):
        started = time.perf_counter()
        loss, _ = run.epoch(epoch)
        if not np.isfinite(loss):
            raise DivergedError(f"the loss of the pre-training is {loss} in epoch {epoch + 1}: lower pretrain.lr")
        seconds += time.perf_counter() - started
        if time.monotonic() - saved >= config.checkpoint_seconds:
            state: dict[str, Any] = {"network": run.network.state_dict(), "optimizer": run.optimizer.state_dict()}
            partial = path.with_name(f"{path.name}.partial")  # the lock is held, so that one name is enough
            partial.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state | {stages.ADDRESS: path.stem, "place": (epoch + 1, seconds, loss)}, partial)
            os.replace(partial, _begun(path))
            saved = time.monotonic()
    run.network.hand_over()
    ended = f"pre-training ended with epoch {run.own.epochs}, loss {loss:.3f}, {seconds:.1f} s"
    print(ended, file=sys.stderr)
    return seconds


def _begun(path: Path) -> Path:
    """Returns the file in which an interrupted pre-training keeps its state."""
    return path.with_name(f"{path.stem}.begun.partial")


def _resume(run: _Run, begun: Path) -> tuple[int, float, float]:
    """Loads the state of an interrupted attempt. Returns its number of epochs, seconds and last loss; 0, 0.0 and NaN if
    there is none."""
    if not begun.exists():
        return 0, 0.0, np.nan
    with stages.reading(begun, "this pre-training", "it begins again"):
        require_whole_archive(begun)
        state = torch.load(begun, map_location=run.device, weights_only=True)
        if state[stages.ADDRESS] != begun.name.partition(".")[0]:
            raise DamagedError(f"it belongs to {state[stages.ADDRESS]}")
        run.network.load_state_dict(state["network"])
        fit.load_optimizer(run.optimizer, state["optimizer"])
        epoch, seconds, loss = state["place"]
    return epoch, seconds, loss
