"""A reduced benchmarks/known_answer.py: the effect is present, and absent in the control."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import campaign, known_answer, known_verdict
from mmpkd.build import check
from mmpkd.cohort import facts
from tests.patched import patch_within


def test_distillation_shows_the_effect_and_shuffled_outputs_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainings run in this process, because each new one would load torch."""
    figures = tmp_path / "figures.json"
    words = ["--quick", "--workers=1", f"--cache={tmp_path}", f"--json={figures}"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/known_answer.py", *words])
    monkeypatch.setattr(campaign, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    with pytest.raises(SystemExit) as ended:
        known_answer.main()
    assert ended.value.code == 0
    content = json.loads(figures.read_text())
    assert len(content["claims"]) == 4 and all(content["claims"].values())
    scores = content["scores"]
    assert set(scores) == {"none", "distilled", "shuffled"}
    for seed, distilled in scores["distilled"].items():
        assert distilled["val/pointing"] > distilled["val/pointing_chance"] > scores["none"][seed]["val/pointing"]


def test_every_row_of_all_is_a_sound_configuration() -> None:
    designed = known_answer.Design(known_answer.SEEDS_OF_ALL, arms=tuple(known_answer.ALL)).configs()
    assert len(designed) <= 175
    of_one_seed = [config for (_, seed), config in designed.items() if seed == known_answer.SEEDS_OF_ALL[0]]
    assert len(of_one_seed) == len(known_answer.ALL), "seeds differ in nothing that can be unsound"
    assert all(not check(config, facts(config.cohort)) for config in of_one_seed)


def test_all_needs_a_gain_that_survives_the_correction_and_a_control_without_it() -> None:
    def scored(row: float, control: float, noise: float) -> dict[str, dict[int, dict[str, float]]]:
        value = {arm: row if arm in known_answer.ROWS else control for arm in known_answer.ALL}
        value |= {"none": 0.5, "none, faint": 0.5}
        return {
            arm: {
                seed: dict.fromkeys(known_answer.GOALS, mean + (seed - 2) * noise * (arm in known_answer.ROWS))
                for seed in range(5)
            }
            for arm, mean in value.items()
        }

    assert all(known_answer.verdicts_of_all(scored(0.9, 0.55, 0.01)).values())
    # an interval of [0.05, 0.75] is above zero, its p-value of 0.03 times the number of tests is not below 0.05
    wide = known_answer.verdicts_of_all(scored(0.9, 0.55, 0.178))
    assert not any(holds for claim, holds in wide.items() if "gains" in claim)
    copied = known_answer.verdicts_of_all(scored(0.9, 0.65, 0.01))  # the control has 0.375 of the gain
    assert not any(copied.values())


def test_a_stopped_confirmation_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_within(monkeypatch, known_verdict, subprocess, run=lambda *args, **options: SimpleNamespace(returncode=130))
    with pytest.raises(SystemExit) as ended:
        known_verdict.verdict_of(tmp_path, ["epochs=2"])
    command = f"python benchmarks/known_verdict.py --folder {tmp_path} epochs=2"
    assert ended.value.code == (
        f"sweep.run has ended with status 130, so there is no verdict; this continues:\n  {command}"
    )
