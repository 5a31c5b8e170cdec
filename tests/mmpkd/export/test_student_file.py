"""The exported student is one file with the same predictions, and holds nothing of the cohort."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmpkd import checkpoint
from mmpkd.cohort.decode import Depth
from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.export import student_file
from mmpkd.export.origin import CALIBRATED, Origin
from mmpkd.export.student_file import Exported, best_threshold, fit_temperature
from mmpkd.train import train
from mmpkd.types import ConfigError, lay_out

BINARY, FINDINGS = lay_out([("malignant", "binary", ("benign", "malignant")), ("signs", "multilabel", ("a", "b"))])


@pytest.fixture(scope="module")
def folder(tiny_trial: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(tiny_trial, cache, folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    return student_file.read(folder)


def test_the_exported_student_predicts_like_the_trained_student(
    exported: Exported, folder: Path, tiny_trial: TrialConfig, cache: Path
) -> None:
    weights = checkpoint.read(folder / "last.pt")["student"]
    assert all(torch.equal(weights[name], value) for name, value in exported.student.state_dict().items())
    store = prepare(tiny_trial.cohort, cache)
    card = exported.card
    assert (card.tasks, card.image_size, card.channels) == (store.facts.tasks, 32, 1)
    assert card.depth == Depth() and card.trial == tiny_trial.fingerprint()
    image_BCHW = torch.tensor(store.image_NCHW[:4]).float() / 255
    with torch.inference_mode():
        logits_BK = exported.student(image_BCHW).logits_BK.double().numpy()
    temperature = card.temperature["pattern"]
    odds = np.exp(logits_BK / temperature)
    assert np.allclose(exported.probabilities(logits_BK), odds / odds.sum(axis=1, keepdims=True))


def test_the_file_holds_weights_and_no_sample(folder: Path, tiny_trial: TrialConfig, cache: Path) -> None:
    content = (folder / student_file.NAME).read_bytes()
    store = prepare(tiny_trial.cohort, cache)
    assert store.sample_ids[0].encode() not in content
    assert not [name for name in store.facts.columns if f'"{name}"'.encode() in content]
    assert str(cache).encode() not in content


def test_the_file_states_its_training_in_numbers(
    exported: Exported, folder: Path, tiny_trial: TrialConfig, cache: Path, tmp_path: Path
) -> None:
    origin, store = exported.origin, prepare(tiny_trial.cohort, cache)
    assert origin is not None
    rows = {part: store.rows(part) for part in ("train", "val")}
    assert origin.images == {"train": 60, "val": 30} == {part: len(row) for part, row in rows.items()}
    assert origin.patients == {part: len(set(store.patient_ids[row])) for part, row in rows.items()}
    assert (origin.reader, origin.teachers, origin.objectives) == ("synthetic", ("tabular",), ("features", "logits"))
    last = checkpoint.read(folder / "last.pt")["history"][-1]["metrics"]
    wanted = {name: value for name, value in last.items() if name.startswith("val/")}
    assert origin.scores.keys() == {*wanted, *CALIBRATED.values()} and origin.scores["val/auroc"] == wanted["val/auroc"]
    with torch.inference_mode():
        logits_NK = exported.student(torch.tensor(store.image_NCHW[rows["val"]]).float() / 255).logits_BK.numpy()
    errors_NK = (exported.probabilities(logits_NK) - store.target_NK[rows["val"]]) ** 2
    assert origin.scores["val/brier_calibrated"] == pytest.approx(errors_NK.sum(axis=1).mean(), abs=1e-6)
    assert origin.scores["val/brier_calibrated"] < wanted["val/brier"]  # temperatures are fitted on these images
    content = (folder / student_file.NAME).read_bytes()
    place = content.index(b'reader\\": \\"synthetic') + 15
    (tmp_path / student_file.NAME).write_bytes(content[:place] + b"x" + content[place + 1 :])
    with pytest.raises(ConfigError, match="is damaged"):
        student_file.read(tmp_path)
    older = student_file.read(student_file.write(tmp_path, exported.student, exported.card, exported.seen))
    assert older.origin is None and older.card == exported.card
    stated = json.loads(origin.dump())
    assert Origin.load(json.dumps(stated | {"later": 1})) == origin
    del stated["pretrained"]
    assert Origin.load(json.dumps(stated)) is None


def test_temperature_by_hand() -> None:
    """Logits of 2 are right in three of four cases: sigmoid(2 / T) = 3/4, so T = 2 / ln 3."""
    logits_NK = np.array([[2.0, 0, 0]] * 4 + [[-2.0, 0, 0]] * 4)
    target_NK = np.array([[1, 0, 0]] * 3 + [[0, 0, 0]] + [[0, 0, 0]] * 3 + [[1, 0, 0]], np.float32)
    known_NK = np.ones((8, 3), bool)
    assert fit_temperature(logits_NK, target_NK, known_NK, BINARY) == pytest.approx(2 / math.log(3), rel=1e-3)
    unknown = np.r_[logits_NK, [[9.0, 0, 0]]], np.r_[target_NK, [[0, 0, 0]]], np.r_[known_NK, [[False] * 3]]
    assert fit_temperature(*unknown, BINARY) == pytest.approx(2 / math.log(3), rel=1e-3)


def test_threshold_by_hand() -> None:
    """A threshold between .3 and .6 has sensitivity 2/3 and specificity 1; no other threshold is better."""
    probability_N, target_N = np.array([0.1, 0.2, 0.3, 0.6, 0.7]), np.array([0, 1, 0, 1, 1])
    assert best_threshold(probability_N, target_N) == pytest.approx(0.45)
    assert best_threshold(probability_N, np.ones(5)) == 0.5


def test_files_without_an_exported_student_are_refused(folder: Path, tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            student_file.read(path)
        return str(caught.value)

    assert "no exported student at" in message(tmp_path)
    for name in ("best.yaml", "best.YML"):
        train = f"python -m mmpkd.train config={tmp_path / name}"
        assert f"{name} is a configuration, not a student; train it first: {train}" in message(tmp_path / name)
    assert "last.pt is the checkpoint from which a training continues" in message(folder / "last.pt")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((folder / student_file.NAME).read_bytes()[:1000])
    assert "not a readable safetensors file" in message(torn)
    weights = load_file(folder / student_file.NAME)
    bare = tmp_path / "bare.safetensors"
    save_file(weights, bare)
    assert "has no card" in message(bare)
    save_file(weights, bare, {"format": "9", "card": "{}"})
    assert "has format 9" in message(bare)
    save_file(weights, bare, {"format": "1", "card": "{}"})
    assert "has a damaged card" in message(bare)
    content = (folder / student_file.NAME).read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    for place in (begin, (begin + len(content)) // 2, len(content) - 1, content.index(b"temperature") + 30):
        changed = bytearray(content)
        changed[place] ^= 1
        bare.write_bytes(changed)
        assert "damaged" in message(bare), f"byte {place} is another now"
    bare.unlink()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / student_file.NAME).write_bytes((folder / student_file.NAME).read_bytes())
    assert "holds 2 exported students" in message(tmp_path)


def test_pixel_statistics_are_exported(exported: Exported, tmp_path: Path) -> None:
    card = replace(exported.card, mean=(0.4,), std=(0.2,))
    read = student_file.read(student_file.write(tmp_path, exported.student, card, exported.seen))
    assert read.card == card and read.student.mean.item() == pytest.approx(0.4)
    assert read.student.std.item() == pytest.approx(0.2)
