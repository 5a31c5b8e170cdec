"""The fused teacher: it reads the image that the student sees together with privileged inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmpkd.augment import View, apply_light, apply_view, draw_views
from mmpkd.cohort.chosen_columns import check_columns
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.config import AugmentationConfig
from mmpkd.fit import autocast, generator_for, seeded
from mmpkd.teachers.columns import ColumnsParams, Encoder, chosen_columns
from mmpkd.teachers.fusion import Cells, Fusion, Patches
from mmpkd.teachers.image import check_view
from mmpkd.teachers.teacher import Inputs, StudentSize, ViewTeacher
from mmpkd.teachers.training import (
    EpochsParams,
    descend,
    device_of_fits,
    images_on,
    millions,
    one_thread,
    require_classes,
)
from mmpkd.types import Mistake, Offer, Positive, TeacherOutput


class FusedParams(ColumnsParams, EpochsParams):
    view: str | None = None  # one of the cohort's further images; with `columns: []` it is the only privileged input
    # Sizes that are left out follow the student: its patches, and a width and a depth no larger than its own.
    patch_size: Positive = 16  # pixels
    latents: Positive = 16
    dim: Positive = 64  # of a latent and of the embedding
    depth: Positive = 2  # passes over all modalities
    heads: Positive = 4
    augmentation: AugmentationConfig = AugmentationConfig()  # augmentation in the teacher's own training
    lr: Annotated[float, Field(gt=0)] = 1e-3

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got {self.dim} and {self.heads}")
        return self


class Fused(ViewTeacher):
    """A `Fusion` of the student's image with privileged columns, a further image, or both.

    It sees the student's view, so its outputs cannot be cached: it runs at each step of a training (`Online`), whatever
    the augmentation. A missing cell of the table is left out, and the output for a sample without any cell depends only
    on its images. Embedding: the mean of the latents. Report text is not a modality here: combine a `text` teacher with
    others in an `ensemble`.

    From the image it learns what a student can learn too, shortcuts included. A `val_auroc` far below its `auroc` is a
    sign of a shortcut.
    """

    Params = FusedParams
    VERSION = 1
    LEAKAGE_REMEDY = "Leave out the columns or the view that state it"
    network: Fusion

    def __init__(self, params: FusedParams, facts: Facts) -> None:
        self.params = params
        self.facts = facts
        self.encoder = Encoder([facts.columns[name] for name in chosen_columns(params, facts)])

    @staticmethod
    def check(params: FusedParams, facts: Facts) -> list[Mistake]:
        """Returns what is wrong with columns, view and patches, under paths relative to `params`."""
        mistakes = check_columns(params.columns or (), params.near_label, facts) + check_view(params.view, facts)
        if not mistakes and params.view is None and not chosen_columns(params, facts):
            problem = "no column and no view: without a privileged input this is an `image` teacher; name one of them"
            mistakes.append(Mistake("columns", problem))
        if facts.image_size % params.patch_size:
            problem = f"{params.patch_size} does not divide cohort.image_size, which is {facts.image_size}"
            mistakes.append(Mistake("patch_size", problem))
        return mistakes

    @staticmethod
    def offers(params: FusedParams, facts: Facts) -> Offer:
        return Offer(frozenset({"logits", "embedding"}))

    @staticmethod
    def sizes(params: FusedParams, student: StudentSize) -> dict[str, Any]:
        """Returns the student's patch size, and a width and a depth that are no larger than the student's."""
        filled = {
            "patch_size": student.patch_size,
            "dim": min(params.dim, student.dim),
            "depth": min(params.depth, student.depth),
            "heads": params.heads,
        }
        given = params.model_fields_set
        if "dim" in given or filled["dim"] % params.heads:
            filled["heads"] = params.heads if "dim" in given else student.heads
        defaults = params.model_dump()
        return {name: size for name, size in filled.items() if name not in given and size != defaults[name]}

    @staticmethod
    def inputs(params: FusedParams, facts: Facts) -> Inputs:
        return Inputs(columns=tuple(chosen_columns(params, facts)))

    @staticmethod
    def further_view(params: FusedParams) -> str | None:
        return params.view

    @staticmethod
    def network_for(params: FusedParams, facts: Facts, weights: Mapping[str, Tensor]) -> Fusion:
        return network_of(params, facts, weights.get("readers.table.column_V", torch.empty(0)))

    @staticmethod
    def untrained(params: FusedParams, facts: Facts) -> tuple[Fusion, int]:
        """Returns an untrained network that reads two encoded numbers per column, and the count of all these
        numbers."""
        column_V = torch.arange(len(chosen_columns(params, facts))).repeat_interleave(2)
        return network_of(params, facts, column_V), len(column_V)

    @staticmethod
    def outline(params: FusedParams, facts: Facts) -> str:
        columns = torch.arange(len(chosen_columns(params, facts)))  # as if one number encoded each column
        with torch.device("meta"):
            network = network_of(params, facts, columns)
        view = f" and {params.view}" if params.view else ""
        return (
            f"{params.depth} blocks x {params.dim}, {params.latents} latents, patch {params.patch_size}, "
            f"{facts.image_size} x {facts.image_size} px of the student's image{view}, {len(columns)} columns, "
            f"about {millions(network)}"
        )

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Fits to the samples at `rows`.

        Raises:
            TeacherError: a task has a single class among these samples, or the loss diverges.
        """
        target_NK, known_NK = store.target_NK[rows], store.known_NK[rows]
        require_classes(self.facts.tasks, target_NK, known_NK)
        params, column_V = self.params, torch.empty(0, dtype=torch.int64)
        if self.encoder.columns:
            self.encoder.fit(store, rows)
            column_V = torch.from_numpy(self.encoder.column_V)
        with seeded(params.seed, "teacher-fused"):
            self.network = network_of(params, self.facts, column_V).to(device_of_fits())
        table_NV = self.table(store, rows)
        draws = generator_for(params.seed, "teacher-views")

        def forward(chosen: Tensor) -> Tensor:
            view = draw_views(len(chosen), self.facts.image_size, params.augmentation, draws)
            batch = self._batch(store, rows[chosen.numpy()], table_NV[chosen], view)
            logits_BK: Tensor = self.network(batch)[0]
            return logits_BK

        descend(self.network, forward, target_NK, known_NK, self.facts.tasks, params, params.lr)

    @one_thread()
    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Returns logits (n, K) and embedding (n, D), float32, of the samples at `rows`, for whole images."""
        table_NV, batches = self.table(store, rows), []
        for chosen in torch.arange(len(rows)).split(self.params.batch_size):
            inputs = self._batch(store, rows[chosen.numpy()], table_NV[chosen], None)
            with torch.inference_mode(), autocast(device_of_fits()):
                batches.append([part.float().cpu() for part in self.network(inputs)])
        logits_NK, embedding_ND = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return TeacherOutput(logits_NK, embedding_ND)

    def table(self, store: Store, rows: NDArray[np.int64]) -> Tensor:
        """Returns the encoded columns (n, V) of the samples at `rows`, as the last fit encodes them; NaN if missing."""
        if not self.encoder.columns:
            return torch.empty(len(rows), 0)
        missing_NC = store.privileged([column.name for column in self.encoder.columns]).iloc[rows].isna().to_numpy()
        return torch.from_numpy(np.where(missing_NC[:, self.encoder.column_V], np.nan, self.encoder(store, rows)))

    def _batch(self, store: Store, rows: NDArray[np.int64], table_BV: Tensor, view: View | None) -> dict[str, Tensor]:
        """Returns a batch by modality, with `view` applied to the images."""
        device = device_of_fits()
        inputs = {"image": images_on(device, store.image_NCHW[rows])}
        if self.params.view is not None:
            inputs["view"] = images_on(device, store.view(self.params.view)[rows])
        if view is not None:
            inputs = {name: apply_view(image_BCHW, view) for name, image_BCHW in inputs.items()}
            box_B4 = torch.from_numpy(store.content_box_N4[rows])  # only the light of the student's image changes
            inputs["image"] = apply_light(inputs["image"], view, box_B4)
        return inputs | {"table": table_BV.to(device)}


def network_of(params: FusedParams, facts: Facts, column_V: Tensor) -> Fusion:
    """Returns an untrained network for a table in which V numbers encode these columns.

    Its weights are drawn by torch's global generator.
    """
    names = ["image"] if params.view is None else ["image", "view"]
    readers: dict[str, nn.Module] = {
        name: Patches(facts.channels, facts.image_size, params.patch_size, params.dim) for name in names
    }
    if len(column_V):
        readers["table"] = Cells(column_V, params.dim)
    num_logits = facts.tasks[-1].columns.stop
    return Fusion(readers, params.latents, params.dim, params.depth, params.heads, num_logits)
