"""Teachers that see the student's view: their weights are cached, and they run at each step of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmpkd.augment import View, apply_view
from mmpkd.cohort.store import Store
from mmpkd.fit import autocast, seeded
from mmpkd.teachers.cache import REFIT, fit_or_load
from mmpkd.teachers.controls import permute_between_patients
from mmpkd.teachers.fitting import NUM_FOLDS, fit_and_predict
from mmpkd.teachers.teacher import ResolvedTeacher, Teacher, ViewTeacher
from mmpkd.teachers.training import images_on
from mmpkd.types import Needs, SharedCache, TeacherError, TeacherOutput

NETWORK = "network."  # prefix of the names of weights in a file; the names of the file's other content follow
ROWS, TABLE = "rows", "cells"
OFFSETS = "offsets.npy"  # what is added to the logits of the fold models


@dataclass(frozen=True)
class Model:
    """One fitted network, with the samples that it serves and the table rows that it reads for them."""

    network: nn.Module
    row_M: Tensor  # positions of the samples in the store, ascending
    table_MV: Tensor  # the rows of `ViewTeacher.table`

    def to(self, device: torch.device) -> Model:
        return Model(self.network.to(device), self.row_M.to(device), self.table_MV.to(device))


@dataclass(frozen=True)
class Online:
    """A fitted teacher that sees the same view as the student. It is frozen, and no gradient reaches it.

    As with a cached teacher, the logits of a training sample come from the model that saw no sample of the same
    patient; the logits of a validation sample and every embedding come from the model of all training patients.
    """

    models: Sequence[Model]  # one for each fold, then the model of all training patients
    model_N: Tensor  # index of the model that gives the logits of a sample; -1: the teacher has no output for it
    source_N: Tensor  # position of the sample whose privileged inputs are used: the sample itself
    view_NCHW: NDArray[np.uint8] | None  # the further image of each sample
    num_logits: int
    width: int  # width of the embedding
    quality: Mapping[str, float]
    seconds: float  # time of fitting; reported separately from the trials
    address: str  # content hash of everything that determines the outputs
    fields: frozenset[str]  # which of `logits` and `embedding` are computed
    # No head is offered, because other layers may lie between embedding and logits.
    head: tuple[Tensor, Tensor] | None = None
    recordable = False  # each model runs on the samples of its fold, and how many these are differs between batches

    @torch.no_grad()
    def at(self, rows_B: Tensor, image_BCHW: Tensor, view: View | None = None) -> TeacherOutput:
        """Returns the outputs of some samples.

        Args:
            image_BCHW: the images of these samples as the student sees them.
            view: the view that these images show; None for whole images.
        """
        source_B, model_B = self.source_N[rows_B], self.model_N[rows_B]
        inputs = {"image": image_BCHW}
        if self.view_NCHW is not None:
            further_BCHW = images_on(image_BCHW.device, self.view_NCHW[source_B.cpu().numpy()])
            inputs["view"] = further_BCHW if view is None else apply_view(further_BCHW, view)

        def predict(model: Model, chosen: Tensor) -> tuple[Tensor, Tensor]:
            table_BV = model.table_MV[torch.searchsorted(model.row_M, source_B[chosen])]
            images = {name: values[chosen] for name, values in inputs.items()}
            with autocast(image_BCHW.device):
                logits, embedding = model.network(images | {"table": table_BV})
            return logits.float(), embedding.float()

        logits_BK = embedding_BD = None
        if "logits" in self.fields:
            logits_BK = image_BCHW.new_full((len(rows_B), self.num_logits), torch.nan)
            for index, model in enumerate(self.models):
                if len(chosen := (model_B == index).nonzero()[:, 0]):
                    logits_BK[chosen] = predict(model, chosen)[0]
        if "embedding" in self.fields:
            embedding_BD = image_BCHW.new_full((len(rows_B), self.width), torch.nan)
            if len(chosen := (model_B >= 0).nonzero()[:, 0]):
                embedding_BD[chosen] = predict(self.models[-1], chosen)[1]
        return TeacherOutput(logits_BK, embedding_BD)

    def only(self, needs: Needs) -> Online:
        """Returns the same teacher, restricted to computing only the needed outputs."""
        return replace(self, fields=self.fields & needs.teacher)

    def to(self, device: torch.device) -> Online:
        models = [model.to(device) for model in self.models]
        return replace(self, models=models, model_N=self.model_N.to(device), source_N=self.source_N.to(device))

    def shuffled(self, store: Store, fold: int, seed: int) -> Online:
        """Returns the negative control: training samples keep the student's image, but exchange their privileged inputs
        within each fold by `permute_between_patients`. A gain that remains does not come from privileged knowledge.

        Inputs stay within a fold, because the models of the other folds have seen them together with their labels.
        """
        train = store.rows("train", fold)
        source = permute_between_patients(self.model_N[torch.from_numpy(train)].numpy(), store, train, seed)
        return replace(self, source_N=torch.from_numpy(source))


def online(
    teacher: ResolvedTeacher,
    store: Store,
    fold: int,
    cache: Path,
    name: str = "",
    shared: SharedCache | None = None,
) -> Online:
    """Returns a teacher that sees the student's view, from the cache, and fits it first if necessary.

    Args:
        name: the user's name of the teacher; its kind by default.

    Raises:
        TeacherError: the teacher cannot be fitted to these samples, or its folder is damaged.
    """
    kind, params, name = cast(type[ViewTeacher], teacher.teacher), teacher.params, name or teacher.kind

    def fill(instance: Teacher, folder: Path) -> dict[str, NDArray[np.float32]]:
        fitted = cast(ViewTeacher, instance)

        def save(index: int, rows: NDArray[np.int64]) -> None:
            rows = np.sort(rows)
            content = {f"{NETWORK}{key}": values for key, values in fitted.network.state_dict().items()}
            content |= {ROWS: torch.from_numpy(rows), TABLE: fitted.table(store, rows)}
            save_file({key: values.contiguous().cpu() for key, values in content.items()}, _file(folder, index))

        arrays, offset_FK = fit_and_predict(instance, store, fold, name, save)
        np.save(folder / OFFSETS, offset_FK)
        return arrays

    folder, manifest = fit_or_load(teacher, store, fold, cache, name, fill, shared)
    models = []
    for index in range(NUM_FOLDS + 1):
        try:
            content, offset_FK = load_file(_file(folder, index)), np.load(folder / OFFSETS)
        except (FileNotFoundError, ValueError, EOFError, SafetensorError) as error:
            raise TeacherError(f"teacher {name!r}: {folder} is damaged ({type(error).__name__}); {REFIT}") from error
        except OSError as error:
            raise TeacherError(f"teacher {name!r}: {folder} cannot be read ({error.strerror or error})") from error
        weights = {key.removeprefix(NETWORK): values for key, values in content.items() if key.startswith(NETWORK)}
        if index < NUM_FOLDS:
            weights["head.bias"] = weights["head.bias"] + torch.from_numpy(offset_FK[index])
        with torch.device("meta"):  # allocates and draws nothing
            network = kind.network_for(params, store.facts, weights)
        network.load_state_dict(weights, assign=True)
        models.append(Model(network.eval().requires_grad_(False), content[ROWS], content[TABLE]))
    return _assemble(models, teacher, store, manifest["quality"], manifest["seconds"], folder.name)


def stand_in(teacher: ResolvedTeacher, store: Store, fold: int) -> Online:
    """Returns an unfitted teacher that replaces the teacher of `online` in a probe, and costs as much per step."""
    kind = cast(type[ViewTeacher], teacher.teacher)
    train, val = store.rows("train", fold), store.rows("val", fold)
    models = []
    for rows in [*(train[index::NUM_FOLDS] for index in range(NUM_FOLDS)), np.union1d(train, val)]:
        with seeded(0, "untaught"):
            network, table_width = kind.untrained(teacher.params, store.facts)
            network = network.eval().requires_grad_(False)
            models.append(Model(network, torch.from_numpy(rows.copy()), torch.rand(len(rows), table_width)))
    return _assemble(models, teacher, store, {}, 0.0, "")


def _assemble(
    models: Sequence[Model],
    teacher: ResolvedTeacher,
    store: Store,
    quality: Mapping[str, float],
    seconds: float,
    address: str,
) -> Online:
    """Returns a teacher that consists of these models: one for each fold, then the model of all training patients."""
    model_N = torch.full((len(store.sample_ids),), -1)
    for index in reversed(range(len(models))):  # the model of a sample's fold overrides the model of all patients
        model_N[models[index].row_M] = index
    name = cast(type[ViewTeacher], teacher.teacher).further_view(teacher.params)
    view_NCHW = None if name is None else store.view(name)
    head: Any = models[-1].network.head
    fields = teacher.offers(store.facts).fields
    source_N = torch.arange(len(model_N))
    return Online(
        models, model_N, source_N, view_NCHW, head.out_features, head.in_features, quality, seconds, address, fields
    )


def _file(folder: Path, index: int) -> Path:
    return folder / f"model-{index}.safetensors"
