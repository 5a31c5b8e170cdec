"""The reduced form of benchmarks/known_answer_vqa.py runs and reports, and its claims fail where they should."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import campaign, known_answer_vqa
from mmpkd.build import check
from mmpkd.cohort import facts


def test_the_reduced_form_runs_all_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainings run in this process, because each new one would load torch."""
    figures = tmp_path / "figures.json"
    words = ["--quick", "--workers=1", f"--cache={tmp_path}", f"--json={figures}"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/known_answer_vqa.py", *words])
    monkeypatch.setattr(campaign, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    with pytest.raises(SystemExit) as ended:
        known_answer_vqa.main()
    content = json.loads(figures.read_text())
    assert ended.value.code == int(not all(content["claims"].values()))
    scores = content["scores"]
    assert set(scores) == set(known_answer_vqa.ARMS)
    steps = {arm: {seed: values["steps"] for seed, values in by_seed.items()} for arm, by_seed in scores.items()}
    assert all(of_arm == steps["labels"] for of_arm in steps.values()), "all arms take the same number of steps"


def test_every_arm_is_a_sound_configuration() -> None:
    configs = replace(known_answer_vqa.Design(), images=16).configs()
    of_seed = {arm: config for (arm, seed), config in configs.items() if seed == 1}
    assert set(of_seed) == set(known_answer_vqa.ARMS)
    assert not any(check(config, facts(config.cohort)) for config in of_seed.values())
    seeds = [(config.cohort.params["seed"], config.seed) for config in of_seed.values()]
    assert seeds == [(1, 1)] * len(of_seed)


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
