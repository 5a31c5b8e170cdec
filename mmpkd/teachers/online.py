"""Teachers that see the student's view: their weights are cached, and they are asked at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmpkd.augment import View, apply_view
from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig, validate
from mmpkd.fit import autocast, seeded
from mmpkd.teachers.cache import MEND, NUM_FOLDS, fit_and_predict, fit_or_load
from mmpkd.teachers.controls import dealt_within
from mmpkd.teachers.fused import Fused, FusedParams, network_of
from mmpkd.teachers.fusion import Fusion
from mmpkd.teachers.teacher import Teacher
from mmpkd.teachers.training import images_on
from mmpkd.types import Needs, TeacherError, TeacherOutput

NETWORK = "network."  # before the names of its weights, beside which lie:
ROWS, CELLS = "rows", "cells"
OFFSETS = "offsets.npy"  # of the fold models' logits


@dataclass(frozen=True)
class Model:
    """One fitted network, and what it is given of the samples that it answers about, beside their images."""

    network: Fusion
    row_M: Tensor  # their positions in the store, ascending
    cell_MV: Tensor  # their privileged columns, as it has them encoded

    def to(self, device: torch.device) -> Model:
        return Model(self.network.to(device), self.row_M.to(device), self.cell_MV.to(device))


@dataclass(frozen=True)
class Online:
    """A teacher that is asked about the very view that the student sees; frozen, and no gradient reaches it.

    As of a cached teacher, the logits of a training sample come from the model that saw none of its
    patient's, those of a validation sample and every embedding from the one fitted to all training patients.
    """

    models: Sequence[Model]  # one a fold, then that of all training patients
    model_N: Tensor  # which of them gives the logits of a sample; -1: it is not asked about this one
    source_N: Tensor  # whose privileged inputs a sample is given: its own
    view_NCHW: NDArray[np.uint8] | None  # the further image of each sample
    width: int  # of the embedding
    quality: Mapping[str, float]
    seconds: float  # what fitting cost, reported apart from the trials
    address: str  # content hash of all that decides the answers
    head: tuple[Tensor, Tensor] | None = None  # a layer norm stands between the embedding and its head
    fields: frozenset[str] = field(default=frozenset({"logits", "embedding"}))

    @torch.no_grad()
    def at(self, rows_B: Tensor, image_BCHW: Tensor, view: View | None = None) -> TeacherOutput:
        """Of some samples, given their images as the student sees them, and the view that these are of."""
        source_B, model_B = self.source_N[rows_B], self.model_N[rows_B]
        inputs = {"image": image_BCHW}
        if self.view_NCHW is not None:
            further_BCHW = images_on(image_BCHW.device, self.view_NCHW[source_B.cpu().numpy()])
            inputs["view"] = further_BCHW if view is None else apply_view(further_BCHW, view)

        def ask(model: Model, chosen: Tensor) -> tuple[Tensor, Tensor]:
            cell_BV = model.cell_MV[torch.searchsorted(model.row_M, source_B[chosen])]
            images = {name: values[chosen] for name, values in inputs.items()}
            with autocast(image_BCHW.device):
                logits, embedding = model.network(images | {"table": cell_BV})
            return logits.float(), embedding.float()

        logits_BK = embedding_BD = None
        if "logits" in self.fields:
            logits_BK = image_BCHW.new_full((len(rows_B), self.models[-1].network.head.out_features), torch.nan)
            for index, model in enumerate(self.models):
                if len(chosen := (model_B == index).nonzero()[:, 0]):
                    logits_BK[chosen] = ask(model, chosen)[0]
        if "embedding" in self.fields:
            embedding_BD = image_BCHW.new_full((len(rows_B), self.width), torch.nan)
            if len(chosen := (model_B >= 0).nonzero()[:, 0]):
                embedding_BD[chosen] = ask(self.models[-1], chosen)[1]
        return TeacherOutput(logits_BK, embedding_BD)

    def only(self, needs: Needs) -> Online:
        """What is needed, so that nothing else is computed."""
        return replace(self, fields=self.fields & needs.teacher)

    def to(self, device: torch.device) -> Online:
        models = [model.to(device) for model in self.models]
        return replace(self, models=models, model_N=self.model_N.to(device), source_N=self.source_N.to(device))

    def shuffled(self, store: Store, fold: int, seed: int) -> Online:
        """Negative control: the privileged inputs of training samples, dealt anew within a fold by
        `dealt_within`; the image stays the student's own. What is left of a gain is not privileged knowledge.

        Of the same fold, since the other folds' models have learnt those inputs with their labels.
        """
        train = store.rows("train", fold)
        source = dealt_within(self.model_N[torch.from_numpy(train)].numpy(), store, train, seed)
        return replace(self, source_N=torch.from_numpy(source))


def online(config: TeacherConfig, store: Store, fold: int, cache: Path, name: str = "") -> Online:
    """A teacher that sees the student's view, from the cache, fitted first if need be; see `fit_or_load`.

    Args:
        name: what the user calls it; its kind by default.

    Raises:
        TeacherError: the teacher cannot be fitted to these samples.
    """
    params = validate(FusedParams, config.params)

    def fill(teacher: Teacher, folder: Path) -> dict[str, NDArray[np.float32]]:
        assert isinstance(teacher, Fused), "the only kind that sees the view"

        def keep(index: int, rows: NDArray[np.int64]) -> None:
            rows = np.sort(rows)
            content = {f"{NETWORK}{key}": values for key, values in teacher.network.state_dict().items()}
            content |= {ROWS: torch.from_numpy(rows), CELLS: teacher.cells(store, rows)}
            save_file({key: values.contiguous().cpu() for key, values in content.items()}, _file(folder, index))

        arrays, offset_FK = fit_and_predict(teacher, store, fold, params.seed, name or config.kind, keep)
        np.save(folder / OFFSETS, offset_FK)
        return arrays

    folder, manifest = fit_or_load(config, store, fold, cache, name or config.kind, fill)
    models = []
    for index in range(NUM_FOLDS + 1):
        try:
            content, offset_FK = load_file(_file(folder, index)), np.load(folder / OFFSETS)
        except (FileNotFoundError, ValueError, EOFError, SafetensorError) as error:
            told = f"{folder} is damaged ({type(error).__name__}); {MEND}"
            raise TeacherError(f"teacher {name or config.kind!r}: {told}") from error
        except OSError as error:
            told = f"{folder} cannot be read ({error.strerror or error})"
            raise TeacherError(f"teacher {name or config.kind!r}: {told}") from error
        weights = {key.removeprefix(NETWORK): values for key, values in content.items() if key.startswith(NETWORK)}
        if index < NUM_FOLDS:
            weights["head.bias"] = weights["head.bias"] + torch.from_numpy(offset_FK[index])
        with torch.device("meta"):  # nothing is drawn
            network = network_of(params, store.facts, weights.get("readers.table.column_V", torch.empty(0)))
        network.load_state_dict(weights, assign=True)
        models.append(Model(network.eval().requires_grad_(False), content[ROWS], content[CELLS]))
    return _together(models, params, store, manifest["quality"], manifest["seconds"], folder.name)


def untaught(config: TeacherConfig, store: Store, fold: int) -> Online:
    """What `online` gives, of the same cost a step, without a fit or a privileged column; for a probe."""
    params = validate(FusedParams, config.params)
    num_columns = len(Fused(params, store.facts).encoder.columns)
    column_V = torch.arange(num_columns).repeat_interleave(2)
    train, val = store.rows("train", fold), store.rows("val", fold)
    models = []
    for rows in [*(train[index::NUM_FOLDS] for index in range(NUM_FOLDS)), np.union1d(train, val)]:
        with seeded(0, "untaught"):
            network = network_of(params, store.facts, column_V).eval().requires_grad_(False)
            models.append(Model(network, torch.from_numpy(rows.copy()), torch.rand(len(rows), len(column_V))))
    return _together(models, params, store, {}, 0.0, "")


def _together(
    models: Sequence[Model],
    params: FusedParams,
    store: Store,
    quality: Mapping[str, float],
    seconds: float,
    address: str,
) -> Online:
    model_N = torch.full((len(store.sample_ids),), -1)
    for index in reversed(range(len(models))):  # the model of a sample's fold goes before that of all
        model_N[models[index].row_M] = index
    view_NCHW = None if params.view is None else store.view(params.view)
    return Online(models, model_N, torch.arange(len(model_N)), view_NCHW, params.dim, quality, seconds, address)


def _file(folder: Path, index: int) -> Path:
    return folder / f"model-{index}.safetensors"
