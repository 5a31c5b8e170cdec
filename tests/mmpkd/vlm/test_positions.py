"""Position ids: worked examples, and that training and decoding use the same."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration, Qwen3VLForConditionalGeneration

from mmpkd.vlm.config import PositionsConfig
from mmpkd.vlm.positions import by_rule
from tests.mmpkd.vlm.conftest import logits_of


def grid(rows, columns, start):
    """Returns the three positions of the tokens of an image, as the library gives them."""
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
    return torch.cat([torch.zeros(1, rows * columns, dtype=torch.long), cells]) + start


def example_positions(rule, padding=0):
    """Returns the positions of 4 tokens of text, an image of 3 x 5 tokens, and 2 tokens of text."""
    text = torch.arange(4).expand(3, -1), (9 + torch.arange(2)).expand(3, -1)
    stock = torch.cat([torch.zeros(3, padding, dtype=torch.long), text[0], grid(3, 5, start=4), text[1]], dim=1)
    types = torch.tensor([[0] * (padding + 4) + [1] * 15 + [0] * 2])
    mask = torch.tensor([[0] * padding + [1] * 21])
    return by_rule(types, mask, (3, 5), rule)[:, 0], stock


@pytest.mark.parametrize(("gap", "image", "tail"), [(1, 4, 9), (2, 5, 11)])
@pytest.mark.parametrize("padding", [0, 3])
def test_the_gap_of_clinkd(gap, image, tail, padding):
    positions, stock = example_positions(PositionsConfig(border_gap=gap), padding)
    expected = torch.cat([stock[:, : padding + 4], grid(3, 5, image), (tail + torch.arange(2)).expand(3, -1)], dim=1)
    assert torch.equal(positions, expected)


def test_strides_move_rows_and_columns_apart():
    positions, _ = example_positions(PositionsConfig(stride_height=3, stride_width=2))
    temporal, height, width = positions[:, 4:19]
    assert temporal.tolist() == [4] * 15
    assert height.tolist() == [4] * 5 + [7] * 5 + [10] * 5
    assert width.tolist() == [4, 6, 8, 10, 12] * 3
    assert positions[:, 19:].tolist() == [[13, 14]] * 3  # after 12, the largest


def library_model(case):
    kind = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
    model = kind[case.config.model](case.vlm.network.config)
    model.load_state_dict(case.vlm.network.state_dict())
    return model.eval()


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen3_vl"])
def test_without_changes_logits_are_those_of_the_library_and_a_gap_changes_them(model, example, tiny_config):
    with torch.no_grad():
        stock, changed = example(tiny_config(model)), example(tiny_config(model, gap=2))
        by_library = logits_of(library_model(stock), stock)
        assert (stock.vlm(stock.rows) - by_library).abs().max() < 1e-6
        assert (changed.vlm(changed.rows) - by_library).abs().max() > 1e-4


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen3_vl"])
def test_the_rule_with_the_library_s_numbers_gives_its_positions(model, example, tiny_config):
    case = example(tiny_config(model))
    base, rows = case.vlm.base.model, case.rows
    assert not rows.mask_BL.all(), "some rows are padded"
    for grid in ((4, 4), (2, 8)):
        arguments = {"image_grid_thw": torch.tensor([[1, *grid]] * 3), "attention_mask": rows.mask_BL}
        stock = super(type(base), base).get_rope_index(rows.input_ids_BL, rows.token_types_BL, **arguments)
        mine = base.get_rope_index(rows.input_ids_BL, rows.token_types_BL, **arguments)
        assert all(map(torch.equal, mine, stock))


def seen_positions(case):
    """Returns a list to which every call of the text decoder adds the three positions of its tokens."""
    seen = []
    decoder = case.vlm.base.model.language_model

    def spy(module, args, kwargs):
        seen.append(kwargs["position_ids"][-3:].clone())

    decoder.register_forward_pre_hook(spy, with_kwargs=True)
    return seen


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("gap", [1, 2])
def test_decoding_with_a_cache_uses_the_positions_and_logits_of_training(model, gap, example, tiny_config):
    case = example(tiny_config(model, gap))
    seen = seen_positions(case)
    inputs = case.vlm._inputs(case.questions)
    answer = case.vlm.base.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    decoded = torch.cat(seen, dim=2)
    seen.clear()
    mask = torch.cat([case.questions.mask_BL, torch.ones(3, 4, dtype=torch.long)], dim=1)
    types = torch.cat([case.questions.token_types_BL, torch.zeros(3, 4, dtype=torch.int)], dim=1)
    whole = {**case.vlm._inputs(case.questions), "input_ids": answer.sequences, "attention_mask": mask}
    with torch.no_grad():
        logits = case.vlm.base(**whole | {"mm_token_type_ids": types}, use_cache=False).logits
    is_token = mask[:, :-1].bool()  # the last token is not read when decoding
    assert torch.equal(decoded[:, is_token], seen[0][:, :, :-1][:, is_token])
    assert (torch.stack(answer.logits, dim=1) - logits[:, -5:-1]).abs().max() < 1e-5
    spread = decoded.amax(dim=0) - decoded.amin(dim=0)
    assert spread.max() > 0  # positions have three axes, which `generate` loses without token types
