"""The student: a timm ViT that returns the requested hidden layers and attention rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from mmpkd.config import NetworkConfig
from mmpkd.near_names import near
from mmpkd.types import ConfigError, StudentOutput
from mmpkd.weights import changes, require_fit, weights_of


class Student(nn.Module):
    """The student model: images in, logits out. It has no other input.

    Normalisation is part of the model, so that an exported student accepts plain images.

    Args:
        model: a timm ViT classified by its CLS token (`global_pool='token'`).
        mean, std: mean and standard deviation of pixels in [0, 1]; one value for all channels, or one per channel.
        head: module that computes logits (B, K) from the embedding (B, D); None: the model's own classifier.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def depth(self) -> int:
        return len(self.model.blocks)

    @property
    def dim(self) -> int:
        return int(self.model.num_features)

    @property
    def num_prefix(self) -> int:
        """Number of tokens before the patches: the CLS token, which is the first, and registers."""
        return int(self.model.num_prefix_tokens)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and number of columns of patches in an image of the model's size."""
        rows, columns = self.model.patch_embed.grid_size
        return rows, columns

    def forward(
        self, image_BCHW: Tensor, layers: Collection[int] = (), attention_layers: Collection[int] = ()
    ) -> StudentOutput:
        """Returns logits, and the hidden tokens and CLS attention rows of the requested blocks.

        Args:
            image_BCHW: pixels in [0, 1].
            layers: blocks whose output tokens are requested; 0 is the first.
            attention_layers: blocks whose CLS query row is requested. These blocks run unfused, since timm gives no
                access to attention otherwise; every other block keeps its fused kernel.
        """
        x_BCHW = (image_BCHW - self.mean) / self.std
        # The row is copied, since a view of it would keep the full matrix of every block in memory.
        with attention_of(self.model, attention_layers, lambda matrix: matrix[:, :, 0].clone()) as rows:
            if layers:
                x_BND, intermediates = self.model.forward_intermediates(
                    x_BCHW, indices=sorted(layers), output_fmt="NLC", return_prefix_tokens=True
                )
                hidden = {
                    layer: torch.cat([prefix, patches], dim=1)
                    for layer, (patches, prefix) in zip(sorted(layers), intermediates, strict=True)
                }
            else:
                x_BND, hidden = self.model.forward_features(x_BCHW), {}
        embedding_BD, logits_BK = self.classify(x_BND)
        return StudentOutput(
            logits_BK=logits_BK,
            embedding_BD=embedding_BD,
            hidden_BND=hidden,
            query_attention_BAN=rows,
            grid=self.grid,
            num_prefix=self.num_prefix,
        )

    def classify(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Returns embedding (B, D) and logits (B, K) of the CLS token; `x_BND` holds all tokens after the last norm."""
        embedding_BD = self.model.forward_head(x_BND, pre_logits=True)
        with torch.autocast(x_BND.device.type, enabled=False):  # bfloat16 logits tie, and ties lower the AUROC
            classifier = self.model.get_classifier()
            head = classifier if self.head is None else self.head
            logits_BK = head(embedding_BD.to(classifier.weight.dtype))
        return embedding_BD, logits_BK

    def answering(self, head: nn.Module) -> Student:
        """Returns a student that shares this network and its weights, but computes its logits with `head`."""
        other = Student(self.model, (0.0,), (1.0,), head)
        other.mean, other.std = self.mean, self.std
        return other


@contextmanager
def attention_of(model: Any, layers: Collection[int], read: Callable[[Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Context manager that collects `read(attention)` from the given blocks of a timm ViT at each forward pass in its
    body. The attention is softmax(q k / sqrt(d)), of shape (B, A, N, N).

    The attention is read by a hook on `attn_drop`, from its input, because its output has passed dropout. timm's fused
    kernel never calls `attn_drop`, so the given blocks are unfused meanwhile; timm reads `fused_attn` at every forward
    pass, so it can be changed for these blocks alone. On CUDA under bfloat16 autocast q k is bfloat16 and the softmax
    float32, by torch's own policy. Afterwards the model is unchanged.
    """
    collected: dict[int, Tensor] = {}
    handles = []
    fused = {layer: model.blocks[layer].attn.fused_attn for layer in layers}

    def collector(layer: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            collected[layer] = read(inputs[0])

        return hook

    try:
        for layer in layers:
            attention = model.blocks[layer].attn
            attention.fused_attn = False
            handles.append(attention.attn_drop.register_forward_pre_hook(collector(layer)))
        yield collected
    finally:
        for handle in handles:
            handle.remove()
        for layer, value in fused.items():
            model.blocks[layer].attn.fused_attn = value


def build_student(
    config: NetworkConfig, image_size: int, channels: int, num_logits: int, *, empty: bool = False
) -> Student:
    """Builds the student of a configuration.

    Args:
        empty: whether to build the student on the meta device, to inspect its shape without memory or weights.

    Raises:
        ConfigError: the named model is not a timm ViT with a CLS token, sizes do not fit, or weights are not on disk.
    """
    known = _model_names()
    if config.model.partition(".")[0] not in known:  # a tag after the dot names a set of weights
        raise ConfigError.at("student.model", f"timm has no model {config.model!r}{near(config.model, known)}")
    weights = weights_of(config)
    if weights is not None and not empty:
        build_student(config, image_size, channels, num_logits, empty=True)  # checks that its weights fit
    sizes = config.model_dump(include={"patch_size", "embed_dim", "depth", "num_heads", "drop_path_rate"})
    options = {key: value for key, value in sizes.items() if value is not None}
    if weights is not None and not empty:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        create: Callable[..., Any] = _outline if empty else _create_model
        with torch.device("cpu"):
            model = create(
                config.model,
                img_size=image_size,
                in_chans=channels,
                num_classes=num_logits,
                global_pool="token",  # in a pooled student, labels do not train the CLS attention
                **options,
            )
    except Exception as error:  # timm and its models raise errors of many types for sizes or weights
        reason = (str(error) or "its class token or sizes do not fit").splitlines()[0]
        if "pool" in reason:  # the model has no CLS token, or pools by attention or by means only
            raise ConfigError.at(
                "student.model",
                f"{config.model!r} has no CLS token to classify by, whose attention would be the map: {reason}",
            ) from None
        given = ", ".join(f"{key}={value}" for key, value in options.items() if key in sizes) or "its own sizes"
        source = f" and weights {weights}" if "pretrained" in options else ""
        raise ConfigError.at("student", f"{config.model!r} with {given}{source} cannot be built: {reason}") from None
    _require_fit(model, config, image_size)
    if weights is not None and empty:
        require_fit(weights, config, model, _outline, channels)
    statistics = model.pretrained_cfg if weights is not None else {"mean": (0.5,), "std": (0.25,)}
    mean, std = statistics["mean"], statistics["std"]
    if len(mean) != channels:  # grey images with RGB weights: timm sums the filters, so the mean of the three is used
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    return Student(model, tuple(mean), tuple(std))


@cache  # sorting the names takes 5 ms, and a plan builds hundreds of outlines
def _model_names() -> list[str]:
    import timm  # takes three seconds, and not every process that knows students builds one

    return timm.list_models()


def _create_model(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, **options)


@lru_cache(maxsize=64)  # a plan inspects the same few students for every branch; each takes up to a second
def _outline(name: str, **options: Any) -> Any:
    """Returns a timm model on the meta device. It is shared, and must not be changed."""
    with torch.device("meta"):
        return _create_model(name, **options)


@cache
def _shown() -> tuple[type[nn.Module], ...]:
    """Returns timm's classes of attention with a single softmax, which is passed to `attn_drop`; tests compare each
    with timm's unfused model. DiffAttention, for example, subtracts two softmaxes, so that the input of `attn_drop` is
    not a map.
    """
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.beit import Attention as BeitAttention
    from timm.models.eva import EvaAttention
    from timm.models.vision_transformer_relpos import RelPosAttention

    return (Attention, AttentionRope, EvaAttention, RelPosAttention, BeitAttention)


def _require_fit(model: Any, config: NetworkConfig, image_size: int) -> None:
    """Raises ConfigError unless a model can be a student for images of this size."""
    kinds = {type(getattr(block, "attn", block)) for block in getattr(model, "blocks", ())}
    if not kinds or not kinds.issubset(_shown()):
        made_of = ", ".join(sorted(kind.__name__ for kind in kinds.difference(_shown()))) or type(model).__name__
        known = ", ".join(dict.fromkeys(kind.__name__ for kind in _shown()))
        raise ConfigError.at(
            "student.model",
            f"{config.model!r} is not a ViT whose attention can be read: its blocks hold {made_of}, not {known}",
        )
    patch_size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if not isinstance(model.get_classifier(), nn.Linear) or not isinstance(patch_size, tuple):
        raise ConfigError.at("student.model", f"{config.model!r} is not a plain ViT with one linear classifier")
    if getattr(model, "cls_token", None) is None:
        raise ConfigError.at("student.model", f"{config.model!r} has no CLS token, whose attention would be the map")
    patch = patch_size[0]
    if image_size % patch:
        nearest = max(patch, round(image_size / patch) * patch)
        raise ConfigError.at(
            "cohort.image_size", f"{image_size} is not a multiple of the student's patch of {patch}; try {nearest}"
        )
    rows, columns = model.patch_embed.grid_size
    if image_size % rows or image_size % columns:  # a convolutional stem rounds
        raise ConfigError.at(
            "cohort.image_size", f"the student's grid of {rows} x {columns} patches does not divide {image_size} pixels"
        )


def announced(config: NetworkConfig, image_size: int, channels: int) -> list[str]:
    """Returns one sentence for each change made to pretrained weights to fit them to this image size and these
    channels."""
    if (weights := weights_of(config)) is None:
        return []
    student = build_student(config, image_size, channels, 1, empty=True)
    sentences = changes(weights, student.model, channels)
    if config.weights is not None:
        mean, std = (
            ", ".join(f"{value:.3f}" for value in values.flatten().tolist()) for values in (student.mean, student.std)
        )
        source = f"timm's values for {config.model}; check them if the weights are of another model"
        sentences.append(f"pixels are normalised by mean {mean} and standard deviation {std}, {source}")
    return sentences
