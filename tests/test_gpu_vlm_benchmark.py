"""benchmarks/gpu_vlm.py: a reduced run on the CPU, what does not fit, and a run without time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_vlm
from benchmarks.gpu_measure import Profile
from benchmarks.gpu_vlm_models import FULL, LARGE, QUICK, SMALL
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.model import build, check
from mmpkd.vlm.training.learner import Learner
from mmpkd.vlm.vocabulary import SPECIAL, Words, text_processor

TINY = replace(QUICK, cells=((QUICK.cells[0][0], (2,)),), steps=(0, 1), new_tokens=2, matmul=32)


def test_every_kind_of_step_leaves_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profiler, which takes seconds, is a stand-in here."""
    monkeypatch.setattr(gpu_vlm, "QUICK", TINY)
    monkeypatch.setattr(gpu_vlm, "profile_of", lambda advance, steps: Profile(5, 1, 0.1, "table"))
    file, page = tmp_path / "vlm.json", tmp_path / "vlm.md"
    assert gpu_vlm.main(["--quick", "--json", str(file), "--markdown", str(page)]) == 0
    results = json.loads(file.read_text())
    assert not results["notes"]
    rows = {row["variant"]: row for row in results["rows"]}
    assert len(rows) == 5 and all(row["tokens_per_second"] > 0 and row["batch_size"] == 2 for row in rows.values())
    labels, online, lora = (
        rows[name] for name in ("labels alone", "KD, teacher at each step", "LoRA and KD at each step")
    )
    assert labels["visual"] == 2 * 4, "an image of 32 px has 2 x 2 visual tokens of 16 px"
    assert labels["visual"] + labels["text"] <= labels["padded"]
    assert online["teraflop"] > labels["teraflop"], "the teacher's operations count"
    assert lora["trained"] < labels["trained"] == pytest.approx(labels["parameters"])
    assert "| KD, 16 cached logits | 2 |" in page.read_text()


def test_a_step_that_does_not_fit_is_a_row_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Learner, chosen: list[int], *others: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Learner, "step", full)
    written: list[object] = []
    rows = gpu_vlm.run(TINY, 100, written.append)["rows"]
    assert ["out of memory" in row["note"] for row in rows] == [True, True, False, True, True]
    assert rows[2]["answers_per_second"] > 0
    assert len(written) == 6, "after each row, and at the end"


def test_a_run_without_time_says_so() -> None:
    results = gpu_vlm.run(TINY, 0, lambda results: None)
    assert not results["rows"] and "time was spent" in results["notes"][0]


@pytest.mark.parametrize(("name", "least", "most"), [(LARGE, 2.0e9, 2.3e9), (SMALL, 0.5e9, 0.7e9)])
def test_the_models_have_the_size_of_their_names(name: str, least: float, most: float) -> None:
    (model,) = [model for model, _ in FULL.cells if model.name == f"{name}, 224 px"]
    config = VlmConfig.model_validate(model.student)
    assert not check(config, model.image_size)
    processor = text_processor(config, ["yes"])
    unused = (str(2000 + index) for index in range(model.words - len(processor.tokens)))
    assert isinstance(processor.tokens, Words) and processor.tokens.tokens[: len(SPECIAL)] == SPECIAL
    processor = replace(processor, tokens=Words([*processor.tokens.tokens, *unused]))
    with torch.device("meta"):
        vlm = build(config, processor, model.image_size, 1, 0)
    assert least < sum(part.numel() for part in vlm.parameters()) < most
