"""A sweep whose space changes: which trials stay, what becomes of the others, and drivers killed in between."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from rich.console import Console

from mmpkd.config import TrialConfig
from mmpkd.types import UserError
from sweep import closing, run
from sweep.clean import of_sweep
from sweep.halving import Arrival
from sweep.outside import how_to_continue, read_sweep
from sweep.records import Spool
from sweep.run import read_words
from sweep.search import Search
from sweep.space import load_space
from sweep.status import as_json
from sweep.tracking import Tracker
from tests.sweep import fake
from tests.sweep.fake import SPACE, FakeWorker, play, play_all, report

GOALS = ("val/auroc", "val/pointing")


class Killed(BaseException):
    """What happens to a driver between two lines."""


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow takes seconds to load, and what it would be told is in the spool; a report takes half of each sweep."""
    monkeypatch.setattr(closing, "write_report", lambda *args: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(Tracker, "start", lambda self: None)
    monkeypatch.setattr(Tracker, "close", lambda self, seconds: 0)


def swept(tmp_path: Path, *words: str, play: Callable[[Search], Any] | None = play_all) -> tuple[Search, str]:
    """One driver's part: its search, and what the console said. On Ray where nothing plays Tune's part."""
    (tmp_path / "fake.yaml").write_text(SPACE)
    said, wrong = read_words([f"space={tmp_path / 'fake.yaml'}", f"storage={tmp_path / 'runs'}", *words])
    space, mistakes = load_space(said.space, said.overrides)
    assert space is not None and not wrong and not mistakes
    example = TrialConfig.model_validate({"cohort": {"reader": "synthetic"}, "epochs": 4})
    goals = space.search.maximize or GOALS
    planned: Any = SimpleNamespace(goals=goals, facts=None, example=example, as_json=lambda: {"goals": list(goals)})
    searches: list[Search] = []

    def without_ray(search: Search, *rest: Any) -> None:
        search.most_live, search._wait = 3, True
        assert play
        play(search)

    def finish(search: Search, *rest: Any) -> int:
        searches.append(search)
        return finishing(search, *rest)

    console, finishing = Console(file=io.StringIO(), width=200), closing.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_trials", without_ray if play else run.run_trials)
        patch.setattr(closing, "finish", finish)
        run.sweep(space, planned, said, console, FakeWorker)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return searches[0], text


def dies(search: Search) -> None:
    """Six trials, then two in flight that have had an epoch, then the end."""
    for index in range(6):
        play(search, str(index), search.suggest(str(index)))
    for index in (6, 7):
        search.on_trial_result(str(index), {"reports": [report(search.suggest(str(index)), 1)]})
    raise Killed


def refused(tmp_path: Path, *words: str) -> str:
    """Why a start is, and that it left everything as it was."""

    def content() -> dict[Path, bytes]:
        there = (path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.name != "driver.lock")
        return {path: path.read_bytes() for path in there}

    before = content()
    with pytest.raises(UserError) as error:
        swept(tmp_path, *words)
    assert content() == before
    return str(error.value)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for _, event in Spool(folder / "spool.jsonl").read() if event["event"] == kind]


def drawn(folder: Path, leaf: str = "optimizer.lr") -> dict[int, float]:
    """What every trial that was ever started has there, by number."""
    return {event["number"]: event["params"][leaf] for event in events(folder, "start")}


def from_lr(low: float) -> str:
    return f"optimizer.lr={{log_uniform: [{low!r}, 1e-1]}}"


def further(folder: Path, low: float) -> float:
    """An lr that two trials less are above."""
    return sorted(lr for lr in drawn(folder).values() if lr >= low)[2]


def states(folder: Path) -> dict[str, Counter[str]]:
    """Of every study in the storage."""
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return {study.study_name: Counter(one.state.name for one in study.trials) for study in studies}


def numbers(folder: Path) -> list[int]:
    found: list[int] = pd.read_parquet(folder / "trials.parquet")["number"].tolist()
    return found


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """What a killed driver left, and an lr that one of the two trials in flight is above, the other below."""
    tmp_path = tmp_path_factory.mktemp("dead")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Tracker, "start", lambda self: None)
        swept(tmp_path, "trials=8", play=dies)
    lrs = drawn(tmp_path / "runs" / "fake")
    return tmp_path / "runs", 1.01 * min(lrs[6], lrs[7])


@pytest.fixture
def dead(left: tuple[Path, float], tmp_path: Path) -> tuple[Path, float]:
    """A copy of that for a test to go on with."""
    shutil.copytree(left[0], tmp_path / "runs")
    return tmp_path / "runs" / "fake", left[1]


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
    told = f"extended: {len(stay)} of 8 earlier trials lie in the new space and stay; {len(leave)} do not and are kept"
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
    sights = search.books.sampling._sights.values()
    assert sum(len(sight._study.get_trials(states=(TrialState.COMPLETE,))) for sight in sights) == 10

    again, text = swept(tmp_path, *words)
    assert "extended" not in text and [one.number for one in again.records()] == [*stay, *new]
    assert json.loads((folder / "plan.json").read_text())["generation"] == 1


def test_what_is_copied_has_all_that_it_had(tmp_path: Path) -> None:
    def some_stop(search: Search) -> None:
        for index in range(4):
            job = search.suggest(str(index))
            search.books.studies.reach(Arrival(job["number"], job["arm"], 1, (0.5, 0.25), index % 2 == 0))
            play(search, str(index), job, epochs=4 if index % 2 == 0 else 1)

    before, _ = swept(tmp_path, "trials=4", play=some_stop)
    after, text = swept(tmp_path, "trials=4", "search.sampler=random", "extend=true")
    assert "extended: 4 of 4 earlier trials lie in the new space and stay\n" in text
    assert after.records() == before.records() and {one.state for one in after.records()} == {"complete", "pruned"}
    was, now = before.books.studies, after.books.studies
    assert list(now.arrivals()) == list(was.arrivals()) and len(list(now.arrivals())) == 4
    assert [now.learned(number) for number in range(4)] == [was.learned(number) for number in range(4)]
    assert [now.proposal(number).config for number in range(4)] == [was.proposal(number).config for number in range(4)]


def test_a_leaf_may_be_freed_and_fixed(tmp_path: Path) -> None:
    fixed, freed = "optimizer.weight_decay=0.5", "optimizer.batch_size={choice: [16, 32]}"  # 32 by default
    swept(tmp_path, "trials=4", fixed)
    search, text = swept(tmp_path, "trials=6", freed, "extend=true")
    assert "extended: 4 of 4 earlier trials lie in the new space and stay\n" in text
    assert search.books.studies.proposal(0).params["none/optimizer.weight_decay"] == 0.5
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
    assert f"extended: {count - 1} of {count} earlier trials" in text and "; 1 does not and is kept" in text
    assert numbers(folder) == sorted({*range(count)} - {cut}), "but for the one that was cut off, and never ended"
    assert {one.state for one in search.records()} == {"complete"} and search.books.studies.left_behind == [cut]


def test_without_a_complete_trial_there_is_no_best(tmp_path: Path) -> None:
    swept(tmp_path, "trials=2")
    assert (tmp_path / "runs" / "fake" / "best.yaml").exists()
    swept(tmp_path, "trials=2", "seed=1", "extend=true", play=lambda search: None)
    assert numbers(tmp_path / "runs" / "fake") == []
    assert not (tmp_path / "runs" / "fake" / "best.yaml").exists()


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
    assert back.left == 0


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
    ledger, stay = search.books.ledger, numbers(folder)
    assert ledger.total == pytest.approx(sum(spent.values()))
    assert sum(ledger.spent.values()) == pytest.approx(sum(spent[number] for number in stay))
    assert sum(ledger.spent.values()) < ledger.total
    hours = ledger.total / 3600
    words = ("trials=20", from_lr(further(folder, low)), "extend=true")
    search, _ = swept(tmp_path, *words, f"budget_device_hours={hours!r}")
    assert search.halt is not None and "is spent" in search.halt.why and len(search.records()) < len(stay)


def test_status_and_clean_count_what_stayed(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    search, _ = swept(tmp_path, "trials=10", from_lr(low), "extend=true")
    sweep = read_sweep(folder)
    told = as_json(sweep)
    assert {name: told[name] for name in ("complete", "failed", "open")} == {"complete": 10, "failed": 0, "open": 0}
    assert told["left_behind"] == len(search.books.studies.left_behind) > 0
    assert told["device_hours"] == pytest.approx(search.books.ledger.total / 3600)
    assert told["best"]["val/auroc"] == max(one.metrics["val/auroc"] for one in search.records())
    assert told["best"]["val/auroc"] < max(event["metrics"]["val/auroc"] for event in events(folder, "epoch"))
    assert "10 trials have ended" in how_to_continue(sweep)[0] or sweep.closed == "FINISHED"
    could_go = {waste.path.name for waste in of_sweep(sweep)}
    assert not could_go & set(map(str, sweep.left)), "another extension may bring them back"


# --- killed in between ---


class Killer:
    """Counts what is written, and kills before one of it."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None = None):
        self.count, self._at = 0, at
        for owner, name in ((JournalFileBackend, "append_logs"), (Spool, "append"), (os, "replace")):
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._at:
                raise Killed
            return write(*args, **options)

        return counted


def killed(tmp_path: Path, at: int | None, *words: str) -> int:
    """A driver killed before its `at`-th write, or else before its first trial; how often it wrote."""

    def dead(search: Search) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killer = Killer(patch, at)
        swept(tmp_path, *words, play=dead)
    return killer.count


def outcome(folder: Path) -> tuple[Any, ...]:
    """What must not depend on kills."""
    table = pd.read_parquet(folder / "trials.parquet").drop(columns=["seconds", "device_hours"])
    told = sorted((event["number"], event["state"], event["cause"]) for event in events(folder, "end"))
    running = [name for name, found in states(folder).items() if found["RUNNING"]]
    return table.to_json(), told, running, read_sweep(folder).plan["left_behind"]


def test_a_kill_before_any_write_is_mended_by_the_same_command(dead: tuple[Path, float], tmp_path: Path) -> None:
    """And until the plan is written the old command goes on as if nothing had been; after it, it is refused."""
    folder, low = dead
    old, new = ("trials=9",), ("trials=9", from_lr(low))
    saved = tmp_path / "saved"
    shutil.copytree(folder, saved)

    def afresh(source: Path = saved) -> None:
        shutil.rmtree(folder)
        shutil.copytree(source, folder)

    swept(tmp_path, *old)
    unextended = outcome(folder)
    afresh()
    swept(tmp_path, *new, "extend=true")
    extended = outcome(folder)
    assert extended[2] == [] and extended[3]
    afresh()
    writes = killed(tmp_path, None, *new, "extend=true")
    assert writes > 12, "the copies, plan and space, and the ends of what was running"
    committed = []
    for at in range(1, writes + 1):
        afresh()
        killed(tmp_path, at, *new, "extend=true")
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "killed")
        committed.append(read_sweep(folder).plan["generation"] == 1)
        if committed[-1]:
            assert "optimizer.lr.log_uniform: was" in refused(tmp_path, *old)
        else:
            assert "extend=true goes on" in refused(tmp_path, *new)
            swept(tmp_path, *old)
            assert outcome(folder) == unextended, at
        afresh(tmp_path / "killed")
        swept(tmp_path, *new, "extend=true")
        assert outcome(folder) == extended, at
    assert True in committed and False in committed


def test_what_a_cut_off_extension_left_is_no_part_of_another(dead: tuple[Path, float], tmp_path: Path) -> None:
    folder, low = dead
    shutil.copytree(folder, tmp_path / "saved")
    other = ("trials=9", from_lr(further(folder, low)), "extend=true")
    swept(tmp_path, *other)
    expected = outcome(folder)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "saved", folder)
    killed(tmp_path, 8, "trials=9", from_lr(low), "extend=true")
    assert sum(sum(found.values()) for name, found in states(folder).items() if " 1" in name) > 3
    swept(tmp_path, *other)
    assert outcome(folder) == expected


@pytest.mark.usefixtures("ray_session")
def test_on_ray(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "fake"
    swept(tmp_path, "trials=3", play=None)
    lrs = sorted(drawn(folder).values())
    search, text = swept(tmp_path, "trials=4", from_lr(lrs[1]), "extend=true", play=None)
    assert "extended: 2 of 3 earlier trials" in text and len(search.records()) == 4
    trained = (folder / "trained.txt").read_text().split("\n")[:-1]
    assert len(trained) == len(set(trained)) == 5 * 4, "three trials, and two more"
