"""The search without Ray: the tests play the part of Ray Tune, and kill drivers between any two lines."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mmpkd.config import TrialConfig
from sweep.reports.arms import ArmTotals, totals_by_arm
from sweep.reports.tables import epochs_table, trials_table
from sweep.search.proposals import ArmSampler
from sweep.search.searcher import FAILURES_TO_STOP, Search
from sweep.search.state import SweepState
from sweep.search.studies import Studies
from sweep.selection import best_first
from sweep.space.space import load_space
from sweep.storage.events import EpochEnded, Spool, TrialEnded, TrialEvent, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.storage.records import best_of, front_of
from tests.sweep.fake import SPACE, metrics_of, play, play_all, report
from tests.sweep.swept import events

GOALS = ("val/auroc", "val/pointing")
Opened = Callable[..., Search]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Returns a function that opens a driver's search on the folder of this test; a further call is the next driver."""

    def open_search(*overrides: str) -> Search:
        (tmp_path / "fake.yaml").write_text(SPACE)
        space, mistakes = load_space(str(tmp_path / "fake.yaml"), overrides)
        assert space is not None and not mistakes
        spool = Spool(SweepFolder(tmp_path))
        state = SweepState(space, GOALS, Studies(SweepFolder(tmp_path), space, GOALS), spool, SweepFolder(tmp_path))
        search = Search(
            space, state, SweepFolder(tmp_path), tmp_path / "cache", tmp_path / "store", num_folds=4, wait=True
        )
        search.max_running = 3
        return search

    return open_search


def counted(tmp_path: Path, kind: type[TrialEvent]) -> Counter[int]:
    return Counter(event.number for event in events(tmp_path, kind))


def test_every_trial_has_one_number_and_one_final_state(opened: Opened, tmp_path: Path) -> None:
    search = opened("trials=6")
    jobs = play_all(search)
    assert [job["number"] for job in jobs] == list(range(6))
    assert [record.state for record in search.records()] == ["complete"] * 6
    assert Counter(record.arm for record in search.records()) == {"none": 3, "tabular": 3}
    assert counted(tmp_path, TrialStarted) == counted(tmp_path, TrialEnded) == Counter(range(6))
    assert counted(tmp_path, EpochEnded) == Counter(dict.fromkeys(range(6), 4))
    record = search.records()[0]
    assert (record.epochs, record.seconds) == (4, 2.0)
    config = TrialConfig.model_validate_json(record.config)
    assert record.metrics == metrics_of(config, 4)
    assert record.sampled["none/optimizer.lr"] == config.optimizer.lr


@pytest.mark.parametrize(
    ("teacher", "tags"),
    [
        (["params.near_label=[pathology, BIRADS]"], {"near_label": "BIRADS, pathology"}),
        (
            [
                "kind=ensemble",
                "params.members.a={kind: tabular, params: {near_label: [BIRADS]}}",
                "params.members.b={kind: text, params: {near_label: [pathology]}}",
            ],
            {"near_label": "BIRADS, pathology"},
        ),
        (["control=shuffled"], {"control": "findings"}),
    ],
)
def test_teachers_that_read_near_labels_or_are_shuffled_are_tagged(
    opened: Opened, tmp_path: Path, teacher: list[str], tags: dict[str, str]
) -> None:
    jobs = play_all(opened("trials=4", *(f"arms.tabular.teachers.findings.{key}" for key in teacher)))
    assert {job["store"] for job in jobs} == {str(tmp_path / "store")}
    starts = events(tmp_path, TrialStarted)
    assert [event.tags for event in starts] == [tags if event.arm == "tabular" else {} for event in starts]
    assert {event.arm for event in starts} == {"none", "tabular"}


def test_optuna_receives_the_state_of_each_trial(opened: Opened, tmp_path: Path) -> None:
    search = opened("trials=3", "arms.tabular=false")
    play(search, "a", search.suggest("a"), epochs=4)
    play(search, "b", search.suggest("b"), epochs=2)  # stopped by the scheduler
    search.suggest("c")
    search.on_trial_complete("c", {"error": "term task is nan", "cause": "diverged", "done": True, "reports": []})
    assert [(record.state, record.epochs, record.error, record.cause) for record in search.records()] == [
        ("complete", 4, "", ""),
        ("pruned", 2, "", ""),
        ("failed", 0, "term task is nan", "diverged"),
    ]
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    trials = optuna.load_study(study_name="none", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert trials[0].values == [search.records()[0].metrics[goal] for goal in GOALS]


def test_trials_of_a_dead_driver_come_first_under_their_own_numbers(opened: Opened, tmp_path: Path) -> None:
    dead = opened("trials=5")
    play(dead, "a", dead.suggest("a"))
    before = [dead.suggest("b"), dead.suggest("c")]
    dead.on_trial_result("b", {"reports": [report(before[0], 1)]})
    del dead

    search = opened("trials=5")
    after = [search.suggest("d"), search.suggest("e")]
    assert after == before
    # The worker reports all epochs of its checkpoint; known epochs are not spooled twice.
    search.on_trial_result("d", {"reports": [report(before[0], epoch) for epoch in (1, 2)]})
    search.on_trial_result("d", {"reports": [report(before[0], 3)]})
    search.on_trial_complete("d", {"reports": [report(before[0], 4)]})
    play(search, "e", after[1])
    assert [job["number"] for job in play_all(search)] == [3, 4]
    assert counted(tmp_path, TrialStarted) == counted(tmp_path, TrialEnded) == Counter(range(5))
    assert counted(tmp_path, EpochEnded) == Counter(dict.fromkeys(range(5), 4))
    assert search.records()[1].seconds == 2.0


def test_an_epoch_that_is_trained_again_counts_once_and_as_first_reported(opened: Opened, tmp_path: Path) -> None:
    """A kill loses the epochs since the last checkpoint. On a GPU they may differ in the last digits."""
    dead = opened("trials=1")
    job = dead.suggest("a")
    for epoch in (1, 2, 3):
        dead.on_trial_result("a", {"reports": [report(job, epoch)]})
    charged = dead.state.ledger.total
    del dead

    search = opened("trials=1")
    assert search.suggest("b") == job
    changed = report(job, 3, seconds=0.7)
    changed["metrics"] = {name: value + 1e-6 for name, value in changed["metrics"].items()}
    search.on_trial_result("b", {"reports": [report(job, 1)]})  # the checkpoint holds epoch 1 only
    assert search.running["b"].reported.epoch == 3, "progress does not go back"
    for again in (report(job, 2, seconds=0.7), changed):
        search.on_trial_result("b", {"reports": [again]})
    assert search.state.ledger.total == charged == 1.5
    search.on_trial_complete("b", {"reports": [changed]})  # stopped there
    (record,) = search.records()
    assert (record.state, record.epochs, record.seconds, record.device_seconds) == ("pruned", 3, 1.5, 1.5)
    assert record.metrics == report(job, 3)["metrics"] == events(tmp_path, EpochEnded)[-1].metrics
    assert counted(tmp_path, EpochEnded) == {0: 3} and counted(tmp_path, TrialEnded) == {0: 1}


def test_a_worker_that_dies_before_its_first_checkpoint_takes_no_epoch_back(opened: Opened, tmp_path: Path) -> None:
    search = opened("trials=1", "search.max_failures=1")
    job = search.suggest("a")
    for epoch in (1, 2):
        search.on_trial_result("a", {"reports": [report(job, epoch)]})
    search.on_trial_complete("a", error=True)
    assert search.suggest("b") == job
    search.on_trial_result("b", {"reports": [report(job, 1)]})
    search.on_trial_complete("b", error=True)
    (record,) = search.records()
    assert (record.state, record.epochs, record.seconds) == ("failed", 2, 1.0)
    assert counted(tmp_path, EpochEnded) == {0: 2}


def test_an_interrupted_sweep_proposes_what_an_uninterrupted_one_proposes(opened: Opened, tmp_path: Path) -> None:
    def sampled(search: Search) -> list[Any]:
        return [dict(record.sampled) for record in search.records()]

    uninterrupted = opened("trials=28")  # enough for TPE to model both arms
    play_all(uninterrupted)
    (tmp_path / "journal.log").unlink()
    (tmp_path / "spool.jsonl").unlink()
    for trials in (3, 13, 28):
        search = opened(f"trials={trials}")
        play_all(search)
    assert sampled(search) == sampled(uninterrupted)
    assert len({str(values) for values in sampled(uninterrupted)}) == 28


def test_a_driver_that_is_killed_between_journal_and_spool(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = opened("trials=1")
    job = search.suggest("a")
    monkeypatch.setattr(search.state, "spool_end", lambda record: None)
    play(search, "a", job)
    assert not counted(tmp_path, TrialEnded)
    assert opened("trials=1").remaining_trials == 0
    assert counted(tmp_path, TrialEnded) == {0: 1}
    assert opened("trials=1").remaining_trials == 0
    assert counted(tmp_path, TrialEnded) == {0: 1}


def test_a_journal_with_half_a_line_and_a_stale_lock(opened: Opened, tmp_path: Path) -> None:
    search = opened("trials=1")
    play(search, "a", search.suggest("a"))
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"wor')
    os.symlink(tmp_path / "journal.log", tmp_path / "journal.log.lock")
    assert [job["number"] for job in play_all(opened("trials=3"))] == [1, 2]
    assert len(opened("trials=3").records()) == 3


def test_a_trial_whose_worker_died_runs_again_a_limited_number_of_times(opened: Opened) -> None:
    search = opened("trials=1", "search.max_failures=2")
    first = search.suggest("a")
    search.on_trial_result("a", {"reports": [report(first, 1)]})
    for trial_id in ("a", "b"):
        search.on_trial_complete(trial_id, error=True)
        assert search.suggest(chr(ord(trial_id) + 1)) == first
    assert search.suggest("x") is None, "more may come while a trial is running"
    search.on_trial_complete("c", error=True)
    assert search.suggest("y") == Search.FINISHED
    (record,) = search.records()
    assert (record.state, record.error) == ("failed", "its worker process died 3 times (out of memory?)")


def test_arms_get_equal_shares_of_device_seconds(opened: Opened) -> None:
    search = opened("trials=24", "search.equal=hours")
    running: list[tuple[str, Any]] = []
    for index in range(24):
        running.append((f"id{index}", search.suggest(f"id{index}")))
        if len(running) == 3:
            trial_id, job = running.pop(0)
            play(search, trial_id, job, seconds=4.0 if job["arm"] == "tabular" else 1.0)
    for trial_id, job in running:
        play(search, trial_id, job, seconds=4.0 if job["arm"] == "tabular" else 1.0)
    spent = {
        arm: sum(record.seconds for record in search.records() if record.arm == arm) for arm in ("none", "tabular")
    }
    assert abs(spent["none"] - spent["tabular"]) <= 3 * 16, "they differ by at most one trial for each slot"
    assert Counter(record.arm for record in search.records())["none"] > 15


def test_arms_get_equal_numbers_of_trials_also_after_a_restart(opened: Opened, tmp_path: Path) -> None:
    """A driver dies with a trial of the expensive arm running and another one handed out, which count once."""
    dead, words = opened("trials=12"), ("trials=12", "search.repeats=1")
    for index in range(5):
        job = dead.suggest(f"id{index}")
        play(dead, f"id{index}", job, seconds=10.0 if job["arm"] == "tabular" else 1.0)
    running = [dead.suggest("a"), dead.suggest("b")]
    dead.on_trial_result("a", {"reports": [report(running[0], 1, seconds=10.0)]})
    del dead
    search = opened(*words)
    assert search.state.ledger.started == {"none": 4, "tabular": 3}
    assert [job["number"] for job in play_all(search)] == list(range(5, 12)), "the interrupted ones come first"
    assert [record.arm for record in search.records()] == ["none", "tabular"] * 6
    assert search.state.ledger.started == opened(*words).state.ledger.started == {"none": 6, "tabular": 6}


def test_the_share_of_an_exhausted_arm_goes_to_the_others(opened: Opened) -> None:
    few = ("optimizer.lr={choice: [1e-3, 1e-2]}", "optimizer.weight_decay=0.5")
    search = opened("trials=12", *few, "arms.tabular.optimizer.lr={log_uniform: [1e-4, 1e-1]}")
    play_all(search)
    assert search.exhausted == {"none"}
    assert search.state.ledger.started == {"none": 2, "tabular": 10}
    totals = totals_by_arm(search.records(), search.state.ledger)
    hours = 4 * 0.5 / 3600  # of a trial of four epochs
    assert totals == [
        ArmTotals("none", 2, 2, 0, 0, pytest.approx(2 * hours)),
        ArmTotals("tabular", 10, 10, 0, 0, pytest.approx(10 * hours)),
    ]


@pytest.mark.parametrize("equal", ["trials", "hours"])
def test_an_arm_whose_trials_fail_at_once_does_not_receive_all_remaining_trials(
    opened: Opened, tmp_path: Path, equal: str
) -> None:
    search = opened("trials=12", f"search.equal={equal}")
    SweepFolder(tmp_path).error(0).parent.mkdir()
    for index in range(12):
        job = search.suggest(f"id{index}")
        if job["arm"] == "tabular":
            failure = {"error": "no such column", "cause": "error", "reports": []}
            search.on_trial_complete(f"id{index}", failure)
        else:
            play(search, f"id{index}", job)
    assert Counter(record.arm for record in search.records()) == {"none": 6, "tabular": 6}


def test_a_sweep_in_which_everything_fails_stops(opened: Opened, tmp_path: Path) -> None:
    search = opened("trials=12")
    SweepFolder(tmp_path).error(0).parent.mkdir()
    for index in range(3):
        job = search.suggest(f"id{index}")
        SweepFolder(tmp_path).error(job["number"]).write_text("error: IndexError: 7\n\n...")
        search.on_trial_complete(f"id{index}", error=True)
    assert search.suggest("next") == Search.FINISHED
    assert search.all_failed and search.remaining_trials == 9
    assert not opened("trials=12").all_failed, "the next driver tries again"


def test_only_the_front_and_the_four_best_keep_their_checkpoints(opened: Opened, tmp_path: Path) -> None:
    search = opened("trials=16")
    play_all(search)
    on_front = {record.number for record in front_of(search.records(), GOALS)}
    best = {record.number for record in best_first(search.records(), "val/auroc")[:4]}
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == on_front | best
    assert best - on_front and len(on_front | best) < 16


def test_the_best_trial_keeps_its_checkpoints_where_a_tie_keeps_it_off_the_front(
    opened: Opened, tmp_path: Path
) -> None:
    """Both trials have the same learning rate, hence the same AUROC. Trial 1 has an objective, and points better."""
    points = ",".join(f"{{arm: {arm}, optimizer.lr: 0.01}}" for arm in ("none", "tabular"))
    search = opened("trials=2", f"search.points=[{points}]")
    play_all(search)
    assert [record.number for record in front_of(search.records(), GOALS)] == [1]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"0", "1"}
    best = best_of(search.records(), "val/auroc")
    assert best is not None and best.number == 0


def test_a_job_names_the_epochs_at_which_its_trial_may_be_stopped(opened: Opened) -> None:
    """The rungs of four epochs are 1 and 2. Trials on further seeds are never ranked."""
    jobs = play_all(opened("trials=2", "search.repeats=2", "search.early_stopping={grace: 1, reduction: 2}"))
    assert {job["repeat_of"] is None: job["rungs"] for job in jobs} == {True: [1, 2], False: []}
    assert play_all(opened("trials=3"))[0]["rungs"] == []


def test_no_more_trials_are_handed_out_than_may_run(opened: Opened) -> None:
    search = opened("trials=9")
    assert all(isinstance(search.suggest(trial_id), dict) for trial_id in "abc")
    assert search.suggest("d") is None
    search.max_running = 4
    assert isinstance(search.suggest("d"), dict)


def test_a_storage_that_fails_stops_the_sweep(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    search = opened("trials=3")
    job = search.suggest("a")

    def full(*args: Any, **options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(search.state.studies, "end", full)
    play(search, "a", job)  # Tune would swallow what is raised here
    assert search.suggest("b") is None
    assert search.halt is not None and isinstance(search.error, OSError)
    search.release_running()
    assert search.suggest("b") == Search.FINISHED


def test_fewer_trials_run_nothing_and_more_trials_add_to_the_sweep(opened: Opened) -> None:
    play_all(opened("trials=4"))
    assert opened("trials=2").remaining_trials == 0
    assert [job["number"] for job in play_all(opened("trials=6"))] == [4, 5]


def test_tables(opened: Opened, tmp_path: Path) -> None:
    search = opened("trials=4")
    play_all(search)
    records = search.records()
    trials, epochs = trials_table(records), epochs_table(SweepFolder(tmp_path).spool)
    assert trials["number"].tolist() == [0, 1, 2, 3]
    for column in ("arm", "state", "epochs", "seconds", "val/auroc_se", "none/optimizer.lr", "tabular/objectives"):
        assert column in trials
    assert trials.loc[1, "none/optimizer.lr"] != trials.loc[1, "none/optimizer.lr"], "NaN where a value is not sampled"
    assert epochs[["number", "epoch"]].values.tolist() == [[n, e] for n in range(4) for e in range(1, 5)]
    assert epochs["loss/task"].tolist() == [1.0] * 16
    best = best_of(records, "val/auroc")
    assert best is not None and best.metrics["val/auroc"] == trials["val/auroc"].max()
    trials.to_parquet(tmp_path / "t.parquet")


def test_a_sweep_ends_while_a_proposal_is_made(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    search = opened("trials=20")
    search._wait, search.max_running = False, 4
    released = threading.Event()
    propose = ArmSampler.propose

    def slow(self: ArmSampler, number: int) -> Any:
        if number >= FAILURES_TO_STOP:
            released.wait(5)
        return propose(self, number)

    monkeypatch.setattr(ArmSampler, "propose", slow)
    for index in range(FAILURES_TO_STOP):
        while not isinstance(search.suggest(f"t{index}"), dict):
            time.sleep(0.01)
    assert search.suggest("next") is None, "a proposal is being made"
    for index in range(FAILURES_TO_STOP):
        search.on_trial_complete(f"t{index}", {"error": "bad", "cause": "diverged", "reports": []})
    assert search.all_failed and search.suggest("next") == "FINISHED"
    released.set()
