"""Which arms of a sweep are compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mmpkd.types import Mistake
from sweep.types import Record
from sweep.verdict.proposal import compared_arms


def trial(arm: str, state: Any = "complete", config: str = "{}") -> Record:
    return Record(0, arm, state, 1, 1.0, {}, {}, config)


def test_an_arm_whose_trials_all_failed_is_not_left_out_in_silence() -> None:
    shuffled = '{"teachers": {"table": {"control": "shuffled"}}}'
    shown = [trial("none"), trial("tabular"), trial("text", "failed"), trial("shuffled", config=shuffled)]
    trials: Any = SimpleNamespace(shown=shown, space=SimpleNamespace(arms=["none", "tabular", "text", "shuffled"]))
    mistakes: list[Mistake] = []
    assert compared_arms(trials, None, mistakes) == ["tabular"]
    problem = "no complete trial of text, which the sweep was to compare with none"
    assert mistakes == [Mistake("arms", f"{problem}; continue the sweep, or leave it out with arms=tabular")]
    assert compared_arms(trials, ["tabular"], mistakes) == ["tabular"] and len(mistakes) == 1
