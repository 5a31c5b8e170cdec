"""benchmarks/known_answer_vqa.py trains and reports, and its claims fail where they should."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import campaign, known_answer_vqa
from mmpkd.build import check
from mmpkd.cohort import facts
from mmpkd.config import TrialConfig

Key = tuple[str, int]  # arm and seed
Configs = Mapping[Key, TrialConfig]


def test_the_arms_take_the_same_number_of_steps(tmp_path: Path) -> None:
    configs = known_answer_vqa.QUICK.configs()
    scores = {arm: known_answer_vqa.train_one(configs[arm, 100], tmp_path) for arm in ("labels", "corrected")}
    assert set(known_answer_vqa.KEPT) <= set(scores["labels"])
    assert set(known_answer_vqa.TEACHER) <= set(scores["corrected"])
    assert scores["labels"]["steps"] == scores["corrected"]["steps"]


def test_the_report_and_the_exit_status_are_those_of_the_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scores(configs: Configs, train_one: object, workers: int, cache: Path, kept: Path) -> dict[Key, Any]:
        names = (*known_answer_vqa.KEPT, *known_answer_vqa.CHANCE, *known_answer_vqa.TEACHER)
        return {(arm, seed): dict.fromkeys(names, 0.8 if arm == "pseudo" else 0.6) for arm, seed in configs}

    monkeypatch.setattr(campaign, "run", scores)
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks/known_answer_vqa.py", "--quick", f"--json={figures}"])
    with pytest.raises(SystemExit) as ended:
        known_answer_vqa.main()
    assert ended.value.code == 0
    assert len(json.loads(figures.read_text())["claims"]) == 3
    assert "+0.200 [+0.200, +0.200]" in capsys.readouterr().out


def test_every_arm_is_a_sound_configuration() -> None:
    configs = replace(known_answer_vqa.Design(seeds=(20, 21)), images=16).configs()
    of_seed = {arm: config for (arm, seed), config in configs.items() if seed == 20}
    assert set(of_seed) == set(known_answer_vqa.ARMS)
    assert not any(check(config, facts(config.cohort)) for config in of_seed.values())
    seeds = [(config.cohort.params["seed"], config.seed) for config in of_seed.values()]
    assert seeds == [(20, 20)] * len(of_seed)


@pytest.mark.parametrize(
    ("pseudo", "shuffled", "recall", "holds"),
    [
        (0.8, 0.5, 0.9, [True, True, True]),
        (0.6, 0.8, 0.2, [False, False, False]),  # the gain of pseudo is as large as its scatter
    ],
)
def test_claims_follow_the_intervals(pseudo: float, shuffled: float, recall: float, holds: list[bool]) -> None:
    means = {"labels": 0.6, "pseudo": pseudo, "shuffled": shuffled}
    scores = {
        arm: {
            seed: {
                known_answer_vqa.PRIMARY: means.get(arm, 0.6) + 0.02 * (seed - 2) * (arm == "pseudo"),
                known_answer_vqa.POINTING: recall,
            }
            for seed in range(5)
        }
        for arm in known_answer_vqa.ARMS
    }
    assert list(known_answer_vqa.verdicts(scores).values()) == holds
