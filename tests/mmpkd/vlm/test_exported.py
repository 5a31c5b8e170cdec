"""Exported students, folders for transformers, and folders of models that a student begins from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from mmpkd.cohort.decode import Depth
from mmpkd.export import to_transformers
from mmpkd.export.origin import Origin
from mmpkd.frames import Letterbox
from mmpkd.types import ConfigError
from mmpkd.vlm import exported
from mmpkd.vlm.config import LoraConfig, PositionsConfig, VlmConfig
from mmpkd.vlm.model import check
from mmpkd.vlm.network import network_of_folder
from mmpkd.vlm.rows import batch, item
from mmpkd.vlm.student import VlmCard, VlmStudent
from tests.mmpkd.vlm.conftest import QUESTIONS, logits_of
from tests.mmpkd.vlm.model_folders import tokenizer, write_tiny_model


def write(case, folder):
    return exported.write(folder, case.vlm, case.config, 32, 1, {"trial": "abc"})


def to_folder(case, place, folder):
    """Writes an example as a folder for transformers, through its file."""
    vlm, content = exported.read(write(case, place))
    channels = case.image_MCHW.shape[1]
    card = VlmCard(channels, 32, Depth(8, None, None), "source", "cohort", 0, "trial", credentialed=False)
    origin = Origin("table", {}, {}, (), (), False, 1, 0, {})
    config = VlmConfig.model_validate(content["config"])
    to_transformers.write(VlmStudent(vlm, config, card, np.array([], np.int64), origin), folder, ["mmpkd.export"])


def with_random_adapters(case):
    """Gives adapters weights other than 0, so that merging them changes something."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in case.vlm.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return case


def stock_logits(case, folder):
    return logits_of(AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval(), case)


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
@torch.no_grad()
def test_a_student_comes_back_with_its_adapters_merged(model, lora, example, tiny_config, tmp_path):
    case = with_random_adapters(example(tiny_config(model, gap=2, lora=lora)))
    vlm, content = exported.read(write(case, tmp_path))
    assert (vlm(case.rows) - case.vlm(case.rows)).abs().max() < (1e-5 if lora else 1e-7)
    assert vlm.answer(case.questions, 5).texts == case.vlm.answer(case.questions, 5).texts
    assert content["card"] == {"trial": "abc"} and content["config"]["positions"]["border_gap"] == 2
    assert (lora is not None) == hasattr(case.vlm.network, "peft_config")  # the student itself is as it was


@pytest.mark.parametrize("gap", [1, 2])
@torch.no_grad()
def test_a_folder_gives_the_same_logits_in_transformers_unless_it_says_so(gap, example, tiny_config, tmp_path):
    case = with_random_adapters(example(tiny_config(gap=gap, lora=LoraConfig(rank=2))))
    folder = tmp_path / "folder"
    to_folder(case, tmp_path, folder)
    difference = (stock_logits(case, folder) - case.vlm(case.rows)).abs().max()
    config, readme = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    assert config["position_rule"] == PositionsConfig(border_gap=gap).model_dump()
    pixels = AutoImageProcessor.from_pretrained(folder)(list(case.image_MCHW), return_tensors="pt")
    assert (pixels["pixel_values"] - case.vlm._patches(case.image_MCHW)[0]).abs().max() < 1e-6
    if gap == 1:
        assert difference < 1e-5 and "other positions" not in readme
    else:
        assert difference > 1e-4 and "other positions" in readme and "begins 2 after" in readme


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a complete safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x55"), "does not match its checksum"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused(damage, complaint, example, tiny_config, tmp_path):
    path = write(example(tiny_config()), tmp_path)
    damage(path)
    with pytest.raises(ConfigError, match=complaint):
        exported.read(path)


@pytest.fixture
def model_folder(tmp_path):
    """A tiny model for images in colour as transformers itself writes it, with a tokenizer."""

    def write_folder(family):
        return write_tiny_model(tmp_path / family, family)

    return write_folder


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@torch.no_grad()
def test_a_folder_of_a_model_is_a_student_with_its_own_tokenizer(
    family, example, tiny_config, model_folder, tmp_path, monkeypatch, capsys
):
    case = example(tiny_config(str(model_folder(family)), gap=1))
    assert check(case.config, 32) == []
    tokens = case.processor.tokens
    assert (tokens.pad, tokens.end, tokens.image) == (0, 1, 2)
    assert tokens.decode(tokens.encode("Where is the mass?")) == "Where is the mass?"
    assert (case.vlm(case.rows) - stock_logits(case, case.config.model)).abs().max() < 1e-6
    vlm, content = exported.read(write(case, tmp_path))
    assert (vlm(case.rows) - case.vlm(case.rows)).abs().max() < 1e-7
    assert str(tmp_path) not in json.dumps(content)
    to_folder(case, tmp_path, tmp_path / "again")
    Image.fromarray(case.image_MCHW[0].permute(1, 2, 0).squeeze(2).numpy()).save(tmp_path / "scan.png")
    monkeypatch.setattr("sys.argv", ["answer.py", str(tmp_path / "again"), str(tmp_path / "scan.png"), QUESTIONS[0]])
    exec((tmp_path / "again" / "README.md").read_text().partition("```python\n")[2].partition("```")[0], {})
    first = batch(case.processor, [item(case.processor, Letterbox(32, 32, 32), QUESTIONS[0])], case.image_MCHW[:1], [0])
    assert capsys.readouterr().out.splitlines()[0] == vlm.answer(first, case.config.max_new_tokens).texts[0]
    again = example(tiny_config(str(tmp_path / "again")))
    assert again.processor.tokens.encode("a mass") == tokens.encode("a mass")
    assert (again.vlm(case.rows) - case.vlm(case.rows)).abs().max() < 1e-7


def test_the_chat_template_of_a_folder_is_the_layout_of_a_prompt(example, tiny_config, model_folder):
    folder = model_folder("qwen2_vl")
    template = (
        "{% for m in messages %}a{% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% endfor %}<|end|>yes"
    )
    chat = tokenizer()
    chat.chat_template = template
    chat.save_pretrained(folder)
    processor = example(tiny_config(str(folder))).processor
    names = [
        processor.tokens.backend.id_to_token(index)
        for part in (processor.before, processor.between, processor.after)
        for index in part
    ]
    assert names == ["a", "<|vision_start|>", "<|vision_end|>", "<|end|>", "yes"]


def test_a_folder_that_cannot_be_used_is_refused(example, tiny_config, model_folder, tmp_path):
    folder = model_folder("qwen2_vl")

    def problem():
        return [mistake.problem for mistake in check(tiny_config(str(folder)), 40)]

    assert "16 x 16 pixels" in problem()[0]
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert "holds no tokenizer" in problem()[0]
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "of type 'llama'" in problem()[0]
    (folder / "config.json").unlink()
    assert "no config.json" in problem()[0]
    folder = tmp_path / "nowhere"
    assert "neither a family nor a folder" in problem()[0]


def test_a_folder_without_its_own_weights_is_refused(tiny_config, model_folder):
    folder = model_folder("qwen2_vl")
    (folder / "adapter_config.json").write_text("{}")
    (mistake,) = check(tiny_config(str(folder)), 32)
    assert "low-rank adapters without a model" in mistake.problem
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save({}, folder / "pytorch_model.bin")  # must not be unpickled
    with pytest.raises(ConfigError, match="cannot be loaded"):
        network_of_folder(folder, 1)


def test_a_folder_whose_model_learned_other_positions_says_so(example, tiny_config, model_folder, tmp_path):
    case = example(tiny_config(str(model_folder("qwen2_vl")), gap=2))
    to_folder(case, tmp_path, tmp_path / "again")
    (mistake,) = check(tiny_config(str(tmp_path / "again"), gap=1), 32)
    assert mistake.path == "positions" and "border_gap: 2, stride_height: 1" in mistake.problem
    assert check(tiny_config(str(tmp_path / "again"), gap=2), 32) == []


def test_a_control_token_in_a_text_is_text(example, tiny_config, model_folder):
    """The first six ids are pad, end, image, video, and the two around an image."""
    tokens = example(tiny_config(str(model_folder("qwen2_vl")))).processor.tokens
    spelt = "the mass <|end|> on <|vision_start|><|image_pad|> yes"
    ids = tokens.encode(spelt)
    assert min(ids) > 5 and ids[0] == tokens.encode("the")[0] and ids[-1] == tokens.encode("yes")[0]
