"""The image teacher: a vision transformer of its own, on a further image of each sample or on the student's."""

from __future__ import annotations

import re
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from mmpkd.augment import apply_light, apply_view, draw_views
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.store import Store
from mmpkd.config import AugmentationConfig, NetworkConfig
from mmpkd.fit import autocast, generator_for, seeded
from mmpkd.near_names import near
from mmpkd.student import Student, announced, build_student
from mmpkd.teachers.teacher import Size, Teacher
from mmpkd.teachers.training import (
    EpochsParams,
    content_hash,
    descend,
    device_of_fits,
    images_on,
    millions,
    one_thread,
    require_classes,
)
from mmpkd.types import ConfigError, Mistake, Offer, StudentOutput, TeacherError, TeacherOutput
from mmpkd.weights import weights_of

SIZES = {"model", "patch_size", "embed_dim", "depth", "num_heads"}


class ImageParams(EpochsParams):
    view: str | None = None  # one of the cohort's further images; None: the image that the student sees
    # Its sizes and weights, as a student's. What is left out is the student's own size; of a named `model`, or of
    # pretrained weights, it is the model's.
    network: NetworkConfig = NetworkConfig()
    augmentation: AugmentationConfig = AugmentationConfig()  # of its own training; it answers about whole images
    lr: Annotated[float, Field(gt=0)] = 5e-4


class Image(Teacher):
    """A timm ViT, trained as a student is, that reads the superior modality.

    It answers about images as they are stored, so it is cached, even where `view` is the student's own
    image. Embedding: what the logits are read from; hidden: the CLS token after each block; map: where
    its CLS token looks in the last block, mean over heads, over the patches alone. 3-D networks are not
    offered: teach from a volume by its slices, or by features computed from it, with `tabular`.
    """

    Params = ImageParams
    VERSION = 3  # since timm says what does not decay
    sees_view = False

    def __init__(self, params: ImageParams, facts: Facts) -> None:
        self.params = params
        self.facts = facts

    @staticmethod
    def check(params: ImageParams, facts: Facts) -> list[Mistake]:
        """What is wrong with the view and the network asked for, under paths relative to `params`."""
        mistakes = check_view(params.view, facts)
        try:
            _network(params, facts, empty=True)
        except ConfigError as error:  # in a student's words
            mistakes += [_own(mistake) for mistake in error.mistakes]
        return mistakes

    @staticmethod
    def offers(params: ImageParams, facts: Facts) -> Offer:
        depth = _network(params, facts, empty=True).depth
        return Offer(frozenset({"logits", "embedding", "hidden", "map", "head"}), depth)

    @staticmethod
    def sized(params: ImageParams, student: Size) -> dict[str, Any]:
        """The student's model and sizes, under those that are given."""
        own = params.network
        if "model" in own.model_fields_set or own.pretrained or own.weights:
            return {}
        sizes = student.network.model_dump(include=SIZES, exclude_none=True)
        return {"network": sizes | own.model_dump(exclude_unset=True)}

    @staticmethod
    def outline(params: ImageParams, facts: Facts) -> str:
        network, own = _network(params, facts, empty=True), params.network
        patch, size = network.model.patch_embed.patch_size[0], facts.image_size
        source, view = "pretrained" if own.pretrained else "from scratch", params.view or "the student's image"
        return (
            f"{own.model} {source}, {network.depth} blocks x {network.dim}, patch {patch}, "
            f"{size} x {size} px of {view}, {millions(network)}"
        )

    @staticmethod
    def caveats(params: ImageParams, facts: Facts) -> list[str]:
        told = announced(params.network, facts.image_size, facts.channels)
        return [f"has pretrained weights: {'; '.join(told)}"] if told else []

    @staticmethod
    def sources(params: ImageParams) -> dict[str, str]:
        weights = weights_of(params.network)
        return {} if weights is None else {"weights": content_hash([weights])}

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Fit to the samples at `rows`.

        Raises:
            TeacherError: a task has a single class among them; its weights do not fit; the loss diverges.
        """
        target_NK, known_NK = store.target_NK[rows], store.known_NK[rows]
        require_classes(self.facts.tasks, target_NK, known_NK)
        params, pixels_NCHW = self.params, self._pixels(store)
        try:
            with seeded(params.seed, "teacher-image"):
                self.network = _network(params, self.facts).to(device_of_fits())
        except ConfigError as error:  # of weights, whose content nobody looked at before
            raise TeacherError("; ".join(str(_own(mistake)) for mistake in error.mistakes)) from None
        draws = generator_for(params.seed, "teacher-views")

        def forward(chosen: Tensor) -> Tensor:
            image_BCHW = images_on(device_of_fits(), pixels_NCHW[rows[chosen.numpy()]])
            view = draw_views(len(chosen), self.facts.image_size, params.augmentation, draws)
            own = params.view is None
            box_B4 = torch.from_numpy(store.content_box_N4[rows[chosen.numpy()]]) if own else None
            said: StudentOutput = self.network(apply_light(apply_view(image_BCHW, view), view, box_B4))
            return said.logits_BK

        descend(self.network, forward, target_NK, known_NK, self.facts.tasks, params, params.lr)

    @one_thread()
    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Logits (n, K), embedding and hidden (n, D), map (n, h, w), float32, of the samples at `rows`."""
        pixels_NCHW, layers = self._pixels(store), range(self.network.depth)
        told: list[list[Tensor]] = []
        for start in range(0, len(rows), self.params.batch_size):
            image_BCHW = images_on(device_of_fits(), pixels_NCHW[rows[start : start + self.params.batch_size]])
            with torch.inference_mode(), autocast(image_BCHW.device):
                said = self.network(image_BCHW, layers, layers[-1:])
            map_BP = said.query_attention_BAN[layers[-1]][:, :, said.num_prefix :].float().mean(dim=1)
            map_BP = map_BP / map_BP.sum(dim=1, keepdim=True).clamp(min=1e-30)
            hidden = [said.hidden_BND[layer][:, 0] for layer in layers]
            parts = [said.logits_BK, said.embedding_BD, map_BP.unflatten(1, said.grid), *hidden]
            told.append([part.float().cpu() for part in parts])
        logits, embedding, maps, *hidden = (torch.cat(parts) for parts in zip(*told, strict=True))
        return TeacherOutput(logits, embedding, dict(enumerate(hidden)), maps)

    def head(self) -> nn.Linear:
        classifier: nn.Linear = self.network.model.get_classifier()
        return classifier

    def _pixels(self, store: Store) -> NDArray[np.uint8]:
        return store.image_NCHW if self.params.view is None else store.view(self.params.view)


def check_view(view: str | None, facts: Facts) -> list[Mistake]:
    """What is wrong with teaching from this further image, under the path `view`."""
    if view is None or view in facts.views:
        return []
    hint = near(view, facts.views) or " (it has none; leave view out for the student's own image)"
    return [Mistake("view", f"the cohort has no further image {view!r}{hint}")]


def _network(params: ImageParams, facts: Facts, *, empty: bool = False) -> Student:
    num_logits = facts.tasks[-1].columns.stop
    return build_student(params.network, facts.image_size, facts.channels, num_logits, empty=empty)


def _own(mistake: Mistake) -> Mistake:
    """A student's mistake in the words of this teacher's parameters."""
    keys = "pretrained|weights_heads|weights|num_heads|model"
    path, problem = mistake.path, re.sub(rf"(?<!/)student\.({keys})", r"network.\1", mistake.problem)
    problem = problem.replace("the student's", "its")
    if path.startswith("student"):
        return Mistake(path.replace("student", "network", 1), problem)
    return Mistake("network", f"{path}: {problem}")
