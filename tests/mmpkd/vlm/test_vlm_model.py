"""The model: batches, answers, margins, patches, and what its check refuses."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2VLImageProcessor

from mmpkd.vlm.config import DecoderConfig, LoraConfig, VisionConfig
from mmpkd.vlm.model import build, check
from mmpkd.vlm.network import image_layout
from mmpkd.vlm.rows import batch
from mmpkd.vlm.training.losses import answer_tokens, cross_entropy


def loss_of(case):
    return cross_entropy(*answer_tokens(*case.vlm.answer_logits(case.rows)))


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen3_vl"])
def test_rows_of_a_batch_do_not_depend_on_each_other(model, example, tiny_config):
    case = example(tiny_config(model, gap=2))
    with torch.no_grad():
        logits_BAV, label_BA = case.vlm.answer_logits(case.rows)
        answers = case.vlm.answer(case.questions, 5)
        for index, (single, image) in enumerate(zip(case.items, case.rows.image_B.tolist(), strict=True)):
            alone = batch(case.processor, [single], case.image_MCHW[image : image + 1], [0])
            logits, label = case.vlm.answer_logits(alone)
            keep = label_BA[index] >= 0
            assert label_BA[index][keep].tolist() == single.answer == label[0].tolist()
            assert (logits_BAV[index][keep] - logits[0]).abs().max() < 1e-5
            question = batch(case.processor, [single._replace(answer=None)], case.image_MCHW[image : image + 1], [0])
            assert case.vlm.answer(question, 5).texts == [answers.texts[index]]


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen3_vl"])
def test_the_layout_of_images_is_what_the_library_makes_of_their_grids(model, example, tiny_config):
    case = example(tiny_config(model))
    pixels, grid = case.vlm._patches(case.image_MCHW)
    layout = image_layout(case.vlm.base.model.visual, 4, 4, 2, pixels.device)
    stock, mine = (case.vlm.base.model.get_image_features(pixels, grid, **more).pooler_output for more in ({}, layout))
    assert all(map(torch.equal, stock, mine))


def test_the_loss_reads_answers_only_and_reaches_all_weights(example, tiny_config):
    case = example(tiny_config("qwen3_vl"))
    logits_BLV, labels_BL = case.vlm(case.rows), case.rows.labels_BL
    each = [
        -logits_BLV[row, place - 1].log_softmax(dim=0)[labels_BL[row, place]]
        for row, place in (labels_BL >= 0).nonzero().tolist()
    ]
    loss = loss_of(case)
    assert len(each) == sum(len(single.answer) for single in case.items)
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in case.vlm.parameters())


def test_a_few_steps_teach_answers_and_their_margins_rise(example, tiny_config):
    case = example(tiny_config("qwen3_vl"))
    before = case.vlm.answer(case.questions, 20)
    optimizer = torch.optim.AdamW(case.vlm.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(case).backward()
        optimizer.step()
    after = case.vlm.answer(case.questions, 20)
    assert after.texts == ["<box>(2,2),(6,8)</box>", "a mass", "yes"]
    assert min(after.margins) > max(before.margins)


def test_a_margin_is_the_mean_over_the_tokens_of_an_answer(example, tiny_config):
    """By hand, from the logits of the answer that was given, for the row with an end token and those without."""
    case = example(tiny_config())
    answers = case.vlm.answer(case.questions, 6)
    tokens = case.processor.tokens
    inputs = case.vlm._inputs(case.questions)
    plain = case.vlm.base.generate(
        **inputs,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=tokens.end,
        pad_token_id=tokens.pad,
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = plain.sequences[:, case.questions.input_ids_BL.shape[1] :].tolist()
    largest = torch.stack(plain.logits, dim=1).softmax(dim=2).topk(2).values
    for row, ids in enumerate(written):
        length = ids.index(tokens.end) + 1 if tokens.end in ids else len(ids)
        expected = (largest[row, :length, 0] - largest[row, :length, 1]).mean().item()
        assert answers.margins[row] == pytest.approx(expected, rel=1e-4)


def test_sampling_follows_its_generator_and_leaves_the_global_one(example, tiny_config):
    case = example(tiny_config())
    state = torch.get_rng_state()

    def sampled(seed, temperature=1.0):
        return case.vlm.answer(case.questions, 8, temperature, torch.Generator().manual_seed(seed))

    assert sampled(1) == sampled(1)
    assert sampled(1).texts != sampled(2).texts
    assert sampled(1, temperature=1e-4).texts == case.vlm.answer(case.questions, 8).texts
    assert torch.equal(torch.get_rng_state(), state)


def test_patches_are_those_of_the_library(example, tiny_config):
    case = example(tiny_config(), channels=3)
    mean, std = [0.5] * 3, [0.5] * 3
    processor = Qwen2VLImageProcessor(
        patch_size=8, temporal_patch_size=1, merge_size=2, do_resize=False, image_mean=mean, image_std=std
    )
    expected = processor(list(case.image_MCHW), return_tensors="pt")
    pixels, grid = case.vlm._patches(case.image_MCHW)
    assert (pixels - expected["pixel_values"]).abs().max() < 1e-6
    assert torch.equal(grid, expected["image_grid_thw"])


def test_a_model_is_the_same_for_the_same_seed(example, tiny_config):
    config = tiny_config()
    state = torch.get_rng_state()
    first, again, other = (example(config, seed=seed).vlm.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_adapters_alone_learn(example, tiny_config):
    vlm = example(tiny_config(lora=LoraConfig(rank=2))).vlm
    learning = [name for name, parameter in vlm.named_parameters() if parameter.requires_grad]
    assert learning and all("lora_" in name and "language_model" in name for name in learning)
    assert len(learning) == 2 * 2 * 7  # two layers, seven linear ones in each, two factors


def test_the_check_names_every_mistake(tiny_config):
    assert check(tiny_config(), 32) == []
    wrong = tiny_config(vision=VisionConfig(width=10, heads=3), decoder=DecoderConfig(width=12, heads=4))
    assert [mistake.path for mistake in check(wrong, 40)] == ["vision.width", "decoder.width", "vision.patch_size"]
    assert "image_size=32 or 48" in check(wrong, 40)[-1].problem


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("model", ["qwen2_vl", "qwen3_vl"])
def test_what_the_check_lets_pass_can_be_built(model, heads, example, tiny_config):
    config = tiny_config(
        model, vision=VisionConfig(width=4 * heads, heads=heads), decoder=DecoderConfig(width=6 * heads, heads=heads)
    )
    assert check(config, 32) == []
    case = example(config)
    assert loss_of(case).isfinite()
    assert build(config, case.processor, 32, 1, 0, "student").training
