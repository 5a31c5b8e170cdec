"""Saliency maps: by hand, against a ViT written in plain torch, and under one contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpkd.scoring.saliency import MAPS, Chefer, GradCam, GradientAttention, LeGrad, columns_explained
from mmpkd.student import Student
from mmpkd.types import ConfigError, Task, lay_out
from tests.mmpkd.students import drawn, everything

SMALL = {"depth": 3, "embed_dim": 24, "num_heads": 2, "global_pool": "token", "num_classes": 5}
PLAIN = "vit_tiny_patch16_224"
STUDENTS = [PLAIN, "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_dinov3_qkvb", "vit_small_patch16_rope_mixed_224"]
EXPLAINED = [(0,), (3,), (1, 2, 4)]  # two logits, and the class predicted of three


@cache
def student_of(name: str) -> Student:
    return drawn(Student(timm.create_model(name, patch_size=8, img_size=32, **SMALL), (0.5,), (0.25,)), spread=0.25)


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@dataclass
class Seen:
    """Intermediate values of a plain ViT; lists are by block."""

    logits_BK: Tensor
    attention: list[Tensor]  # B, A, N, N
    normed: list[Tensor]  # B, N, D: what attention reads
    tokens: list[Tensor]  # B, N, D: what blocks put out


def plain_vit(model: Any, x_BCHW: Tensor, *, detached: bool = False) -> Seen:
    """The forward pass of Dosovitskiy et al. 2021 with the weights of timm's model, one line per formula."""

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return x @ layer.weight.T + layer.bias

    def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias

    patches = F.conv2d(x_BCHW, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8).flatten(2).mT
    x = torch.cat([model.cls_token.expand(len(patches), -1, -1), patches], dim=1) + model.pos_embed
    seen = Seen(x, [], [], [])
    for block in model.blocks:
        x = x.detach() if detached else x
        read = norm(block.norm1, x)
        q, k, v = linear(block.attn.qkv, read).view(*x.shape[:2], 3, 2, 12).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / 12**0.5
        attention = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed = torch.einsum("bhij,bhjd->bihd", attention, v).flatten(2)
        x = x + linear(block.attn.proj, mixed)
        x = x + linear(block.mlp.fc2, F.gelu(linear(block.mlp.fc1, norm(block.norm2, x))))
        seen.attention.append(attention)
        seen.normed.append(read)
        seen.tokens.append(x)
    seen.logits_BK = linear(model.head, norm(model.norm, x)[:, 0])
    return seen


def explained_of(logits_BK: Tensor, columns: Sequence[int], final_BK: Tensor) -> Tensor:
    """Returns the explained logit of each image: of several columns, the one with the highest final logit."""
    among = torch.tensor(columns)
    return logits_BK[torch.arange(len(logits_BK)), among[final_BK[:, among].argmax(1)]]


def references(student: Student, image_BCHW: Tensor) -> dict[str, Tensor]:
    """Returns every map from the formula in its paper, over full matrices."""
    model, x_BCHW = student.model, (image_BCHW - 0.5) / 0.25
    seen = plain_vit(model, x_BCHW)
    eye = torch.eye(17)
    heads = [entry.mean(1) for entry in seen.attention]

    def shares(row_BN: Tensor) -> Tensor:
        return (row_BN[:, 1:] / row_BN[:, 1:].sum(1, keepdim=True)).view(-1, 1, 4, 4)

    joint = eye.expand(len(image_BCHW), -1, -1)
    for entry in heads:
        joint = (entry + eye) / (entry + eye).sum(-1, keepdim=True) @ joint
    maps = {
        "cls_attention": shares(heads[-1][:, 0]),
        "cls_attention_all": shares(torch.stack(heads).mean(0)[:, 0]),
        "rollout": shares(joint[:, 0]),
    }
    by_label: dict[str, list[Tensor]] = {"gradient_attention": [], "grad_cam": [], "chefer": [], "legrad": []}
    apart = plain_vit(model, x_BCHW, detached=True)
    for columns in EXPLAINED:
        y = explained_of(seen.logits_BK, columns, seen.logits_BK).sum()
        grads = torch.autograd.grad(y, [*seen.attention, seen.normed[-1]], retain_graph=True)
        weighted = [(a * g).relu().mean(1) for a, g in zip(seen.attention, grads, strict=False)]
        by_label["gradient_attention"].append(weighted[-1][:, 0, 1:])
        importance_B1D = grads[-1][:, 1:].mean(1, keepdim=True)
        by_label["grad_cam"].append((seen.normed[-1][:, 1:] * importance_B1D).sum(-1).relu())
        relevance = eye.expand(len(image_BCHW), -1, -1)
        for entry in weighted:
            relevance = relevance + entry @ relevance
        by_label["chefer"].append(relevance[:, 0, 1:])
        total = torch.zeros(len(image_BCHW), 16)
        for attention, tokens in zip(apart.attention, apart.tokens, strict=True):
            logits_BK = (
                F.layer_norm(tokens, (24,), model.norm.weight, model.norm.bias, 1e-6)[:, 0] @ model.head.weight.T
            )
            (grad,) = torch.autograd.grad(
                explained_of(logits_BK, columns, seen.logits_BK).sum(), attention, retain_graph=True
            )
            total = total + grad.relu().mean((1, 2))[:, 1:]
        by_label["legrad"].append(total)
    return maps | {name: torch.stack(result, 1).view(-1, 3, 4, 4) for name, result in by_label.items()}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return references(student_of(PLAIN), images(4))


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_those_of_a_vit_in_plain_torch(name: str, reference: dict[str, Tensor]) -> None:
    logits_BK, map_BRhw = MAPS[name]()(student_of(PLAIN), images(4), EXPLAINED)
    torch.testing.assert_close(logits_BK, student_of(PLAIN)(images(4)).logits_BK.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(map_BRhw, reference[name].detach(), atol=1e-6, rtol=1e-4)
    if MAPS[name].per_label:
        assert not torch.allclose(map_BRhw[:, 0], map_BRhw[:, 1], atol=1e-3 * map_BRhw.max().item())


def test_by_hand() -> None:
    """One image, two heads, a CLS token and two patches; in twentieths."""
    row = torch.tensor([[8.0, 6, 6], [4, 8, 8], [0, 10, 10]]) / 20
    attention_BANN = torch.stack([row, row.flip(1)])[None]
    gradient_BANN = torch.stack([torch.full((3, 3), 2.0), torch.tensor([[1.0, -1, 3]] * 3)])[None]
    # CLS rows: (8 6 6)/20 x 2 and (6 6 8)/20 x (1 -1 3), ReLU, mean: patches (12 + 0)/40, (12 + 24)/40.
    result = GradientAttention().weigh([attention_BANN], [gradient_BANN], 1)
    assert result.tolist() == [pytest.approx([0.3, 0.9])]
    # One block of Chefer adds I, whose CLS row is 0 on patches; a second multiplies by its I + Abar from the right.
    assert Chefer().weigh([attention_BANN], [gradient_BANN], 1).tolist() == [pytest.approx([0.3, 0.9])]
    first_BANN = torch.tensor([[[[0.0, 0.5, 0], [0, 0.25, 0], [0, 1, 0]]]])
    # The last block's CLS row is 1 + (16 + 6)/40, 0.3, 0.9: times I + Abar of the first.
    result = Chefer().weigh([first_BANN, attention_BANN], [torch.ones(1, 1, 3, 3), gradient_BANN], 1)
    assert result.tolist() == [pytest.approx([0.3 + 1.55 * 0.5 + 0.3 * 0.25 + 0.9, 0.9])]
    # LeGrad: ReLU of the gradient, mean over two heads and three queries, twice for two blocks.
    result = LeGrad().weigh([attention_BANN] * 2, [gradient_BANN] * 2, 1)
    assert result.tolist() == [pytest.approx([2 * (2 + 0) / 2, 2 * (2 + 3) / 2])]
    # Grad-CAM: the CLS token's own gradient plays no part. w = (1, -1), z = (3, 1) and (1, 2).
    z_BND = torch.tensor([[[9.0, 9], [3, 1], [1, 2]]])
    dy_BND = torch.tensor([[[7.0, 7], [2, -3], [0, 1]]])
    assert GradCam().weigh([z_BND], [dy_BND], 1).tolist() == [[2, 0]]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("model", STUDENTS)
def test_contract(name: str, model: str) -> None:
    """Maps are finite, not negative, of the right shape, repeatable, independent of order; the student is unchanged."""
    student, image_BCHW = student_of(model), images(5)
    student.model.cls_token.requires_grad_(False)  # a flag that is not the rest's comes back too
    before = everything(student)
    logits_BK, map_BRhw = MAPS[name]()(student, image_BCHW, EXPLAINED)
    assert everything(student) == before
    assert map_BRhw.shape == (5, 3 if MAPS[name].per_label else 1, 4, 4) and logits_BK.shape == (5, 5)
    assert not map_BRhw.requires_grad and not logits_BK.requires_grad
    assert torch.isfinite(map_BRhw).all() and (map_BRhw >= 0).all() and (map_BRhw > 0).any(dim=(2, 3)).all()
    with torch.inference_mode():  # the mode of the caller does not matter
        again = MAPS[name]()(student, image_BCHW, EXPLAINED)
    assert torch.equal(again[0], logits_BK) and torch.equal(again[1], map_BRhw)
    order = torch.tensor([3, 0, 4, 1, 2])
    scale = map_BRhw.amax().item()
    turned = MAPS[name]()(student, image_BCHW[order], EXPLAINED)[1]
    torch.testing.assert_close(turned, map_BRhw[order], atol=1e-5 * scale, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name, entry in MAPS.items() if entry.per_label])
def test_parameters_are_frozen_during_a_gradient_map(name: str) -> None:
    """A graph through the parameters would cost memory and compute unneeded gradients."""
    student = student_of(PLAIN)
    free: list[bool] = []
    handle = student.model.norm.register_forward_hook(
        lambda *_: free.append(any(parameter.requires_grad for parameter in student.parameters()))
    )
    try:
        MAPS[name]()(student, images(1), EXPLAINED)
    finally:
        handle.remove()
    assert free and not any(free)


@pytest.mark.parametrize("name", MAPS)
def test_maps_under_autocast_are_close(name: str) -> None:
    student, image_BCHW = student_of(PLAIN), images(3)
    _, exact = MAPS[name]()(student, image_BCHW, [(0,)])
    with torch.autocast("cpu", torch.bfloat16):
        logits_BK, rough = MAPS[name]()(student, image_BCHW, [(0,)])
    assert logits_BK.dtype == rough.dtype == torch.float32
    shares = [entry / entry.sum(dim=(2, 3), keepdim=True) for entry in (exact, rough)]
    assert (shares[0] - shares[1]).abs().sum(dim=(2, 3)).max() < 0.1


def test_columns_explained_by_the_map_of_a_region() -> None:
    def tasks(*content: Any) -> tuple[Task, ...]:
        return lay_out(content)

    binary = ("malignant", "binary", ("no", "yes"))
    grades = ("grade", "multiclass", ("low", "mid", "high"))
    findings = ("finding", "multilabel", ("mass", "calc"))
    assert columns_explained(["lesion"], tasks(binary)) == [(0,)]
    assert columns_explained(["lesion", "yes"], tasks(binary)) == [(0,), (0,)]
    assert columns_explained(["lesion", "mid"], tasks(grades)) == [(0, 1, 2), (1,)]  # the class predicted, or its own
    assert columns_explained(["calc", "mass"], tasks(binary, findings)) == [(2,), (1,)]
    assert columns_explained([], tasks(binary, grades)) == []
    for labels, given in (
        (["lesion"], tasks(binary, grades)),
        (["mass", "lesion"], tasks(findings)),
        (["yes"], tasks(binary, ("cancer", "binary", ("no", "yes")))),  # two logits of the name
    ):
        with pytest.raises(ConfigError, match=rf"evaluation.map: .* regions {labels[-1]} .*cls_attention"):
            columns_explained(labels, given)
