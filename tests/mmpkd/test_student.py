"""The student: layers on request, attention of the model itself, and weights that are never downloaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from mmpkd.config import StudentConfig
from mmpkd.student import Student, build_student
from mmpkd.types import ConfigError
from tests.mmpkd.students import drawn, everything

TINY = StudentConfig(model="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=3, num_heads=3)
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 4}
# One of each way in which timm attends: plain, with qk-norm, with registers (and eight prefix tokens), with LayerScale;
# rotary of four kinds and in a post-norm block; relative positions of two kinds.
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch16_224": {"qk_norm": True},
    "vit_small_patch14_reg4_dinov2": {},
    "deit3_small_patch16_224": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_tiny_patch16_dinov3_qkvb": {},
    "vit_small_patch16_dinov3": {"qk_norm": True},
    "eva02_tiny_patch14_224": {},
    "eva02_enormous_patch14_clip_224": {},
    "beit_base_patch16_224": {},
    "vit_relpos_medium_patch16_cls_224": {},
    "vit_base_patch16_radio_v3": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_that_of_the_model_which_stays_unchanged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares with every softmax of a copy that is completely unfused."""
    side = 4 * (14 if "patch14" in name else 16)
    options = {**SMALL, **MODELS[name], "global_pool": "token", "img_size": side, "num_classes": 3}
    student = drawn(Student(timm.create_model(name, **options), (0.5,), (0.25,)), spread=0.12)
    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    unfused = copy.deepcopy(student.model)
    for block in unfused.blocks:
        block.attn.fused_attn = False
    before = everything(student)
    with torch.inference_mode():
        plain, last, shown = (student(image, attention_layers=layers) for layers in ((), [1], [0, 1]))
        selected: list[torch.Tensor] = []
        softmax = torch.Tensor.softmax
        monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: selected.append(softmax(x, dim)) or selected[-1])
        unfused((image - 0.5) / 0.25)
    assert everything(student) == before and len(selected) == 2
    for layer in (0, 1):
        row_BAN = selected[layer][:, :, 0]
        torch.testing.assert_close(shown.query_attention_BAN[layer], row_BAN, atol=1e-6, rtol=0)
        assert row_BAN.amax() > 2 / row_BAN.shape[2], "a map so flat that it would show nothing"
    assert list(last.query_attention_BAN) == [1]
    torch.testing.assert_close(last.logits_BK, plain.logits_BK, atol=1e-6, rtol=0)
    assert shown.grid == (4, 4) and shown.query_attention_BAN[1].shape[2] == student.num_prefix + 16


def test_other_blocks_stay_fused() -> None:
    student = build_student(TINY, 32, 1, 2)
    fused = [block.attn.fused_attn for block in student.model.blocks]
    seen = []
    for block in student.model.blocks:
        block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(module.fused_attn))
    student(torch.rand(1, 1, 32, 32), attention_layers=[2])
    assert seen == [*fused[:2], False]
    assert [block.attn.fused_attn for block in student.model.blocks] == fused


def test_hidden_tokens_are_those_of_the_requested_blocks() -> None:
    student = build_student(TINY, 32, 1, 2).eval()
    tokens = []
    for block in student.model.blocks:
        block.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    output = student(torch.rand(2, 1, 32, 32), layers=[2, 0])
    assert set(output.hidden_BND) == {0, 2}
    for layer in (0, 2):
        torch.testing.assert_close(output.hidden_BND[layer], tokens[layer])


def test_outlines_are_cached_and_not_shared_with_trained_students() -> None:
    entry, other = (build_student(TINY, 32, 1, 2, empty=True).model for _ in range(2))
    assert entry is other and all(weight.is_meta for weight in entry.parameters())
    assert build_student(TINY, 32, 1, 3, empty=True).model is not entry
    assert not any(weight.is_meta for weight in build_student(TINY, 32, 1, 2).parameters())


def test_classifies_by_the_cls_token_even_where_timm_would_not() -> None:
    name = "vit_tiny_patch16_dinov3_qkvb"
    assert timm.create_model(name, img_size=32).global_pool == "avg"
    assert build_student(StudentConfig(model=name), 32, 1, 2, empty=True).model.global_pool == "token"


@pytest.mark.parametrize(
    ("config", "size", "path", "words"),
    [
        (StudentConfig(model="vit_tny_patch16_224"), 224, "student.model", "did you mean 'vit_tiny_patch16_224'"),
        (StudentConfig(model="resnet18"), 224, "student", "resnet18"),
        (StudentConfig(model="xcit_nano_12_p16_224"), 224, "student.model", "xcit_nano_12_p16_224"),
        (StudentConfig(model="deit_tiny_distilled_patch16_224"), 224, "student.model", "one linear classifier"),
        (StudentConfig(model="vit_wee_patch16_reg1_gap_256"), 256, "student.model", "has no CLS token"),
        (StudentConfig(model="vit_dwee_patch16_reg1_gap_256"), 256, "student.model", "has no CLS token"),
        (StudentConfig(model="vit_base_patch16_siglip_224"), 224, "student.model", "has no CLS token"),
        (StudentConfig(model="samvit_base_patch16_224"), 224, "student.model", "has no CLS token"),
        (StudentConfig(model="vit_base_patch16_xp_224"), 224, "student.model", "hold ParallelScalingBlock, not Attent"),
        (StudentConfig(model="cait_xxs24_224"), 224, "student.model", "hold TalkingHeadAttn, not Attention"),
        (StudentConfig(model="naflexvit_base_patch16_radio_v3"), 224, "student.model", "is not a plain ViT"),
        (
            StudentConfig(model="vit_tiny_patch16_224"),
            100,
            "cohort.image_size",
            "multiple of the student's patch of 16; try 96",
        ),
        (StudentConfig(model="vit_small_r26_s32_224"), 200, "cohort.image_size", "7 x 7 patches does not divide 200"),
        (StudentConfig(model="vit_tiny_patch16_224", num_heads=5), 224, "student", "num_heads=5"),
        (StudentConfig(model="vit_tiny_patch16_224", weights=Path("w")), 224, "student.weights", "pretrained is false"),
        (
            StudentConfig(model="vit_tiny_patch16_224", pretrained=True, weights=Path("nowhere.safetensors")),
            224,
            "student.weights",
            "no file nowhere.safetensors",
        ),
    ],
)
def test_models_that_cannot_be_built_are_reported(config: StudentConfig, size: int, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_student(config, size, 1, 2, empty=True)
    (mistake,) = caught.value.mistakes
    assert mistake.path == path and words in mistake.problem and "\n" not in mistake.problem


def test_attention_other_than_a_single_softmax_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model of timm has both a CLS token and differential attention, but a registered model could."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, attn_layer="diff", depth=2, global_pool="token")
    monkeypatch.setattr("mmpkd.student._model_names", lambda: ["mine"])
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    with pytest.raises(
        ConfigError, match=r"student.model: 'mine' is not a ViT .* blocks hold DiffAttention, not Attention"
    ):
        build_student(StudentConfig(model="mine"), 32, 1, 2)


def test_missing_pretrained_weights_are_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpkd.weights.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ConfigError, match=r"not on this machine.*hf download timm/vit_tiny_patch16_224"):
        build_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=True), 224, 1, 2, empty=True)


def test_pretrained_weights_load_from_a_local_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = timm.create_model("vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=1, num_heads=3, img_size=32)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    config = StudentConfig(
        model="vit_tiny_patch16_224",
        pretrained=True,
        weights=tmp_path / "w.safetensors",
        patch_size=8,
        embed_dim=24,
        depth=1,
        num_heads=3,
        weights_heads=3,
    )
    student = build_student(config, 32, 1, 2)
    torch.testing.assert_close(student.model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    # Grey images: timm sums the filters over the colours.
    torch.testing.assert_close(
        student.model.patch_embed.proj.weight, source.patch_embed.proj.weight.sum(1, keepdim=True)
    )
    assert student.model.head.out_features == 2
    assert student.mean.flatten().tolist() == pytest.approx([0.5])
