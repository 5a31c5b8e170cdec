"""The student: layers on request, attention that is the model's own, weights that are never fetched."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from mmpkd.config import StudentConfig
from mmpkd.saliency import MAPS
from mmpkd.student import build_student
from mmpkd.types import ConfigError

TINY = StudentConfig(model="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=3, num_heads=3)
# One of each kind of attention in timm: plain, rotary with registers, rotary without.
MODELS = ["vit_tiny_patch16_224", "vit_tiny_patch16_dinov3_qkvb", "eva02_tiny_patch14_224"]


@pytest.mark.parametrize("name", MODELS)
def test_attention_row_is_the_models_own_and_leaves_logits_alone(name: str) -> None:
    patch = 14 if "patch14" in name else 16
    student = build_student(StudentConfig(model=name, depth=2), 4 * patch, 3, 2).eval()
    image = torch.rand(2, 3, 4 * patch, 4 * patch)
    with torch.inference_mode():
        plain, shown = student(image), student(image, attention_layers=[1])
        # Independent: with fused kernels off everywhere, timm's own softmax feeds attn_drop.
        caught = []
        for block in student.model.blocks:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: caught.append(output))
        student(image)
    torch.testing.assert_close(plain.logits_BK, shown.logits_BK, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shown.query_attention_BAN[1], caught[1][:, :, 0])
    assert shown.grid == (4, 4)
    assert shown.query_attention_BAN[1].shape[-1] == shown.num_prefix + 16


def test_other_blocks_stay_fused() -> None:
    student = build_student(TINY, 32, 1, 2)
    fused = [block.attn.fused_attn for block in student.model.blocks]
    seen = []
    for block in student.model.blocks:
        block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(module.fused_attn))
    student(torch.rand(1, 1, 32, 32), attention_layers=[2])
    assert seen == [*fused[:2], False]
    assert [block.attn.fused_attn for block in student.model.blocks] == fused


def test_map_renormalises_over_patches() -> None:
    student = build_student(TINY, 32, 1, 2).eval()
    output = student(torch.rand(2, 1, 32, 32), attention_layers=[2])
    map_Bhw = MAPS["cls_attention"](output)
    assert map_Bhw.shape == (2, 4, 4)
    torch.testing.assert_close(map_Bhw.sum((1, 2)), torch.ones(2))
    by_hand = output.query_attention_BAN[2][0, :, 1:].mean(0)
    torch.testing.assert_close(map_Bhw[0].flatten(), by_hand / by_hand.sum())


def test_hidden_tokens_are_those_of_the_blocks_asked_for() -> None:
    student = build_student(TINY, 32, 1, 2).eval()
    tokens = []
    for block in student.model.blocks:
        block.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    output = student(torch.rand(2, 1, 32, 32), layers=[2, 0])
    assert set(output.hidden_BND) == {0, 2}
    for layer in (0, 2):
        torch.testing.assert_close(output.hidden_BND[layer], tokens[layer])


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
        (StudentConfig(model="vit_wee_patch16_reg1_gap_256"), 256, "student", "class token"),
        (
            StudentConfig(model="vit_tiny_patch16_224"),
            100,
            "cohort.image_size",
            "multiple of the student's patch of 16; try 96",
        ),
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
def test_what_cannot_be_built_is_said_plainly(config: StudentConfig, size: int, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_student(config, size, 1, 2, empty=True)
    (mistake,) = caught.value.mistakes
    assert mistake.path == path and words in mistake.problem and "\n" not in mistake.problem


def test_absent_pretrained_weights_are_an_error_that_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpkd.student.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(ConfigError, match=r"not on this machine.*hf download timm/vit_tiny_patch16_224"):
        build_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=True), 224, 1, 2, empty=True)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    """timm would load what fits, say nothing, and hand over a random student."""
    sizes = {"patch_size": 8, "embed_dim": 24, "num_heads": 3}
    shallow = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, **sizes)
    save_file(shallow.state_dict(), tmp_path / "shallow.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    for name, words in (("shallow", "holds nothing for block 1"), ("broken", "cannot be built")):
        path = tmp_path / f"{name}.safetensors"
        config = StudentConfig(model="vit_tiny_patch16_224", pretrained=True, weights=path, depth=2, **sizes)
        with pytest.raises(ConfigError, match=words):
            build_student(config, 32, 1, 2)


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
    )
    student = build_student(config, 32, 1, 2)
    torch.testing.assert_close(student.model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    # Grey images: timm sums the filters over the colours.
    torch.testing.assert_close(
        student.model.patch_embed.proj.weight, source.patch_embed.proj.weight.sum(1, keepdim=True)
    )
    assert student.model.head.out_features == 2
    assert student.mean.flatten().tolist() == pytest.approx([0.5])
