"""The cost of a training, measured before the cohort is prepared."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig, TeacherConfig, TrialConfig
from mmpkd.teachers import resolve
from mmpkd.teachers.text import Text
from mmpkd.training.probe import Probe, random_outputs, time_teacher
from mmpkd.training.stand_in import StandIn, evenly, stand_in
from mmpkd.types import Needs, TeacherOutput
from tests.mmpkd.teacher_fixtures import EXAMPLES, TEXT


def test_the_stand_in_has_the_parts_of_the_prepared_cohort(tiny_cohort: CohortConfig, cache: Path) -> None:
    table, store = stand_in(tiny_cohort), prepare(tiny_cohort, cache)
    for part in ("train", "val"):
        assert np.array_equal(table.rows(part, 0), store.rows(part, 0))
    assert np.array_equal(table.target_NK, store.target_NK) and np.array_equal(table.known_NK, store.known_NK)
    assert len(np.unique(table.patient_N)) == len(np.unique(store.patient_N))
    assert table.image_NCHW.size == 0, "no pixel before a worker wants some"


def test_thinned_samples_cover_both_parts_without_privileged_columns(tiny_cohort: CohortConfig) -> None:
    table = stand_in(tiny_cohort)
    thin = table.thinned(most_train=16, most_val=10, fold=0)
    assert not [name for name in thin if str(name).startswith("privileged")]
    some = StandIn(table.facts, thin)
    assert (len(some.rows("train", 0)), len(some.rows("val", 0))) == (16, 10)
    assert some.image_NCHW.shape == (26, 1, 32, 32)
    roi = some.roi_mask(some.rows("val", 0))
    assert roi.shape == (10, 1, 32, 32) and roi.any(axis=(1, 2, 3)).all()


def test_evenly_keeps_the_ends() -> None:
    assert evenly(np.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert evenly(np.arange(3), 4).tolist() == [0, 1, 2]


def test_real_steps_are_timed(tiny_trial: TrialConfig) -> None:
    table = stand_in(tiny_trial.cohort)
    seconds, width = time_teacher(resolve(tiny_trial.teachers["findings"]), table, 0)
    assert seconds > 0 and width > 0
    probe = Probe(tiny_trial, StandIn(table.facts, table.thinned(32, 10, 0)), {"findings": width})
    before = {name: value.clone() for name, value in probe.run.student.state_dict().items()}
    warm = probe.run.step, probe.run.optimizer
    cost = probe.cost(0.2)
    assert (probe.run.step, probe.run.optimizer) == warm and warm[0] is not None, "timed cold"
    after = probe.run.student.state_dict()
    assert any(not np.array_equal(value, after[name]) for name, value in before.items()), "no step was taken"
    assert cost.num_steps >= 1 and cost.batch_size == 16
    assert min(cost.step_seconds, cost.validation_seconds) > 0
    assert cost.checkpoint_bytes > 10_000 and cost.device_bytes > cost.memory_bytes > 50 * 2**20


def test_every_stage_is_timed(tiny_trial: TrialConfig) -> None:
    content = tiny_trial.model_dump() | {
        "teachers": {"scan": EXAMPLES["image"]},
        "objectives": {"guidance": {}},
        "stages": [
            {"name": "alone", "train": ["student"], "epochs": 2},
            {"name": "guess", "train": ["guidance.guide"], "objectives": ["guidance"], "epochs": 1},
            {"name": "through", "train": ["guidance.guide"], "answer": "guidance.superior"},
        ],
    }
    table = stand_in(tiny_trial.cohort)
    probe = Probe(TrialConfig.model_validate(content), StandIn(table.facts, table.thinned(32, 10, 0)), {"scan": 16})
    assert probe.cost(0.1).num_steps >= 3 and probe.run.index == 2


@pytest.mark.parametrize("name", ["text", "image", "fused", "ensemble"])
def test_every_kind_of_teacher_is_timed_from_tables_alone(tiny_cohort: CohortConfig, name: str) -> None:
    seconds, width = time_teacher(resolve(EXAMPLES[name]), stand_in(tiny_cohort), 0)
    assert seconds > 0 and width == (0 if name == "ensemble" else 16)


def test_a_fit_is_extrapolated_in_samples_and_epochs(
    tiny_cohort: CohortConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit takes 2 s, and 10 ms for each sample of each epoch; outputs take no time."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("mmpkd.training.probe.MIN_FITTED", 15)

    def fit(self: Text, store: StandIn, rows: np.ndarray) -> None:
        clock[0] += 2 + 0.01 * len(rows) * self.params.epochs

    monkeypatch.setattr(Text, "fit", fit)
    monkeypatch.setattr(Text, "outputs", lambda self, store, rows: TeacherOutput())
    config = TeacherConfig(kind="text", params=TEXT | {"epochs": 7})
    assert time_teacher(resolve(config), stand_in(tiny_cohort), 0)[0] == pytest.approx(6 * 2 + 5 * 60 * 7 * 0.01)


def test_all_teacher_outputs_exist_for_timing(tiny_cohort: CohortConfig, cache: Path) -> None:
    store = prepare(tiny_cohort, cache)
    needs = Needs(teacher=frozenset({"embedding", "hidden", "map"}), teacher_layers=frozenset({0, 2}))
    arrays = random_outputs(store, 7, needs).arrays
    assert {name: values.shape[1:] for name, values in arrays.items()} == {
        "embedding": (7,),
        "hidden-0": (7,),
        "hidden-2": (7,),
        "map": (14, 14),
    }
