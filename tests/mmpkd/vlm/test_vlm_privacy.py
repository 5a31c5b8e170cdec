"""What a student of a credentialed cohort of questions leaves outside the cache, and what is said of it: no text of the
cohort, beside the words of a vocabulary, of which the files warn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpkd import evaluate
from mmpkd.config import TrialConfig, dump_trial
from mmpkd.export.__main__ import main as export
from mmpkd.export.answer_card import answer_card
from mmpkd.train import train
from mmpkd.vlm import exported, student
from mmpkd.vlm.training.teacher import FittedVlmTeacher
from tests.mmpkd.vlm.test_vlm_training import TEACHER, config_with

NAMES = ("plantedfile", "plantedpatient", "plantedcolumn")
TEXTS = ("plantedquestion of", "plantedanswer by", "plantedsample of")
WORDS = ("plantedquestion", "plantedanswer", "plantedname")


@pytest.fixture
def config(tmp_path: Path) -> TrialConfig:
    generator, raw, rows = np.random.default_rng(0), tmp_path / "raw", []
    raw.mkdir()
    for number in range(8):
        Image.fromarray(generator.integers(0, 256, (32, 32), np.uint8)).save(raw / f"plantedfile{number}.png")
        about = {"image": f"plantedfile{number}.png", "who": f"plantedpatient{number}", "plantedcolumn": "plantedcell"}
        rows.append(
            {**about, "question": "a plantedquestion of plantedname", "answer": "a plantedanswer by plantedname"}
        )
    parts = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    pd.DataFrame(rows).assign(part=parts).to_csv(raw / "rows.csv", index=False)
    teacher = {**TEACHER, "reads": ["image"], "hints": 0.5}
    cohort = {"reader": "vqa", "root": str(raw), "image_size": 32}
    cohort["params"] = {"file": "rows.csv", "patient": "who", "split": "part"}
    plain = config_with(2, teacher=teacher, corrections={"rounds": 1, "answers": 1}).model_dump(mode="json")
    return TrialConfig.model_validate(plain | {"cohort": cohort})


def holders(folder: Path, words: tuple[str, ...]) -> set[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name for path in files if any(word.encode() in path.read_bytes() for word in words)}


def test_nothing_planted_leaves_the_cache_beside_the_vocabulary(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def samples(self: FittedVlmTeacher, chosen: list[int], *rest: object) -> list[str]:
        return ["a plantedsample of plantedname"] * len(chosen)

    monkeypatch.setattr(FittedVlmTeacher, "samples", samples)
    cache, run, out = tmp_path / "cache", tmp_path / "run", tmp_path / "out"
    train(config, cache, run)
    (run / "config.yaml").write_text(dump_trial(config))
    export([f"model={run}", "to=transformers", f"out={out}"])
    said = "".join(capfd.readouterr())
    assert "warning: Access to the data is restricted" in said and "Its vocabulary is all words" in said
    evaluate.main([f"model={run}", f"config={run / 'config.yaml'}", f"cache={cache}", f"out={tmp_path / 'scores'}"])
    said += "".join(capfd.readouterr())
    assert not [word for word in (*NAMES, *WORDS, "plantedcell") if word in said]
    assert "answers.csv holds names of files and patients" in said
    assert holders(cache, (*NAMES, *TEXTS)), "the store holds them, or this test could not fail"
    assert {"last.pt", exported.NAME, "config.yaml"} <= {path.name for path in run.iterdir()}
    assert holders(run, (*NAMES, *TEXTS, "plantedcell")) == holders(out, (*NAMES, *TEXTS, "plantedcell")) == set()
    assert holders(run, WORDS) == {exported.NAME} and holders(out, WORDS) == {"processor.json"}
    for text in ((out / "README.md").read_text(), answer_card(student.read(run))):
        assert "Access to the data is restricted" in text and "Its vocabulary is all words" in text
