"""The space `med_grit` with generated dialogues and tiny models in folders: its plan, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmpkd.vlm.config import VisionConfig
from sweep.plan.plan import Plan, plan
from sweep.space.space import load_space
from tests.mmpkd.cohort.question_trees import write_med_grit
from tests.mmpkd.vlm.model_folders import WORDS, write_tiny_model


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    """Returns the plan of the space with a tiny model, named by a path relative to the current folder."""
    write_med_grit(tmp_path / "data")
    write_tiny_model(tmp_path / "qwen")

    def planned_with(*overrides: str) -> Plan:
        words = [f"cohort.root={tmp_path / 'data'}", "student.model=qwen", *overrides]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            space, mistakes = load_space("med_grit", words)
        assert space is not None
        return plan(space, mistakes)

    return planned_with


def test_each_arm_adds_one_idea(planned: Callable[..., Plan], tmp_path: Path):
    configs = {arm: of_arm[0] for arm, of_arm in planned().configs.items()}
    ideas = {
        arm: (
            config.distillation.kl.weight > 0,
            config.student.positions.border_gap,
            config.distillation.corrections.rounds,
        )
        for arm, config in configs.items()
    }
    assert ideas == {
        "none": (False, 1, 0),
        "kd": (True, 1, 0),
        "kd_positions": (True, 2, 0),
        "kd_positions_corrections": (True, 2, 1),
    }
    models = {(config.student.model, config.distillation.teacher.model) for config in configs.values()}
    assert models == {(str(tmp_path / "qwen"), str(tmp_path / "qwen"))}


def test_models_that_do_not_fit_are_refused_in_words(planned: Callable[..., Plan], tmp_path: Path):
    write_tiny_model(tmp_path / "other_words", words=WORDS[::-1])
    write_tiny_model(tmp_path / "other_patches", vision=VisionConfig(depth=1, width=16, heads=2, patch_size=4))

    def mistakes(*overrides: str) -> list[str]:
        return [str(mistake) for mistake in planned(*overrides).mistakes]

    (missing,) = mistakes("student.model=nowhere", "distillation.teacher.model=qwen")
    assert missing.startswith("student.model: 'nowhere' is neither a family nor a folder (known: qwen2_vl, qwen3_vl)")
    assert "hf download" in missing
    for student, teacher, where in ("nowhere", "qwen3_vl", "student"), ("qwen3_vl", "nowhere", "distillation.teacher"):
        wrong = mistakes(f"student.model={student}", f"distillation.teacher.model={teacher}")
        assert any(line.startswith(f"{where}.model: 'nowhere' is neither") for line in wrong)
        assert not any("another tokenizer" in line for line in wrong), "a folder that cannot be read has none"
    apart = mistakes("student.model=qwen", "distillation.teacher.model=qwen3_vl")
    assert any("another tokenizer" in line for line in apart)
    (words,) = mistakes("distillation.teacher.model=other_words")
    assert words.startswith("distillation.teacher.model: its tokenizer is not the student's: 12 of ")
    (patches,) = mistakes("distillation.teacher.model=other_patches")
    assert patches.startswith(
        "distillation.teacher.model: its visual tokens cover 8 x 8 pixels, and those of the student 16"
    )
    size = mistakes("cohort.image_size=450")
    assert size[0].startswith(
        "student.model: a visual token covers 16 x 16 pixels, which do not fill images of 450; set"
    )


def test_a_model_that_nobody_names_is_one_mistake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    _, mistakes = load_space("med_grit", ["cohort.root=/data"])
    unset = "the environment variable DATA_ROOT is not set; set it, or add student.model=... to the command"
    assert mistakes == [("student.model", unset)]
