"""The fused teacher: the image that the student sees, and privileged inputs beside it."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmpkd.augment import View, apply_light, apply_view, draw_views
from mmpkd.cohort.facts import Facts, check_columns
from mmpkd.cohort.store import Store
from mmpkd.config import AugmentationConfig, Positive
from mmpkd.fit import autocast, generator_for, seeded
from mmpkd.teachers.columns import ColumnsParams, Encoder, chosen_columns
from mmpkd.teachers.fusion import Cells, Fusion, Patches
from mmpkd.teachers.image import check_view
from mmpkd.teachers.teacher import Size, Teacher
from mmpkd.teachers.training import (
    EpochsParams,
    descend,
    device_of_fits,
    images_on,
    millions,
    one_thread,
    require_classes,
)
from mmpkd.types import Mistake, Offer, TeacherOutput


class FusedParams(ColumnsParams, EpochsParams):
    view: str | None = None  # one of the cohort's further images, beside the student's; `columns: []` for it alone
    # Sizes, where they are left out: the student's patches, and a width and a depth that are no larger than its own.
    patch_size: Positive = 16  # pixels
    latents: Positive = 16
    dim: Positive = 64  # of a latent, and so of the embedding
    depth: Positive = 2  # times that all modalities are gone through
    heads: Positive = 4
    augmentation: AugmentationConfig = AugmentationConfig()  # of its own training
    lr: Annotated[float, Field(gt=0)] = 1e-3

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads, got {self.dim} and {self.heads}")
        return self


class Fused(Teacher):
    """A `Fusion` of the student's image, privileged columns and a further image, in that there are any.

    It sees the student's view, so its answers cannot be cached: while a student trains it is asked at each
    step (`Online`), whatever the augmentation. A missing cell is left out, and a sample without any cell
    is answered from its images alone. Embedding: the mean of the latents. Report text is no modality here:
    combine a `text` teacher with others in an `ensemble`.

    It learns from the image what a student can learn from it too, shortcuts included: its `val_auroc`
    far below its `auroc` tells of one.
    """

    Params = FusedParams
    VERSION = 1
    sees_view = True

    def __init__(self, params: FusedParams, facts: Facts) -> None:
        self.params = params
        self.facts = facts
        self.encoder = Encoder([facts.columns[name] for name in chosen_columns(params, facts)])

    @staticmethod
    def check(params: FusedParams, facts: Facts) -> list[Mistake]:
        """What is wrong with columns, view and patches, under paths relative to `params`."""
        mistakes = check_columns(params.columns or (), params.near_label, facts) + check_view(params.view, facts)
        if not mistakes and params.view is None and not chosen_columns(params, facts):
            problem = "no column and no view: without a privileged input this is no more than an `image` teacher"
            mistakes.append(Mistake("columns", problem))
        if facts.image_size % params.patch_size:
            problem = f"{params.patch_size} does not divide cohort.image_size, which is {facts.image_size}"
            mistakes.append(Mistake("patch_size", problem))
        return mistakes

    @staticmethod
    def offers(params: FusedParams, facts: Facts) -> Offer:
        return Offer(frozenset({"logits", "embedding"}))

    @staticmethod
    def sized(params: FusedParams, student: Size) -> dict[str, Any]:
        """The student's patches, and no larger than the student."""
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
    def outline(params: FusedParams, facts: Facts) -> str:
        columns = torch.arange(len(chosen_columns(params, facts)))  # as if one number encoded each
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
        """Fit to the samples at `rows`.

        Raises:
            TeacherError: a task has a single class among them; the loss diverges.
        """
        target_NK, known_NK = store.target_NK[rows], store.known_NK[rows]
        require_classes(self.facts.tasks, target_NK, known_NK)
        params, column_V = self.params, torch.empty(0, dtype=torch.int64)
        if self.encoder.columns:
            self.encoder.fit(store, rows)
            column_V = torch.from_numpy(self.encoder.column_V)
        with seeded(params.seed, "teacher-fused"):
            self.network = network_of(params, self.facts, column_V).to(device_of_fits())
        cell_NV = self.cells(store, rows)
        draws = generator_for(params.seed, "teacher-views")

        def forward(chosen: Tensor) -> Tensor:
            view = draw_views(len(chosen), self.facts.image_size, params.augmentation, draws)
            told: tuple[Tensor, Tensor] = self.network(self._inputs(store, rows[chosen.numpy()], cell_NV[chosen], view))
            return told[0]

        descend(self.network, forward, target_NK, known_NK, self.facts.tasks, params, params.lr)

    @one_thread()
    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Logits (n, K) and embedding (n, D), float32, of the samples at `rows`, about whole images."""
        cell_NV, told = self.cells(store, rows), []
        for chosen in torch.arange(len(rows)).split(self.params.batch_size):
            inputs = self._inputs(store, rows[chosen.numpy()], cell_NV[chosen], None)
            with torch.inference_mode(), autocast(device_of_fits()):
                told.append([part.float().cpu() for part in self.network(inputs)])
        logits_NK, embedding_ND = (torch.cat(parts) for parts in zip(*told, strict=True))
        return TeacherOutput(logits_NK, embedding_ND)

    def cells(self, store: Store, rows: NDArray[np.int64]) -> Tensor:
        """The columns of the samples at `rows`, encoded as those it was fitted to have them: (n, V); NaN is missing."""
        if not self.encoder.columns:
            return torch.empty(len(rows), 0)
        missing_NC = store.privileged([column.name for column in self.encoder.columns]).iloc[rows].isna().to_numpy()
        return torch.from_numpy(np.where(missing_NC[:, self.encoder.column_V], np.nan, self.encoder(store, rows)))

    def _inputs(self, store: Store, rows: NDArray[np.int64], cell_BV: Tensor, view: View | None) -> dict[str, Tensor]:
        """A batch by modality, the images as `view` shows them."""
        device = device_of_fits()
        inputs = {"image": images_on(device, store.image_NCHW[rows])}
        if self.params.view is not None:
            inputs["view"] = images_on(device, store.view(self.params.view)[rows])
        if view is not None:
            inputs = {name: apply_view(image_BCHW, view) for name, image_BCHW in inputs.items()}
            box_B4 = torch.from_numpy(store.content_box_N4[rows])  # only the student's own image changes its light
            inputs["image"] = apply_light(inputs["image"], view, box_B4)
        return inputs | {"table": cell_BV.to(device)}


def network_of(params: FusedParams, facts: Facts, column_V: Tensor) -> Fusion:
    """An untaught network, drawn by the global generator, for a table of which V numbers are of these columns."""
    names = ["image"] if params.view is None else ["image", "view"]
    readers: dict[str, nn.Module] = {
        name: Patches(facts.channels, facts.image_size, params.patch_size, params.dim) for name in names
    }
    if len(column_V):
        readers["table"] = Cells(column_V, params.dim)
    num_logits = facts.tasks[-1].columns.stop
    return Fusion(readers, params.latents, params.dim, params.depth, params.heads, num_logits)
