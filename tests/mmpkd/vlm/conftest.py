"""A tiny model with a few words, for the tests of vision-language students."""

from __future__ import annotations

import pytest
import torch

from mmpkd.frames import Letterbox
from mmpkd.vlm.config import DecoderConfig, PositionsConfig, VisionConfig, VlmConfig
from mmpkd.vlm.model import build
from mmpkd.vlm.rows import batch, item
from mmpkd.vlm.vocabulary import text_processor

TEXTS = ("Where is the mass?", "a mass, on the left.", "yes", "What is <box>(1,2),(3,4)</box>?")
QUESTIONS = ("Where is the mass?", "What is <box>(0,250),(500,750)</box>?", "Is the mass on the left?")
ANSWERS = ("<box>(250,250),(750,1000)</box>", "a mass", "yes")
IMAGE_OF_QUESTION = (0, 1, 1)
SIDE = 32


def tiny(model="qwen2_vl", gap=1, **changes):
    """Returns the configuration of a model of some thousand weights."""
    vision, decoder = VisionConfig(depth=1, width=16, heads=2), DecoderConfig(depth=2, width=32, heads=2, mlp=32)
    options = {"positions": PositionsConfig(border_gap=gap), "box_steps": 8, "vision": vision, "decoder": decoder}
    return VlmConfig(model=model, **options | changes)


class Example:
    """A tiny model, and a batch of three questions about two images, with and without their answers."""

    def __init__(self, config, channels=1, seed=0):
        self.config = config
        self.processor = text_processor(config, TEXTS)
        self.vlm = build(config, self.processor, SIDE, channels, seed, "student").eval()
        shape = (2, channels, SIDE, SIDE)
        self.image_MCHW = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
        self.items = [
            item(self.processor, Letterbox(SIDE, SIDE, SIDE), question, answer)
            for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        ]
        self.rows = batch(self.processor, self.items, self.image_MCHW, IMAGE_OF_QUESTION)
        without = [each._replace(answer=None) for each in self.items]
        self.questions = batch(self.processor, without, self.image_MCHW, IMAGE_OF_QUESTION)


@torch.no_grad()
def logits_of(model, case):
    """Returns the logits of a model of transformers for an example, given pixels and token types."""
    rows = case.rows
    pixels, grid = case.vlm._patches(rows.image_MCHW[rows.image_B])
    return model(
        input_ids=rows.input_ids_BL,
        attention_mask=rows.mask_BL,
        mm_token_type_ids=rows.token_types_BL,
        pixel_values=pixels,
        image_grid_thw=grid,
    ).logits


@pytest.fixture
def example():
    return Example


@pytest.fixture
def tiny_config():
    return tiny
