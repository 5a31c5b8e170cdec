"""What a trial's run is called, and which parameters it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mmpkd.config import TrialConfig, validate
from sweep.space.draw import Drawn, draw
from sweep.space.space import load_space
from sweep.tracking.trial_run import params_of, run_name, tags_of

SPACE = {
    "cohort": {"reader": "synthetic", "image_size": 48},
    "student": {"model": "vit_tiny_patch16_224"},
    "optimizer": {"lr": {"log_uniform": [1e-4, 1e-3]}, "weight_decay": {"maybe": {"log_uniform": [0.001, 0.1]}}},
    "epochs": 9,
    "arms": {
        "none": {},
        "tabular": {
            "teachers": {"findings": {"kind": "tabular", "control": "shuffled"}},
            "objectives": {
                "one_of": {
                    "logits": {
                        "logits": {
                            "weight": {"log_uniform": [1, 30]},
                            "params": {"temperature": {"log_uniform": [1, 8]}},
                        }
                    },
                    "features": {
                        "features": {"weight": {"log_uniform": [1, 30]}, "params": {"layer": {"int": [0, 2]}}},
                        "logits": {"weight": {"log_uniform": [1, 30]}},
                    },
                }
            },
        },
    },
    "search": {"trials": 4},
}


class Given:
    """Chooses given values; of everything else the lower bound or the first label."""

    def __init__(self, **values: Any):
        self._values = values

    def _of(self, name: str, default: Any) -> Any:
        return next((value for end, value in self._values.items() if name.endswith(end.replace("__", "."))), default)

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        return float(self._of(name, low))

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        return int(self._of(name, low))

    def category(self, name: str, labels: Any) -> str:
        return str(self._of(name, labels[0]))


def drawn_from(tmp_path: Path, arm: str, **values: Any) -> tuple[Drawn, TrialConfig]:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    space, mistakes = load_space(str(tmp_path / "a.yaml"))
    assert space is not None and not mistakes
    drawn = draw(space.arms[arm], Given(**values), arm)
    return drawn, validate(TrialConfig, drawn.config)


def test_a_name_says_what_was_drawn_for_the_arm(tmp_path: Path) -> None:
    drawn, _ = drawn_from(tmp_path, "tabular", temperature=5.62, weight=14.4)
    assert run_name(12, "tabular", drawn) == "12 tabular logits T=5.6 w=14"
    assert run_name(31, "tabular", drawn, 12, 1) == "31 tabular logits T=5.6 w=14, seed 2 of trial 12"


def test_two_values_of_one_name_are_told_apart(tmp_path: Path) -> None:
    drawn, _ = drawn_from(tmp_path, "tabular", objectives="features", layer=2, features__weight=3, logits__weight=120)
    assert run_name(3, "tabular", drawn) == "3 tabular features features.w=3 layer=2 logits.w=120"


def test_an_arm_without_draws_of_its_own_shows_those_of_all_arms(tmp_path: Path) -> None:
    drawn, _ = drawn_from(tmp_path, "none", lr=0.00071)
    assert run_name(0, "none", drawn) == "0 none no wd lr=0.00071"
    drawn, _ = drawn_from(tmp_path, "none", maybe="present")
    assert run_name(0, "none", drawn) == "0 none lr=0.0001 wd=0.001"


def test_a_long_name_keeps_its_ending(tmp_path: Path) -> None:
    drawn, _ = drawn_from(tmp_path, "tabular")
    name = run_name(12, "a" * 150, drawn, 3, 2)
    assert len(name) == 100 and name.endswith("aaa…, seed 3 of trial 3")


def test_each_drawn_value_is_a_parameter_once_under_its_path(tmp_path: Path) -> None:
    drawn, config = drawn_from(tmp_path, "tabular", temperature=5.62, weight=14.4)
    assert params_of(drawn, config) == {
        "epochs": 9,
        "seed": 0,
        "student.model": "vit_tiny_patch16_224",
        "cohort.image_size": 48,
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": "absent",
        "objectives": "logits",
        "objectives.logits.weight": 14.4,
        "objectives.logits.params.temperature": 5.62,
    }
    drawn, config = drawn_from(tmp_path, "none", maybe="present")
    assert params_of(drawn, config)["optimizer.weight_decay"] == 0.001


def test_tags_name_controls_references_and_further_seeds(tmp_path: Path) -> None:
    _, config = drawn_from(tmp_path, "tabular")
    assert tags_of(config, 4) == {"control": "findings", "repeat_of": "4"}
    _, config = drawn_from(tmp_path, "none")
    assert tags_of(config, None) == {}
    student = config.student.model_copy(update={"reads": ("image", "view")})
    assert tags_of(config.model_copy(update={"student": student}), None) == {"reference": "yes"}


@pytest.mark.parametrize(("value", "text"), [(5.62, "5.6"), (120.4, "120"), (0.00071, "0.00071"), (3e-5, "3e-05")])
def test_numbers_are_short(tmp_path: Path, value: float, text: str) -> None:
    drawn, _ = drawn_from(tmp_path, "none", lr=value)
    assert run_name(0, "none", drawn).endswith(f" lr={text}")
