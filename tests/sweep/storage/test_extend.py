"""A sweep whose space changes: which trials stay, and what becomes of the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.trial import TrialState

from sweep.clean import of_sweep
from sweep.search.searcher import Search
from sweep.status import as_json
from sweep.storage.layout import SweepFolder
from sweep.storage.reader import how_to_continue, read_sweep
from sweep.types import Arrival
from tests.sweep import fake
from tests.sweep.fake import play, play_all
from tests.sweep.swept import (
    GOALS,
    dead,
    drawn,
    events,
    from_lr,
    further,
    left,
    numbers,
    refused,
    states,
    swept,
    untracked,
)

__all__ = ["dead", "left", "untracked"]  # fixtures


# --- who stays ---


def test_trials_that_lie_in_the_new_space_stay_and_the_others_do_not(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    stay = sorted(number for number, lr in drawn(folder).items() if lr >= low)
    leave = sorted(set(range(8)) - set(stay))
    (goes_on,), (cut,) = {6, 7} & set(stay), {6, 7} & set(leave)
    assert len(stay) > 2 and len(leave) > 2
    for number in (goes_on, cut):
        (folder / "checkpoints" / str(number)).mkdir(parents=True, exist_ok=True)

    jobs: list[dict[str, Any]] = []
    words = ("trials=10", from_lr(low), "extend=true")
    search, text = swept(tmp_path, *words, play=lambda search: jobs.extend(play_all(search)))
    told = f"extended: {len(stay)} of 8 earlier trials lie in the new space and stay; {len(leave)} are left behind"
    assert told in text
    new = list(range(8, 8 + 10 - len(stay)))
    assert [job["number"] for job in jobs] == [goes_on, *new], "none is run that was"
    assert numbers(folder) == [*stay, *new] and min(drawn(folder)[number] for number in new) >= low
    assert {record.state for record in search.records()} == {"complete"}
    assert set(pd.read_parquet(folder / "epochs.parquet")["number"]) == {*stay, *new}

    assert Counter(event["number"] for event in events(folder, "end")) == Counter([*range(8), *new])
    ended = {event["number"]: (event["state"], event["cause"]) for event in events(folder, "end")}
    assert ended[cut] == ("failed", "extended") and ended[goes_on] == ("complete", "")
    assert not (folder / "checkpoints" / str(cut)).exists() and (folder / "checkpoints" / str(goes_on)).exists()
    assert sum(states(folder).values(), Counter()) == {"COMPLETE": 6 + 10, "FAIL": 2}, "nothing is left running"
    samplers = search.state.samplers.by_arm.values()
    assert sum(len(sampler.study.get_trials(states=(TrialState.COMPLETE,))) for sampler in samplers) == 10

    again, text = swept(tmp_path, *words)
    assert "extended" not in text and [one.number for one in again.records()] == [*stay, *new]
    assert json.loads((folder / "plan.json").read_text())["generation"] == 1


def test_what_is_copied_has_all_that_it_had(tmp_path: Path) -> None:
    def some_stop(search: Search) -> None:
        for index in range(4):
            job = search.suggest(str(index))
            search.state.studies.record_arrival(Arrival(job["number"], job["arm"], 1, (0.5, 0.25), index % 2 == 0))
            play(search, str(index), job, epochs=4 if index % 2 == 0 else 1)

    before, _ = swept(tmp_path, "trials=4", play=some_stop)
    after, text = swept(tmp_path, "trials=4", "search.sampler=random", "extend=true")
    assert "extended: 4 of 4 earlier trials lie in the new space and stay\n" in text
    assert after.records() == before.records() and {one.state for one in after.records()} == {"complete", "pruned"}
    was, now = before.state.studies, after.state.studies
    assert list(now.arrivals()) == list(was.arrivals()) and len(list(now.arrivals())) == 4
    assert [now.learned(number) for number in range(4)] == [was.learned(number) for number in range(4)]
    assert [now.proposal(number).config for number in range(4)] == [was.proposal(number).config for number in range(4)]


def test_a_leaf_may_be_freed_and_fixed(tmp_path: Path) -> None:
    fixed, freed = "optimizer.weight_decay=0.5", "optimizer.batch_size={choice: [16, 32]}"  # 32 by default
    swept(tmp_path, "trials=4", fixed)
    search, text = swept(tmp_path, "trials=6", freed, "extend=true")
    assert "extended: 4 of 4 earlier trials lie in the new space and stay\n" in text
    assert search.state.studies.proposal(0).params["none/optimizer.weight_decay"] == 0.5
    lr = drawn(tmp_path / "runs" / "fake")[0]
    search, text = swept(tmp_path, "trials=6", f"optimizer.lr={lr!r}", freed, "extend=true")
    assert "extended: 1 of 6 earlier trials" in text and search.finished[0].sampled["none/optimizer.lr"] == lr


def test_arms_come_and_go(tmp_path: Path) -> None:
    swept(tmp_path, "trials=4")
    _, text = swept(tmp_path, "trials=4", "arms.tabular=false", "arms.none={optimizer: {lr: 0.5}}", "extend=true")
    assert "extended: 0 of 4 earlier trials" in text
    search, text = swept(tmp_path, "trials=4", "arms.other={schedule: {warmup: {uniform: [0, 0.5]}}}", "extend=true")
    assert "extended: 4 of 8 earlier trials" in text, "of the first space, which this one holds"
    assert [one.number for one in search.records()] == [0, 1, 2, 3]


def test_the_way_back_brings_back_what_was_left_behind(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    (cut,) = (number for number, lr in drawn(folder).items() if number > 5 and lr < low)
    swept(tmp_path, "trials=9", from_lr(low), "extend=true")
    count = len(drawn(folder))
    search, text = swept(tmp_path, f"trials={count - 1}", "extend=true")
    assert f"extended: {count - 1} of {count} earlier trials" in text and "; 1 is left behind" in text
    assert numbers(folder) == sorted({*range(count)} - {cut}), "but for the one that was cut off, and never ended"
    assert {one.state for one in search.records()} == {"complete"} and search.state.studies.left_behind == [cut]


def test_without_a_complete_trial_there_is_no_best(tmp_path: Path) -> None:
    swept(tmp_path, "trials=2")
    assert (tmp_path / "runs" / "fake" / "best.yaml").exists()
    swept(tmp_path, "trials=2", "seed=1", "extend=true", play=lambda search: None)
    assert numbers(tmp_path / "runs" / "fake") == []
    assert not (tmp_path / "runs" / "fake" / "best.yaml").exists()


def test_what_reads_another_image_at_test_is_no_best(tmp_path: Path) -> None:
    superior = "arms={both: {student: {reads: [image, superior]}, optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}}}"
    search, _ = swept(tmp_path, "trials=2", superior, "arms.none=false", "arms.tabular=false")
    assert {one.state for one in search.records()} == {"complete"} and all(one.reference for one in search.records())
    folder = tmp_path / "runs" / "fake"
    assert (folder / "trials.parquet").exists() and not (folder / "best.yaml").exists()


# --- further seeds ---


def test_further_seeds_go_with_their_first_trial(tmp_path: Path) -> None:
    before, _ = swept(tmp_path, "trials=6", "search.repeats=3")
    firsts = {one.number: one.sampled[f"{one.arm}/optimizer.lr"] for one in before.records() if one.repeat_of is None}
    low = sorted(firsts.values())[3]
    after, _ = swept(tmp_path, "trials=3", "search.repeats=3", from_lr(low), "extend=true")
    stay = {number for number, lr in firsts.items() if lr >= low}
    assert [one.number for one in after.records()] == [
        one.number for one in before.records() if (one.number if one.repeat_of is None else one.repeat_of) in stay
    ]
    assert Counter(one.repeat_of for one in after.records()) == {None: 3, **dict.fromkeys(stay, 2)}
    fewer, _ = swept(tmp_path, "trials=3", "search.repeats=2", from_lr(low), "extend=true")
    assert Counter(one.turn for one in fewer.records()) == {0: 3, 1: 3}, "a space of two seeds has no third"
    _, text = swept(tmp_path, "trials=2", "search.repeats=2", from_lr(low), "optimizer.clip_norm=2", "extend=true")
    assert "extended: 0 of 18" in text, "their parameters fit, and the rest of them does not"


def test_seeds_of_what_is_dominated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promising only as long as an extension had left the better ones behind."""
    decay = "optimizer.weight_decay"
    monkeypatch.setattr(
        fake, "metrics_of", lambda config, epoch: dict.fromkeys(GOALS, config.optimizer.weight_decay * epoch / 4)
    )
    words = ("search.repeats=2", "arms.tabular=false")
    first, _ = swept(tmp_path, "trials=4", *words)
    worst = min(one.sampled[f"none/{decay}"] for one in first.records())
    low = f"{decay}={{uniform: [0.2, {worst!r}]}}"
    second, _ = swept(tmp_path, "trials=3", *words, low, "extend=true")
    promising = {one.repeat_of for one in second.records() if one.number > max(first.finished)} - {None}
    back, _ = swept(tmp_path, "trials=3", *words, "extend=true")
    assert promising and promising <= set(back.finished) and set(first.finished) <= set(back.finished)
    assert back.remaining_trials == 0


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("epochs=5", "epochs"),
        ("cohort.image_size=64", "cohort.image_size"),
        ("search.maximize=[val/auroc]", "search.maximize"),
    ],
)
def test_what_is_another_sweep_for_good(tmp_path: Path, change: str, key: str) -> None:
    swept(tmp_path, "trials=1", "arms.tabular=false")
    for words in (("extend=true",), ()):
        text = refused(tmp_path, "trials=1", "arms.tabular=false", change, *words)
        assert f"another {key} is another sweep" in text and "name=fake-2" in text
        assert "extend=true goes on" not in text


def test_a_changed_space_is_shown_and_the_way_on_named(tmp_path: Path) -> None:
    swept(tmp_path, "trials=1", "arms.tabular=false")
    text = refused(tmp_path, "trials=1", "arms.tabular=false", "optimizer.lr=0.01")
    assert "optimizer.lr: was absent, is now 0.01" in text
    assert "extend=true goes on in the new space" in text and "name=fake-2" in text


def test_in_an_unchanged_space_it_does_nothing(tmp_path: Path) -> None:
    swept(tmp_path, "trials=2", "extend=true")
    before = states(tmp_path / "runs" / "fake")
    _, text = swept(tmp_path, "trials=2", "extend=true", "search.cpus=0.5")
    assert "extended" not in text and states(tmp_path / "runs" / "fake") == before
    assert set(before) == {"none", "tabular"}


# --- what it costs, and what is seen from outside ---


def test_a_budget_is_the_whole_sweeps_and_shares_are_of_what_stays(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    search, _ = swept(tmp_path, "trials=10", from_lr(low), "extend=true")
    spent = Counter[int]()
    for event in events(folder, "epoch"):
        spent[event["number"]] += event["seconds"] * event["devices"]
    ledger, stay = search.state.ledger, numbers(folder)
    assert ledger.total == pytest.approx(sum(spent.values()))
    assert sum(ledger.spent.values()) == pytest.approx(sum(spent[number] for number in stay))
    assert sum(ledger.spent.values()) < ledger.total
    hours = ledger.total / 3600
    words = ("trials=20", from_lr(further(folder, low)), "extend=true")
    search, _ = swept(tmp_path, *words, f"budget_device_hours={hours!r}")
    assert search.halt is not None and "is spent" in search.halt.reason and len(search.records()) < len(stay)


def test_status_and_clean_count_what_stayed(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    search, _ = swept(tmp_path, "trials=10", from_lr(low), "extend=true")
    sweep = read_sweep(SweepFolder(folder))
    told = as_json(sweep)
    assert {name: told[name] for name in ("complete", "failed", "open")} == {"complete": 10, "failed": 0, "open": 0}
    assert told["left_behind"] == len(search.state.studies.left_behind) > 0
    assert told["device_hours"] == pytest.approx(search.state.ledger.total / 3600)
    assert told["best"]["val/auroc"] == max(one.metrics["val/auroc"] for one in search.records())
    assert told["best"]["val/auroc"] < max(event["metrics"]["val/auroc"] for event in events(folder, "epoch"))
    assert "10 trials have ended" in how_to_continue(sweep)[0] or sweep.closed == "FINISHED"
    could_go = {waste.path.name for waste in of_sweep(sweep)}
    assert not could_go & set(map(str, sweep.left)), "another extension may bring them back"


@pytest.mark.usefixtures("ray_session")
def test_on_ray(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "fake"
    swept(tmp_path, "trials=3", play=None)
    lrs = sorted(drawn(folder).values())
    search, text = swept(tmp_path, "trials=4", from_lr(lrs[1]), "extend=true", play=None)
    assert "extended: 2 of 3 earlier trials" in text and len(search.records()) == 4
    trained = (folder / "trained.txt").read_text().split("\n")[:-1]
    assert len(trained) == len(set(trained)) == 5 * 4, "three trials, and two more"
