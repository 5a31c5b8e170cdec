"""The image teacher: a vision transformer on a further image of each sample, or on the student's image."""

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
from mmpkd.teachers.teacher import StudentSize, Teacher
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
    # Sizes and weights, as for a student. A size that is left out is that of the student; with a named `model` or with
    # pretrained weights, it is the size of that model.
    network: NetworkConfig = NetworkConfig()
    augmentation: AugmentationConfig = AugmentationConfig()  # only in its own training; outputs are for whole images
    lr: Annotated[float, Field(gt=0)] = 5e-4


class Image(Teacher):
    """A timm ViT that reads the superior modality and is trained like a student.

    Its outputs are for images as they are stored, so they are cached, even if it reads the student's own image.
    Embedding: the vector from which the logits are computed. Hidden: the CLS token after each block. Map: the attention
    of the CLS token in the last block, averaged over heads, restricted to the patches. There are no 3-D networks: teach
    from the slices of a volume, or from features computed from it, with `tabular`.
    """

    Params = ImageParams
    VERSION = 3  # since timm determines which weights do not decay
    LEAKAGE_REMEDY = "Check whether its view reveals the label by a mark on it or by its site, or use another view"

    def __init__(self, params: ImageParams, facts: Facts) -> None:
        self.params = params
        self.facts = facts

    @staticmethod
    def check(params: ImageParams, facts: Facts) -> list[Mistake]:
        """Returns what is wrong with the requested view and network, under paths relative to `params`."""
        mistakes = check_view(params.view, facts)
        try:
            _network(params, facts, empty=True)
        except ConfigError as error:  # its messages name the student
            mistakes += [_own(mistake) for mistake in error.mistakes]
        return mistakes

    @staticmethod
    def offers(params: ImageParams, facts: Facts) -> Offer:
        depth = _network(params, facts, empty=True).depth
        return Offer(frozenset({"logits", "embedding", "hidden", "map", "head"}), depth)

    @staticmethod
    def sizes(params: ImageParams, student: StudentSize) -> dict[str, Any]:
        """Returns `network` with the student's model and sizes filled in where the configuration leaves them out."""
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
        changes = announced(params.network, facts.image_size, facts.channels)
        return [f"has pretrained weights: {'; '.join(changes)}"] if changes else []

    @staticmethod
    def sources(params: ImageParams) -> dict[str, str]:
        weights = weights_of(params.network)
        return {} if weights is None else {"weights": content_hash([weights])}

    @one_thread()
    def fit(self, store: Store, rows: NDArray[np.int64]) -> None:
        """Fits to the samples at `rows`.

        Raises:
            TeacherError: a task has a single class among these samples, the pretrained weights do not fit, or the loss
                diverges.
        """
        target_NK, known_NK = store.target_NK[rows], store.known_NK[rows]
        require_classes(self.facts.tasks, target_NK, known_NK)
        params, pixels_NCHW = self.params, self._pixels(store)
        try:
            with seeded(params.seed, "teacher-image"):
                self.network = _network(params, self.facts).to(device_of_fits())
        except ConfigError as error:  # the content of the weights is read here for the first time
            raise TeacherError("; ".join(str(_own(mistake)) for mistake in error.mistakes)) from None
        draws = generator_for(params.seed, "teacher-views")

        def forward(chosen: Tensor) -> Tensor:
            image_BCHW = images_on(device_of_fits(), pixels_NCHW[rows[chosen.numpy()]])
            view = draw_views(len(chosen), self.facts.image_size, params.augmentation, draws)
            is_student_image = params.view is None
            box_B4 = torch.from_numpy(store.content_box_N4[rows[chosen.numpy()]]) if is_student_image else None
            output: StudentOutput = self.network(apply_light(apply_view(image_BCHW, view), view, box_B4))
            return output.logits_BK

        descend(self.network, forward, target_NK, known_NK, self.facts.tasks, params, params.lr)

    @one_thread()
    def outputs(self, store: Store, rows: NDArray[np.int64]) -> TeacherOutput:
        """Returns logits (n, K), embedding and hidden (n, D), map (n, h, w), float32, of the samples at `rows`."""
        pixels_NCHW, layers = self._pixels(store), range(self.network.depth)
        batches: list[list[Tensor]] = []
        for start in range(0, len(rows), self.params.batch_size):
            image_BCHW = images_on(device_of_fits(), pixels_NCHW[rows[start : start + self.params.batch_size]])
            with torch.inference_mode(), autocast(image_BCHW.device):
                output = self.network(image_BCHW, layers, layers[-1:])
            map_BP = output.query_attention_BAN[layers[-1]][:, :, output.num_prefix :].float().mean(dim=1)
            map_BP = map_BP / map_BP.sum(dim=1, keepdim=True).clamp(min=1e-30)
            hidden = [output.hidden_BND[layer][:, 0] for layer in layers]
            parts = [output.logits_BK, output.embedding_BD, map_BP.unflatten(1, output.grid), *hidden]
            batches.append([part.float().cpu() for part in parts])
        logits, embedding, maps, *hidden = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return TeacherOutput(logits, embedding, dict(enumerate(hidden)), maps)

    def head(self) -> nn.Linear:
        classifier: nn.Linear = self.network.model.get_classifier()
        return classifier

    def _pixels(self, store: Store) -> NDArray[np.uint8]:
        return store.image_NCHW if self.params.view is None else store.view(self.params.view)


def check_view(view: str | None, facts: Facts) -> list[Mistake]:
    """Returns what is wrong with a teacher that reads this further image, under the path `view`."""
    if view is None or view in facts.views:
        return []
    hint = near(view, facts.views) or " (it has none; leave view out to use the student's own image)"
    return [Mistake("view", f"the cohort has no further image {view!r}{hint}")]


def _network(params: ImageParams, facts: Facts, *, empty: bool = False) -> Student:
    num_logits = facts.tasks[-1].columns.stop
    return build_student(params.network, facts.image_size, facts.channels, num_logits, empty=empty)


def _own(mistake: Mistake) -> Mistake:
    """Returns a mistake in this teacher's network in the words of the teacher's configuration.

    The network is checked as if it were a student. So the mistake names parameters of a student, and these paths and
    names are replaced by those of the teacher's own parameters.
    """
    keys = "pretrained|weights_heads|weights|num_heads|model"
    path, problem = mistake.path, re.sub(rf"(?<!/)student\.({keys})", r"network.\1", mistake.problem)
    problem = problem.replace("the student's", "its")
    if path.startswith("student"):
        return Mistake(path.replace("student", "network", 1), problem)
    return Mistake("network", f"{path}: {problem}")
