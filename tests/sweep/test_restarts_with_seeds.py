"""Drivers that are killed again and again while configurations are run on several seeds, without Ray.

Each trial's scores depend on its seed, so that a further seed that goes on as another's shows in the numbers.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mmpkd.config import TrialConfig, load_trial
from sweep.cluster import Reservation
from sweep.reports.tables import epochs_table, trials_table
from sweep.search.halving import ArmHalving
from sweep.search.searcher import Search
from sweep.search.state import SweepState
from sweep.search.studies import Studies
from sweep.space.space import load_space
from sweep.storage.events import EpochEnded, Spool, TrialEnded, TrialStarted
from sweep.storage.layout import SweepFolder
from sweep.storage.records import comparable
from sweep.types import Arrival
from tests.sweep.fake import SPACE, metrics_of, play
from tests.sweep.swept import swept, untracked

__all__ = ["untracked"]  # a fixture, of every test here

GOALS = ("val/auroc", "val/pointing")
REPEATS, FOLDS, EPOCHS, DEVICES = 3, 4, 4, 2.0


def scores(config: TrialConfig, epoch: int) -> dict[str, float]:
    """Of the fake training, moved a little by seed and fold."""
    moved = ((7 * config.seed + 3 * config.cohort.fold) % 5) / 1000
    return {name: value + moved for name, value in metrics_of(config, epoch).items()}


class Machine:
    """What outlives a driver: the folder, the checkpoints, and what was handed out."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.reached: dict[int, int] = {}  # epochs that a trial's checkpoint holds, by number
        self.jobs: list[dict[str, Any]] = []

    def search(self) -> Search:
        (self.folder / "fake.yaml").write_text(SPACE)
        words = ["trials=6", f"search.repeats={REPEATS}", "seed=3"]
        space, mistakes = load_space(str(self.folder / "fake.yaml"), words)
        assert space is not None and not mistakes
        studies = Studies(SweepFolder(self.folder), space, GOALS)
        state = SweepState(space, GOALS, studies, Spool(SweepFolder(self.folder)), SweepFolder(self.folder))
        search = Search(
            space, state, SweepFolder(self.folder), Path("cache"), Path("store"), num_folds=FOLDS, wait=True
        )
        search.max_running, search.devices = 2, DEVICES
        return search

    def drive(self, epochs: int | None) -> Search | None:
        """One driver's part: killed after so many epochs of its two trials at a time; None if it was."""
        search, live, ids = self.search(), dict[str, dict[str, Any]](), itertools.count()
        for count in itertools.count():
            while isinstance(job := search.suggest(trial_id := f"t{next(ids)}"), dict):
                self.jobs.append(job)
                live[trial_id] = job
            if not live:
                assert job == Search.FINISHED
                return search
            if count == epochs:
                return None
            trial_id, job = next(iter(live.items()))
            del live[trial_id]
            self._epoch(search, trial_id, job, live)
        raise AssertionError("unreachable")

    def _epoch(self, search: Search, trial_id: str, job: dict[str, Any], live: dict[str, dict[str, Any]]) -> None:
        """The next epoch; a resumed trial first says what its checkpoint knows. The worker trains what it was given."""
        config = TrialConfig.model_validate_json(job["trial"])
        self.reached[job["number"]] = last = self.reached.get(job["number"], 0) + 1
        reports = [
            {"epoch": epoch, "seconds": 0.5, "terms": {"task": 1.0}, "metrics": scores(config, epoch)}
            for epoch in range(1, last + 1)
        ]
        if last == EPOCHS:
            search.on_trial_complete(trial_id, {"reports": reports})
        else:
            search.on_trial_result(trial_id, {"reports": reports})
            live[trial_id] = job


def drive_to_the_end(machine: Machine, epochs: int, lost: int) -> Search:
    """Drives until a driver is not killed. Each kill loses the last epochs of trials that had not finished."""
    for _ in range(200):
        if (search := machine.drive(epochs)) is not None:
            return search
        for number, last in machine.reached.items():
            if last < EPOCHS:
                machine.reached[number] = max(last - lost, 0)
    raise AssertionError("never done")


@pytest.fixture(
    scope="module",
    params=[(1, 0), (3, 0), (1000, 0), (7, 2)],
    ids=lambda kills: "killed after {}, {} lost".format(*kills),
)
def driven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Search]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    return machine, drive_to_the_end(machine, *request.param)


def test_each_seed_is_what_it_was_whoever_hands_it_out(driven: tuple[Machine, Search]) -> None:
    machine, search = driven
    handed: dict[int, set[str]] = {}
    for job in machine.jobs:
        handed.setdefault(job["number"], set()).add(job["trial"])
    assert all(len(trials) == 1 for trials in handed.values()), "a trial that goes on is the trial that it was"
    configs = {number: TrialConfig.model_validate_json(*trials) for number, trials in handed.items()}
    records = {record.number: record for record in search.records()}
    assert set(records) == set(handed)
    assert all(job["repeat_of"] == records[job["number"]].repeat_of for job in machine.jobs), "halving spares them"
    turns: dict[int, list[int]] = {}
    for number, record in records.items():
        if record.repeat_of is None:
            assert (configs[number].seed, configs[number].cohort.fold) == (3, 0)
            continue
        turns.setdefault(record.repeat_of, []).append(record.turn)
        cohort = configs[record.repeat_of].cohort.model_copy(update={"fold": record.turn % FOLDS})
        changes = {"seed": 3 + record.turn, "cohort": cohort}
        assert configs[number] == configs[record.repeat_of].model_copy(update=changes)
    assert turns and all(sorted(found) == [1, 2] for found in turns.values())


def test_values_costs_and_means_are_those_of_what_was_trained(driven: tuple[Machine, Search]) -> None:
    machine, search = driven
    handed = {job["number"]: TrialConfig.model_validate_json(job["trial"]) for job in machine.jobs}
    records = search.records()
    table = trials_table(records).set_index("number")
    epochs = epochs_table(SweepFolder(machine.folder).spool)
    for number, config in handed.items():
        row, own = table.loc[number], epochs[epochs["number"] == number]
        assert own["epoch"].tolist() == [1, 2, 3, 4]
        for goal in GOALS:
            assert own[goal].tolist() == [scores(config, epoch)[goal] for epoch in (1, 2, 3, 4)]
            assert row[goal] == scores(config, EPOCHS)[goal]
        assert (row["state"], row["epochs"], row["seconds"]) == ("complete", EPOCHS, 0.5 * EPOCHS)
        assert row["device_hours"] * 3600 == pytest.approx(0.5 * EPOCHS * DEVICES)
    assert search.state.ledger.total == pytest.approx(0.5 * EPOCHS * DEVICES * len(handed))
    assert machine.search().state.ledger.total == pytest.approx(0.5 * EPOCHS * DEVICES * len(handed))
    heard = [event for _, event in Spool(SweepFolder(machine.folder)).read()]
    for kind, times in ((TrialStarted, 1), (TrialEnded, 1), (EpochEnded, EPOCHS)):
        counts = pd.Series([event.number for event in heard if isinstance(event, kind)]).value_counts()
        assert counts.to_dict() == dict.fromkeys(handed, times)
    first = table["repeat_of"].fillna(table.index.to_series()).astype(int)
    means, runs = table[list(GOALS)].groupby(first).mean(), first.value_counts()
    shown = {record.number: record for record in comparable(records, GOALS, REPEATS)}
    repeated = runs.index[runs == REPEATS]
    assert len(repeated) and set(repeated) <= set(shown)
    for number in repeated:
        assert shown[number].values(GOALS) == pytest.approx(means.loc[number].tolist())
        spread = table[first == number]["val/auroc"].std(ddof=1) / REPEATS**0.5
        assert shown[number].metrics["val/auroc_seed_se"] == pytest.approx(spread)


def test_best_is_of_the_mean_over_seeds_and_not_of_a_lucky_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_luck(config: TrialConfig, epoch: int) -> dict[str, float]:
        """By the learning rate, but that the first seed of the worst shines."""
        auroc = 0.5 + config.optimizer.lr - 3 * config.optimizer.lr * (config.seed > 0)
        return metrics_of(config, epoch) | {"val/auroc": auroc}

    monkeypatch.setattr("tests.sweep.fake.metrics_of", with_luck)
    words = ("trials=3", "search.repeats=2", "arms.tabular=false", "search.maximize=[val/auroc, val/pointing]")
    swept(tmp_path, *words)
    table = pd.read_parquet(tmp_path / "runs" / "fake" / "trials.parquet").set_index("number")
    first = table["repeat_of"].fillna(table.index.to_series()).astype(int)
    assert first.value_counts().tolist() == [2, 2, 2]
    means = table["val/auroc"].groupby(first).mean()
    best = load_trial(tmp_path / "runs" / "fake" / "best.yaml")
    lucky = table.loc[table["val/auroc"].idxmax(), "none/optimizer.lr"]
    assert best.optimizer.lr == table.loc[means.idxmax(), "none/optimizer.lr"] != lucky


def test_a_restarted_driver_ranks_against_what_earlier_ones_have_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler that a driver gives to Ray Tune knows every rung; an empty rung would let anyone pass."""
    words = ("search.early_stopping={reduction: 2, grace: 1}", "arms.tabular=false")

    def reaching(search: Search) -> None:
        for number in range(4):
            job = search.suggest(f"t{number}")
            metrics = metrics_of(TrialConfig.model_validate_json(job["trial"]), 1)
            values = tuple(metrics[goal] for goal in GOALS)
            search.state.studies.record_arrival(Arrival(job["number"], "none", 1, values, True))
            play(search, f"t{number}", job)

    swept(tmp_path, "trials=4", *words, play=reaching)
    decisions: list[bool] = []

    def run_tune(search: Search, halving: ArmHalving, *rest: Any) -> None:
        poor = {"epoch": 1, "metrics": dict.fromkeys(GOALS, 0.0)}
        decisions.append(halving.decide(search.suggest("fifth"), poor))

    for name, stand_in in {
        "cluster": contextlib.nullcontext,
        "reservation_for": lambda *_: Reservation(1.0, 0.0),
        "mps_where_shared": lambda *_: contextlib.nullcontext(),
        "wait_for_first_machine": lambda *_: None,
        "wanted_per_device": lambda _: None,
        "run_tune": run_tune,
    }.items():
        monkeypatch.setattr(f"sweep.driver.{name}", stand_in)
    monkeypatch.setattr("sweep.cluster.largest_machine_cores", lambda: 2.0)
    swept(tmp_path, "trials=5", *words, play=None)
    assert decisions == [False]
