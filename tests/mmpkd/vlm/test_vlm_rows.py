"""Texts as tokens, and questions as batches."""

from __future__ import annotations

import json

import pytest
import torch

from mmpkd.frames import Letterbox
from mmpkd.vlm.rows import batch, item, moved, restored
from mmpkd.vlm.vocabulary import UNKNOWN, Words, restored_processor

SENTENCES = (
    "a mass, on the left.",
    "T1-weighted (2 cm), grade 3/4; 1.5 mm",
    "<box>(1,2),(3,4)</box>",
    "see <box>(0,0),(8,8)</box>, and <box>(1,1),(2,2)</box>",
    "don't - or  do",
)


@pytest.mark.parametrize("text", SENTENCES)
def test_words_come_back_as_they_were(text):
    words = Words.of(SENTENCES, box_steps=8)
    ids = words.encode(text)
    assert UNKNOWN not in ids
    assert words.decode(ids) == " ".join(text.split())


def test_a_coordinate_is_one_token_and_coordinates_of_another_grid_are_no_words():
    words = Words.of(["<box>(700,2),(3,4)</box>"], box_steps=8)
    ids = words.encode("<box>(1,2),(3,4)</box>")
    assert [words.tokens[index] for index in ids] == ["<box>", *"(1,2),(3,4)", "</box>"]
    assert "700" not in words.ids
    assert words.encode("new") == [UNKNOWN]


def test_a_processor_survives_json(example, tiny_config):
    processor = example(tiny_config()).processor
    state = json.loads(json.dumps(processor.state()))
    assert restored_processor(state).state() == processor.state()


def test_labels_stand_on_the_answers_and_rows_are_padded_on_the_left(example, tiny_config):
    case = example(tiny_config())
    rows, tokens = case.rows, case.processor.tokens
    for ids, labels, mask, encoded in zip(rows.input_ids_BL, rows.labels_BL, rows.mask_BL, case.items, strict=True):
        assert labels[labels >= 0].tolist() == encoded.answer and encoded.answer[-1] == tokens.end
        assert ids[-len(encoded.answer) :].tolist() == encoded.answer
        assert mask.tolist() == sorted(mask.tolist()) and (ids[mask == 0] == tokens.pad).all()
    assert (rows.token_types_BL.sum(dim=1) == 4).all()  # 32 pixels, 16 for each visual token
    assert rows.num_answer == len(case.items[0].answer)


def test_a_hint_is_part_of_the_question(example, tiny_config):
    processor = example(tiny_config()).processor
    letterbox = Letterbox(32, 32, 32)
    hinted = item(processor, letterbox, "Where is the mass?", "yes", hint="yes")
    plain = item(processor, letterbox, "Where is the mass?", "yes")
    assert hinted.question == [*plain.question, *processor.hint, *processor.tokens.encode("yes")]
    rows = batch(processor, [hinted], torch.zeros(1, 1, 32, 32, dtype=torch.uint8), [0])
    assert rows.labels_BL[rows.labels_BL >= 0].tolist() == hinted.answer


def test_boxes_move_to_the_square_and_back():
    """A 100 x 200 image fills the middle half of the square's rows: (0, 0) lies at a quarter of its height."""
    letterbox = Letterbox(100, 200, 48)
    text = "at <box>(0,0),(1000,1000)</box> or <box>(500,500),(750,1000)</box>"
    on_square = moved(text, letterbox, 24)
    assert on_square == "at <box>(0,6),(24,18)</box> or <box>(12,12),(18,18)</box>"
    assert restored(on_square, letterbox, 24) == text
    assert restored("(0,6),(24,18)", letterbox, 24) == "(0,0),(1000,1000)"
    assert restored("<box>(0,0),(24,24)</box>", letterbox, 24) == "<box>(0,0),(1000,1000)</box>"  # cut to the image


def test_a_small_box_is_one_step_wide():
    letterbox = Letterbox(48, 48, 48)
    assert moved("<box>(500,500),(505,510)</box>", letterbox, 24) == "<box>(12,12),(13,13)</box>"
    assert moved("<box>(995,995),(1000,1000)</box>", letterbox, 24) == "<box>(23,23),(24,24)</box>"
