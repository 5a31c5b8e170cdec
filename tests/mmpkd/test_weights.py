"""Pretrained weights: misfits are refused, and changes that make weights fit are reported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from mmpkd.config import StudentConfig
from mmpkd.student import announced, build_student
from mmpkd.types import ConfigError

NAME = "vit_tiny_patch16_224"
SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SIDE = 32
REAL = Path(__file__).parents[3] / "shared" / "weights" / "dinov2_small_patch14_fp16.safetensors"


def state_of(name: str = NAME, **options: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = timm.create_model(name, **{**SIZES, "img_size": SIDE, **options}).state_dict()
    return state


def saved(path: Path, state: dict[str, Any], header: dict[str, str] | None = None) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path, header)
    else:
        torch.save(state, path)
    return path


def student(weights: Path, **changes: Any) -> StudentConfig:
    content = {"model": NAME, "pretrained": True, "weights": weights, "weights_heads": 3, **SIZES, **changes}
    return StudentConfig.model_validate(content)


def problem(config: StudentConfig, channels: int = 3, empty: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        build_student(config, SIDE, channels, 2, empty=empty)
    (mistake,) = caught.value.mistakes
    assert "\n" not in mistake.problem
    return str(mistake)


def without(state: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not any(name in key for name in names)}


MISFITS: dict[str, tuple[Any, str]] = {
    "a file of fewer blocks": (lambda: state_of(depth=1), "it holds nothing for blocks.1.norm1.weight"),
    "a file of more blocks": (lambda: state_of(depth=3), "it holds blocks.2.attn.proj.bias"),
    "no last norm": (lambda: without(state_of(), "norm.weight", "norm.bias"), "it holds nothing for"),
    "another width": (
        lambda: state_of(embed_dim=48),
        "cls_token is [1, 1, 48] in the file and [1, 1, 24] in the model",
    ),
    "no class token": (
        lambda: state_of(class_token=False, global_pool="avg", fc_norm=False),
        "it holds nothing for cls_token",
    ),
    "no bias of queries, keys and values": (lambda: state_of(qkv_bias=False), "blocks.0.attn.qkv.bias"),
    "layer scale": (lambda: state_of(init_values=1e-3), "it holds blocks.0.ls1.gamma"),
    "register tokens": (lambda: state_of(reg_tokens=4, no_embed_class=True), "it holds reg_token"),
    "normalised queries": (lambda: state_of(qk_norm=True), "it holds blocks.0.attn.k_norm.bias"),
    "a norm after pooling": (
        lambda: state_of(global_pool="avg", fc_norm=True),
        "classify by the mean of its tokens (fc_norm)",
    ),
    "a wider MLP": (
        lambda: state_of(mlp_ratio=2.0),
        "blocks.0.mlp.fc1.weight is [48, 24] in the file and [96, 24] in the model",
    ),
    "a prefix": (
        lambda: {f"backbone.{key}": value for key, value in state_of().items()},
        "its names begin with 'backbone.': save them without it",
    ),
    "one grey channel": (lambda: state_of(in_chans=1), "inconsistent with input_size[0]=3"),
    "numbers that are none": (
        lambda: state_of() | {"norm.bias": torch.full((24,), torch.nan)},
        "norm.bias holds values",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_refused_before_training(name: str, tmp_path: Path) -> None:
    make, words = MISFITS[name]
    printed = problem(student(saved(tmp_path / "w.safetensors", make())))
    assert (
        printed.startswith("student.weights: ")
        and words in printed
        and printed.endswith("or set student.pretrained=false")
    )


def test_a_student_that_is_built_refuses_too(tmp_path: Path) -> None:
    assert "nothing for blocks.1" in problem(student(saved(tmp_path / "w.safetensors", state_of(depth=1))), empty=False)


@pytest.mark.parametrize("key", ["teacher", "net"])
def test_nested_weights_are_refused(key: str, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "w.pth", {key: {f"backbone.{name}": value for name, value in state_of().items()}, "epoch": 3}
    )
    assert f"its weights are nested under {key}: save these" in problem(student(path))


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module.", "n_averaged"])
def test_wrapped_weights_that_timm_unwraps_fit(wrap: str, tmp_path: Path) -> None:
    state: dict[str, Any] = state_of()
    wrapped = {
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state},
        "module.": {f"module.{key}": value for key, value in state.items()},
        "n_averaged": {f"module.{key}": value for key, value in state.items()} | {"n_averaged": torch.tensor(5)},
    }[wrap]
    built = build_student(student(saved(tmp_path / "w.pth", wrapped)), SIDE, 3, 2)
    torch.testing.assert_close(built.model.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", state_of())
    build_student(student(path), SIDE, 3, 2, empty=True)
    saved(path, state_of(depth=1))
    os.utime(path, (1, 1))
    assert "nothing for blocks.1" in problem(student(path))


def test_a_classifier_of_other_classes_fits(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", state_of(num_classes=7))
    assert build_student(student(path), SIDE, 3, 2).model.head.out_features == 2
    bare = saved(tmp_path / "bare.safetensors", without(state_of(), "head"))
    assert build_student(student(bare), SIDE, 3, 2).model.head.out_features == 2


def test_checking_weights_draws_no_random_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", state_of())
    torch.manual_seed(5)
    build_student(student(path), SIDE, 3, 2, empty=True)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_heads_that_timm_names(tmp_path: Path) -> None:
    """A file of a known width belongs to the named model, which has three heads of 64."""
    path = saved(tmp_path / "w.safetensors", state_of(embed_dim=192))
    whole = {"embed_dim": None, "weights_heads": None}
    assert build_student(student(path, **whole), SIDE, 3, 2).model.blocks[0].attn.num_heads == 3
    printed = problem(student(path, **whole, num_heads=6), empty=True)
    assert printed.startswith(
        "student.num_heads: the student has 6 attention heads, but the weights were trained with 3"
    )
    assert "set student.num_heads=3, or student.weights_heads=6 if you trained these weights with 6" in printed
    meant = student(path, embed_dim=None, num_heads=6, weights_heads=6)
    assert build_student(meant, SIDE, 3, 2).model.blocks[0].attn.num_heads == 6


def test_unknown_heads_must_be_stated(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", state_of())
    printed = problem(student(path, weights_heads=None))
    assert printed.startswith("student.weights_heads: ") and "set student.weights_heads=3 if it was 3" in printed
    assert "with 4 (source: student.weights_heads)" in problem(student(path, weights_heads=4))


def test_heads_stated_by_the_header(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", state_of(), {"num_heads": "4"})
    assert "trained with 4 (source: the header of" in problem(student(path, weights_heads=None))
    printed = problem(student(path))
    assert printed.startswith(
        "student.weights_heads: the weights are stated to have 3 (student.weights_heads) and 4 (the hea"
    )
    assert build_student(student(path, weights_heads=None, num_heads=4), SIDE, 3, 2, empty=True)


@pytest.mark.parametrize("where", ["header", "config.json"])
def test_a_file_that_states_another_model_is_refused(where: str, tmp_path: Path) -> None:
    """CLIP's weights were trained with another activation, which shapes do not reveal."""
    theirs, plain = "vit_base_patch16_clip_quickgelu_224", "vit_base_patch16_clip_224"
    state = state_of(plain, num_heads=3)
    header = {"architecture": theirs} if where == "header" else None
    path = saved(tmp_path / "w.safetensors", state, header)
    if where == "config.json":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": f"{theirs}.openai", "num_classes": 512}))
    printed = problem(student(path, model=plain))
    assert f"states that it is of '{theirs}" in printed and "activation is QuickGELU, not GELU as in" in printed
    assert f"set student.model={theirs}" in printed
    assert build_student(student(path, model=theirs), SIDE, 3, 2, empty=True)


def test_heads_of_the_stated_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", state_of(embed_dim=192), {"architecture": NAME})
    assert build_student(student(path, embed_dim=None, weights_heads=None), SIDE, 3, 2, empty=True)
    printed = problem(student(path, embed_dim=None, num_heads=6, weights_heads=6))
    assert "stated to have 6 (student.weights_heads) and 3 (the stated model of" in printed


@pytest.mark.parametrize("text", ["no json {", "[1]", '{"architectures": ["ViTModel"]}', '{"architecture": "resnext"}'])
def test_a_config_of_another_program_is_ignored(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    path = saved(tmp_path / "w.safetensors", state_of())
    assert build_student(student(path), SIDE, 3, 2, empty=True)


def test_heads_of_weights_that_are_not_loaded_are_refused() -> None:
    printed = problem(StudentConfig(model=NAME, weights_heads=3))
    assert printed == "student.weights_heads: is given but student.pretrained is false"


def test_changes_of_weights_are_reported(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in state_of(patch_size=4, img_size=64).items()}
    path = saved(tmp_path / "w.safetensors", half)
    build_student(student(path), SIDE, 1, 2, empty=True)
    printed = announced(student(path), SIDE, 1)
    assert printed[:4] == [
        "its filters of 3 channels are summed over them for images of 1",
        "its patches of 4 x 4 pixels are resampled to 8 x 8",
        "its table of 257 positions is resampled to 4 x 4 patches",
        "its numbers are float16",
    ]
    assert printed[4].startswith(
        "pixels are normalised by mean 0.500 and standard deviation 0.500, timm's values for vit_tiny"
    )
    assert announced(StudentConfig(model=NAME), SIDE, 1) == []


def test_unchanged_weights_report_only_the_normalisation(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", state_of())
    (printed,) = announced(student(path), SIDE, 3)
    assert printed.startswith("pixels are normalised by")


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/weights, which is on the project's machines only")
def test_real_weights_fit_and_their_heads_are_known() -> None:
    config = StudentConfig(model="vit_small_patch14_dinov2", pretrained=True, weights=REAL)
    built = build_student(config, 112, 1, 2)
    assert built.model.blocks[0].attn.num_heads == 6 and built.grid == (8, 8)
    printed = announced(config, 112, 1)
    assert (
        "its table of 1370 positions is resampled to 8 x 8 patches" in printed and "its numbers are float16" in printed
    )
    with pytest.raises(ConfigError, match="weights were trained with 6"):
        build_student(config.model_copy(update={"num_heads": 12}), 112, 1, 2, empty=True)
