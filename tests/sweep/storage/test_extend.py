"""Extends a sweep to a changed space: which trials stay, and what happens to the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from optuna.trial import TrialState

from sweep.clean import waste_of
from sweep.reports.details import as_json
from sweep.search.searcher import Search
from sweep.storage.events import EpochEnded, TrialEnded
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


# --- which trials stay ---


def test_trials_that_lie_in_the_new_space_stay_and_the_others_do_not(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    stay = sorted(number for number, lr in drawn(folder).items() if lr >= low)
    leave = sorted(set(range(8)) - set(stay))
    (goes_on,), (cut,) = {6, 7} & set(stay), {6, 7} & set(leave)
    assert len(stay) > 2 and len(leave) > 1
    for number in (goes_on, cut):
        (folder / "checkpoints" / str(number)).mkdir(parents=True, exist_ok=True)

    jobs: list[dict[str, Any]] = []
    words = ("trials=10", from_lr(low), "extend=true")
    search, text = swept(tmp_path, *words, play=lambda search: jobs.extend(play_all(search)))
    facts = f"extended: {len(stay)} of 8 earlier trials lie in the new space and stay; {len(leave)} are left behind"
    assert facts in text
    new = list(range(8, 8 + 10 - len(stay)))
    assert [job["number"] for job in jobs] == [goes_on, *new], "no trial that has ended runs again"
    assert numbers(folder) == [*stay, *new] and min(drawn(folder)[number] for number in new) >= low
    assert {trial.state for trial in search.records()} == {"complete"}
    assert set(pd.read_parquet(folder / "epochs.parquet")["number"]) == {*stay, *new}

    assert Counter(event.number for event in events(folder, TrialEnded)) == Counter([*range(8), *new])
    ended = {event.number: (event.state, event.cause) for event in events(folder, TrialEnded)}
    assert ended[cut] == ("failed", "extended") and ended[goes_on] == ("complete", "")
    assert not (folder / "checkpoints" / str(cut)).exists() and (folder / "checkpoints" / str(goes_on)).exists()
    assert sum(states(folder).values(), Counter()) == {"COMPLETE": 6 + 10, "FAIL": 2}, "nothing is left running"
    samplers = search.state.samplers.by_arm.values()
    assert sum(len(sampler.study.get_trials(states=(TrialState.COMPLETE,))) for sampler in samplers) == 10

    again, text = swept(tmp_path, *words)
    assert "extended" not in text and [trial.number for trial in again.records()] == [*stay, *new]
    assert json.loads((folder / "plan.json").read_text())["generation"] == 1


def test_a_copied_trial_keeps_everything(tmp_path: Path) -> None:
    def some_stop(search: Search) -> None:
        for index in range(4):
            job = search.suggest(str(index))
            search.state.studies.record_arrival(Arrival(job["number"], job["arm"], 1, (0.5, 0.25), index % 2 == 0))
            play(search, str(index), job, epochs=4 if index % 2 == 0 else 1)

    before, _ = swept(tmp_path, "trials=4", play=some_stop)
    after, text = swept(tmp_path, "trials=4", "search.sampler=random", "extend=true")
    assert "extended: 4 of 4 earlier trials lie in the new space and stay\n" in text
    assert after.records() == before.records() and {trial.state for trial in after.records()} == {
        "complete",
        "pruned",
    }
    was, now = before.state.studies, after.state.studies
    assert list(now.arrivals()) == list(was.arrivals()) and len(list(now.arrivals())) == 4
    assert [now.learned(number) for number in range(4)] == [was.learned(number) for number in range(4)]
    assert [now.proposal(number).config for number in range(4)] == [was.proposal(number).config for number in range(4)]


def test_a_fixed_leaf_may_become_sampled_and_a_sampled_leaf_fixed(tmp_path: Path) -> None:
    fixed, freed = "optimizer.weight_decay=0.5", "optimizer.batch_size={choice: [16, 32]}"  # 32 by default
    swept(tmp_path, "trials=4", fixed)
    search, text = swept(tmp_path, "trials=6", freed, "extend=true")
    assert "extended: 4 of 4 earlier trials lie in the new space and stay\n" in text
    assert search.state.studies.proposal(0).params["none/optimizer.weight_decay"] == 0.5
    lr = drawn(tmp_path / "runs" / "fake")[0]
    search, text = swept(tmp_path, "trials=6", f"optimizer.lr={lr!r}", freed, "extend=true")
    assert "extended: 1 of 6 earlier trials" in text and search.finished[0].sampled["none/optimizer.lr"] == lr


def test_arms_may_be_removed_and_added(tmp_path: Path) -> None:
    swept(tmp_path, "trials=4")
    _, text = swept(tmp_path, "trials=4", "arms.tabular=false", "arms.none={optimizer: {lr: 0.5}}", "extend=true")
    assert "extended: 0 of 4 earlier trials" in text
    search, text = swept(tmp_path, "trials=4", "arms.other={schedule: {warmup: {uniform: [0, 0.5]}}}", "extend=true")
    assert "extended: 4 of 8 earlier trials" in text, "those of the first space, which the new space contains"
    assert [trial.number for trial in search.records()] == [0, 1, 2, 3]


def test_returning_to_the_first_space_restores_the_trials_left_behind(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    (cut,) = (number for number, lr in drawn(folder).items() if number > 5 and lr < low)
    swept(tmp_path, "trials=9", from_lr(low), "extend=true")
    count = len(drawn(folder))
    search, text = swept(tmp_path, f"trials={count - 1}", "extend=true")
    assert f"extended: {count - 1} of {count} earlier trials" in text and "; 1 is left behind" in text
    assert numbers(folder) == sorted({*range(count)} - {cut}), "except the trial that was interrupted and never ended"
    assert {trial.state for trial in search.records()} == {"complete"} and search.state.studies.left_behind == [cut]


def test_without_a_complete_trial_there_is_no_best_file(tmp_path: Path) -> None:
    swept(tmp_path, "trials=2")
    assert (tmp_path / "runs" / "fake" / "best.yaml").exists()
    swept(tmp_path, "trials=2", "seed=1", "extend=true", play=lambda search: None)
    assert numbers(tmp_path / "runs" / "fake") == []
    assert not (tmp_path / "runs" / "fake" / "best.yaml").exists()


def test_a_reference_is_never_the_best(tmp_path: Path) -> None:
    superior = "arms={both: {student: {reads: [image, superior]}, optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}}}"
    search, _ = swept(tmp_path, "trials=2", superior, "arms.none=false", "arms.tabular=false")
    assert {trial.state for trial in search.records()} == {"complete"} and all(
        trial.reference for trial in search.records()
    )
    folder = tmp_path / "runs" / "fake"
    assert (folder / "trials.parquet").exists() and not (folder / "best.yaml").exists()


# --- further seeds ---


def test_further_seeds_stay_with_their_first_trial(tmp_path: Path) -> None:
    before, _ = swept(tmp_path, "trials=6", "search.repeats=3")
    firsts = {
        trial.number: trial.sampled[f"{trial.arm}/optimizer.lr"]
        for trial in before.records()
        if trial.repeat_of is None
    }
    low = sorted(firsts.values())[3]
    after, _ = swept(tmp_path, "trials=3", "search.repeats=3", from_lr(low), "extend=true")
    stay = {number for number, lr in firsts.items() if lr >= low}
    assert [trial.number for trial in after.records()] == [
        trial.number
        for trial in before.records()
        if (trial.number if trial.repeat_of is None else trial.repeat_of) in stay
    ]
    assert Counter(trial.repeat_of for trial in after.records()) == {None: 3, **dict.fromkeys(stay, 2)}
    fewer, _ = swept(tmp_path, "trials=3", "search.repeats=2", from_lr(low), "extend=true")
    assert Counter(trial.turn for trial in fewer.records()) == {0: 3, 1: 3}, "a space of two seeds has no third"
    _, text = swept(tmp_path, "trials=2", "search.repeats=2", from_lr(low), "optimizer.clip_norm=2", "extend=true")
    assert "extended: 0 of 18" in text, "their parameters fit, and the rest of their configurations does not"


def test_seeds_of_a_configuration_that_is_dominated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is promising only while an extension leaves the better ones behind."""
    decay = "optimizer.weight_decay"
    monkeypatch.setattr(
        fake, "metrics_of", lambda config, epoch: dict.fromkeys(GOALS, config.optimizer.weight_decay * epoch / 4)
    )
    words = ("search.repeats=2", "arms.tabular=false", "seed=1")  # with this seed the worst is not the first
    first, _ = swept(tmp_path, "trials=4", *words)
    worst = min(trial.sampled[f"none/{decay}"] for trial in first.records())
    low = f"{decay}={{uniform: [0.2, {worst!r}]}}"
    second, _ = swept(tmp_path, "trials=3", *words, low, "extend=true")
    promising = {trial.repeat_of for trial in second.records() if trial.number > max(first.finished)} - {None}
    back, _ = swept(tmp_path, "trials=3", *words, "extend=true")
    assert promising and promising <= set(back.finished) and set(first.finished) <= set(back.finished)
    assert back.remaining_trials == 0


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("epochs=5", "epochs"),
        ("cohort.image_size=64", "cohort.image_size"),
        ("search.maximize=[val/auroc]", "search.maximize"),
    ],
)
def test_a_change_that_no_extension_allows(tmp_path: Path, change: str, key: str) -> None:
    swept(tmp_path, "trials=1", "arms.tabular=false")
    for words in (("extend=true",), ()):
        text = refused(tmp_path, "trials=1", "arms.tabular=false", change, *words)
        assert f"a change of {key} needs a new sweep" in text and "name=fake-2" in text
        assert "extend=true goes on" not in text


def test_a_changed_space_is_shown_with_the_remedies(tmp_path: Path) -> None:
    swept(tmp_path, "trials=1", "arms.tabular=false")
    text = refused(tmp_path, "trials=1", "arms.tabular=false", "optimizer.lr=0.01")
    assert "optimizer.lr: was absent, is now 0.01" in text
    assert "extend=true continues in the new space" in text and "name=fake-2" in text


def test_extend_does_nothing_in_an_unchanged_space(tmp_path: Path) -> None:
    swept(tmp_path, "trials=2", "extend=true")
    before = states(tmp_path / "runs" / "fake")
    _, text = swept(tmp_path, "trials=2", "extend=true", "search.cpus=0.5")
    assert "extended" not in text and states(tmp_path / "runs" / "fake") == before
    assert set(before) == {"none", "tabular"}


# --- costs, and the view of other commands ---


def test_the_budget_is_of_the_whole_sweep_and_shares_of_what_stays(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    search, _ = swept(tmp_path, "trials=10", from_lr(low), "extend=true")
    spent = Counter[int]()
    for event in events(folder, EpochEnded):
        spent[event.number] += event.seconds * event.devices
    ledger, stay = search.state.ledger, numbers(folder)
    assert ledger.total == pytest.approx(sum(spent.values()))
    assert sum(ledger.spent.values()) == pytest.approx(sum(spent[number] for number in stay))
    assert sum(ledger.spent.values()) < ledger.total
    hours = ledger.total / 3600
    words = ("trials=20", from_lr(further(folder, low)), "extend=true")
    search, _ = swept(tmp_path, *words, f"budget_device_hours={hours!r}")
    assert search.halt is not None and "is spent" in search.halt.reason and len(search.records()) < len(stay)


def test_status_and_clean_count_the_trials_that_stay(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    search, _ = swept(tmp_path, "trials=10", from_lr(low), "extend=true")
    sweep = read_sweep(SweepFolder(folder))
    facts = as_json(sweep)
    assert {name: facts[name] for name in ("complete", "failed", "open")} == {"complete": 10, "failed": 0, "open": 0}
    assert facts["left_behind"] == len(search.state.studies.left_behind) > 0
    assert facts["device_hours"] == pytest.approx(search.state.ledger.total / 3600)
    assert facts["best"]["val/auroc"] == max(trial.metrics["val/auroc"] for trial in search.records())
    assert facts["best"]["val/auroc"] < max(event.metrics["val/auroc"] for event in events(folder, EpochEnded))
    assert "10 trials have ended" in how_to_continue(sweep)[0] or sweep.closed == "FINISHED"
    could_go = {waste.path.name for waste in waste_of(sweep)}
    assert not could_go & set(map(str, sweep.left_behind)), "another extension may bring them back"


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_is_extended_on_ray(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "fake"
    one_worker = "search.at_a_time=1"  # it takes seconds to start
    swept(tmp_path, "trials=3", one_worker, play=None)
    lrs = sorted(drawn(folder).values())
    search, text = swept(tmp_path, "trials=4", one_worker, from_lr(lrs[1]), "extend=true", play=None)
    assert "extended: 2 of 3 earlier trials" in text and len(search.records()) == 4
    trained = (folder / "trained.txt").read_text().split("\n")[:-1]
    assert len(trained) == len(set(trained)) == 5 * 4, "three trials, and two more"


# --- changes that need no extension ---


def test_other_rounding_is_a_warning(tmp_path: Path) -> None:
    change = "new trials are rounded in another way than earlier ones"
    texts = [
        swept(tmp_path, f"trials={2 + index}", *words)[1]
        for index, words in enumerate([(), ("execution=graph",), ("execution=compile",), ("execution=eager",)])
    ]
    assert change not in texts[0] + texts[1], "graphs compute the same numbers"
    assert f"warning: execution was graph and is now compile: {change}" in texts[2]
    assert f"warning: execution was compile and is now eager: {change}" in texts[3]
    assert "execution=compile continues as before" in texts[3]
