"""Equal tuning: whatever a trial of an arm costs, and however many of them are stopped, arms get their shares."""

from __future__ import annotations

import heapq
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmpkd.config import TrialConfig
from sweep.search.halving import ArmHalving
from sweep.search.searcher import Search
from sweep.search.state import SweepState
from sweep.search.studies import Studies
from sweep.space.space import load_space
from sweep.storage.events import Spool
from sweep.storage.layout import SweepFolder
from tests.sweep.fake import SPACE

GOALS = ("val/auroc", "val/pointing")
EPOCHS, SLOTS = 9, 4


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not wait until the disk has each line of the journal, which takes half of the time."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def metrics(job: dict[str, Any], epoch: int) -> dict[str, float]:
    """Scores that say something of the configuration, so that halving has something to stop."""
    config = TrialConfig.model_validate_json(job["trial"])
    noise = random.Random(f"{job['number']} {epoch}").uniform(0, 0.1)
    return {
        "val/auroc": 0.5 + config.optimizer.lr * epoch + noise,
        "val/pointing": config.optimizer.weight_decay + noise,
    }


def tuned(tmp_path: Path, cost: dict[str, float], *overrides: str) -> Search:
    """A sweep on so many slots by a simulated clock; `cost` is of an epoch, in seconds, by arm. It ends at a limit with
    its trials running, as a real one does."""
    (tmp_path / "fake.yaml").write_text(SPACE)
    words = (f"epochs={EPOCHS}", "search.early_stopping={reduction: 3}", "search.sampler=random", *overrides)
    space, mistakes = load_space(str(tmp_path / "fake.yaml"), words)
    assert space is not None and not mistakes
    studies = Studies(SweepFolder(tmp_path), space, GOALS)
    state = SweepState(space, GOALS, studies, Spool(SweepFolder(tmp_path)), SweepFolder(tmp_path))
    search = Search(space, state, SweepFolder(tmp_path), tmp_path / "cache", tmp_path / "store", wait=True)
    search.max_running = SLOTS
    halving = ArmHalving(list(space.arms), GOALS, [3], 3, on_arrival=studies.record_arrival)
    clock: list[tuple[float, str, dict[str, Any], int]] = []  # when an epoch ends, of whom, which
    now, started = 0.0, 0
    while True:
        while len(clock) < SLOTS and isinstance(job := search.suggest(f"id{started}"), dict):
            heapq.heappush(clock, (now + cost[job["arm"]], f"id{started}", job, 1))
            started += 1
        if not clock or search.halt is not None:
            return search
        now, trial_id, job, epoch = heapq.heappop(clock)
        seconds, scores = cost[job["arm"]], metrics(job, epoch)
        report = {"epoch": epoch, "step": epoch, "seconds": seconds, "terms": {}, "metrics": scores}
        if halving.decide(job, report) and epoch < EPOCHS:
            search.on_trial_result(trial_id, {"reports": [report]})
            heapq.heappush(clock, (now + seconds, trial_id, job, epoch + 1))
        else:
            search.on_trial_complete(trial_id, {"reports": [report]})


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize("cost", [(1.0, 1.0), (1.0, 5.0), (5.0, 1.0)])
def test_arms_get_their_shares_to_a_trial_per_slot(
    tmp_path: Path, cost: tuple[float, float], share: float, repeats: int
) -> None:
    costs = dict(zip(("none", "tabular"), cost, strict=True))
    words = ("trials=80", "search.equal=hours", f"search.shares={{tabular: {share}}}", f"search.repeats={repeats}")
    search = tuned(tmp_path, costs, *words)
    states = Counter(one.state for one in search.records())
    assert states["pruned"] > 20 and states["complete"] > 10
    ledger = search.state.ledger
    off = ledger.spent["tabular"] - share * ledger.total
    assert abs(off) <= SLOTS * EPOCHS * max(cost)


@pytest.mark.parametrize("budget", [None, 0.1, 0.2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_an_expensive_arm_gets_equally_many_configurations(tmp_path: Path, repeats: int, budget: float | None) -> None:
    words = ("trials=41", f"search.repeats={repeats}", *([f"budget_device_hours={budget}"] if budget else []))
    search = tuned(tmp_path, {"none": 1.0, "tabular": 10.0}, *words)
    records = [record for record in search.state.studies.records() if record.repeat_of is None]
    arms = [record.arm for record in records]
    assert arms == [("none", "tabular")[index % 2] for index in range(len(arms))], "none is ever ahead by two"
    assert len(arms) == 41 if budget is None else 10 < len(arms) < 41
    started, ledger = Counter(arms), search.state.ledger
    assert started == ledger.started and ledger.spent["tabular"] > 2 * ledger.spent["none"]
    ended = Counter(record.arm for record in records if record.state != "running")
    assert sum((started - ended).values()) <= SLOTS, "what runs when a limit ends the sweep"
