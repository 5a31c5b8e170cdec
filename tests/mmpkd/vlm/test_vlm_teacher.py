"""The teacher of a student that answers: when it is another one, what lies beside it in the cache, and its control."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mmpkd import checkpoint
from mmpkd.config import TrialConfig
from mmpkd.train import train
from mmpkd.types import ConfigError, TeacherError
from mmpkd.vlm.scores.goals import goals
from mmpkd.vlm.training import losses
from mmpkd.vlm.training.items import Items, exchanged
from tests.mmpkd.vlm.model_folders import write_tiny_model
from tests.mmpkd.vlm.test_vlm_training import TEACHER, config_with, run_of


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model")


def of_folder(folder: Path, **changes: Any) -> TrialConfig:
    """Returns the configuration of a student that begins from a folder, as does its teacher, which does not learn."""
    content = config_with(1, teacher={**TEACHER, "model": str(folder), "epochs": 0, "box_steps": 24}, **changes)
    student = {"kind": "vlm", "model": str(folder), "max_new_tokens": 3}
    return TrialConfig.model_validate(content.model_dump() | {"student": student})


def test_other_weights_under_the_same_path_are_another_teacher_and_another_training(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config, cache = of_folder(folder, pseudo_labels={"use": True}), tmp_path / "cache"
    train(config, cache, tmp_path / "out")
    before = run_of(config, tmp_path).teacher
    moved = run_of(of_folder(model_folder, pseudo_labels={"use": True}), tmp_path).teacher
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name] = 2 * weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    after = run_of(config, tmp_path).teacher
    assert before is not None and moved is not None and after is not None
    assert moved.folder == before.folder, "the path does not count"
    assert after.folder != before.folder
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        train(config, cache, tmp_path / "out", tmp_path / "out" / checkpoint.NAME)


def test_a_teacher_that_learned_with_another_weight_decay_is_another_one(tmp_path: Path) -> None:
    config = config_with(teacher={**TEACHER, "epochs": 1}, kl={"weight": 1.0})
    first = run_of(config, tmp_path).teacher
    optimizer = config.optimizer.model_copy(update={"weight_decay": 0.5})
    second = run_of(config.model_copy(update={"optimizer": optimizer}), tmp_path).teacher
    assert first is not None and second is not None and first.folder != second.folder


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialConfig, Path]:
    """A configuration, and the cache with its teacher, whose answers and logits are kept."""
    config = config_with(1, teacher=TEACHER, kl={"weight": 1.0, "top_k": 3}, pseudo_labels={"use": True})
    folder = tmp_path_factory.mktemp("taught")
    run_of(config, folder)
    return config, folder / "cache"


@pytest.mark.parametrize("name", ["answers-*.json", "logits-*.npz", "manifest.json", "vlm.safetensors"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", flipped])
def test_damage_beside_a_teacher_is_an_error_with_the_command_that_mends_it(
    name: str, damage: Callable[[bytes], bytes], taught: tuple[TrialConfig, Path], tmp_path: Path
) -> None:
    config, cache = taught
    shutil.copytree(cache, tmp_path / "cache")
    (path,) = (tmp_path / "cache" / "teachers").glob(f"*/{name}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TeacherError, match=r"distillation.teacher: .*delete it \(rm "):
        run_of(config, tmp_path)


def test_the_lock_of_a_teacher_that_cannot_be_taken_is_a_clear_error(
    taught: tuple[TrialConfig, Path], tmp_path: Path
) -> None:
    config, cache = taught
    shutil.copytree(cache / "stores", tmp_path / "cache" / "stores")
    name = next((cache / "teachers").glob("vlm-*/")).name
    (tmp_path / "cache" / "teachers" / f"{name}.lock").mkdir(parents=True)
    with pytest.raises(TeacherError, match=r"cannot be locked .*cache=DIR"):
        run_of(config, tmp_path)


def test_a_shuffled_teacher_sees_no_image_of_the_same_patient_or_is_refused() -> None:
    def store(patients: list[int]) -> Any:
        return SimpleNamespace(patient_N=np.array(patients), sample_ids=np.arange(len(patients)))

    rows = np.arange(2, 10)
    for seed in range(20):
        even = store([7, 7, 1, 1, 1, 1, 2, 2, 3, 4])
        shown = exchanged(even, rows, seed)
        assert sorted(shown[rows]) == rows.tolist() and shown[:2].tolist() == [0, 1]
        assert (even.patient_N[shown[rows]] != even.patient_N[rows]).all()
    with pytest.raises(TeacherError, match="one patient has too many"):
        exchanged(store([7, 7, 1, 1, 1, 1, 1, 2, 3, 4]), rows, 0)


def test_a_teacher_with_more_words_is_cut_before_its_logits_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(config_with(teacher=TEACHER, kl={"weight": 1.0}), tmp_path)
    assert run.teacher is not None
    num_words = len(run.processor.tokens) - 3
    monkeypatch.setattr(Items, "num_words", num_words)
    kept = losses.most_likely(run.teacher.logits([min(run.targets.true)], run.targets.true).values_Tk, 10_000)
    assert kept.words_Tk is not None and kept.words_Tk.max() < num_words


def test_goals_of_a_training_follow_the_rule_of_the_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose validation answers are short is one of texts if other answers of the cohort are long."""
    run = run_of(config_with(), tmp_path)
    answers = [f"{answer} it is" for answer in run.val.table["answer"]]
    monkeypatch.setattr(run, "answers", lambda: answers)
    monkeypatch.setattr(run, "judged", {**run.judged, "MII": "rouge_l"})
    expected = goals(run.val.scored(answers), run.judged)["answer"]
    assert run.metrics(False)["val/answer"] == expected < goals(run.val.scored(answers))["answer"]
