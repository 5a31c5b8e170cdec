"""What benchmarks/gpu_vlm.py measures: vision-language models of published sizes, their images and batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Model:
    """A student: its configuration, the side of its images in pixels, and the words of its vocabulary."""

    name: str
    student: Mapping[str, Any]
    image_size: int
    words: int = 151_936


def _model(name: str, size: int, vision: tuple[int, int, int, int], decoder: tuple[int, int, int, int]) -> Model:
    """Returns a model from depth, width, heads and patch of its vision, and from depth, width, heads and mlp of its
    decoder."""
    parts = {"vision": dict(zip(("depth", "width", "heads", "patch_size"), vision, strict=True))}
    parts["decoder"] = dict(zip(("depth", "width", "heads", "mlp"), decoder, strict=True))
    parts["decoder"] |= {"initializer_range": 0.02, "rope_theta": 5e6}
    family = "qwen2_vl" if "Qwen2-VL" in name else "qwen3_vl"
    return Model(name, {"model": family, "box_steps": 1000, **parts}, size)


LARGE, SMALL = "Qwen3-VL 2B", "Qwen3-VL 0.5B"
LARGE_PARTS = (24, 1024, 16, 16), (28, 2048, 16, 6144)  # Qwen3-VL-2B
SMALL_PARTS = (12, 768, 12, 16), (24, 896, 14, 4864)  # the decoder of Qwen2.5-0.5B, an image encoder as ViT-B
DEMO = {"model": "qwen3_vl", "box_steps": 12, "vision": {"patch_size": 4, "width": 32, "heads": 2}}  # of vqa_demo.yaml


@dataclass(frozen=True)
class Scale:
    """How large everything is: FULL on a GPU, QUICK on a CPU. The cells that matter most come first."""

    cells: tuple[tuple[Model, tuple[int, ...]], ...]  # with their batch sizes
    steps: tuple[int, int] = (2, 6)  # before anything is timed, and timed
    new_tokens: int = 32  # of an answer
    matmul: int = 8192


FULL = Scale(
    (
        (_model(f"{LARGE}, 224 px", 224, *LARGE_PARTS), (8, 32)),
        (_model(f"{SMALL}, 224 px", 224, *SMALL_PARTS), (8, 32)),
        (_model(f"{LARGE}, 448 px", 448, *LARGE_PARTS), (8, 32)),
        (_model(f"{SMALL}, 448 px", 448, *SMALL_PARTS), (8, 32)),
        (Model("demo, 48 px", DEMO, 48, words=0), (48,)),
        (_model("Qwen2-VL 0.5B, 224 px", 224, (12, 768, 12, 14), SMALL_PARTS[1]), (32,)),
    )
)
TINY = (1, 16, 2, 8), (1, 24, 2, 24)
QUICK = Scale(
    (
        (replace(_model(f"{LARGE}, 32 px", 32, *TINY), words=2000), (2, 4)),
        (replace(_model("Qwen2-VL 0.5B, 32 px", 32, *TINY), words=0), (2,)),
    ),
    *((1, 2), 4, 256),
)
