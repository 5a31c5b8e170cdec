"""The tabular teacher and the cache of outputs, on a small store made here."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TeacherConfig, TrialConfig, validate
from mmpkd.teachers import TEACHERS
from mmpkd.teachers.outputs import cached_outputs, out_of_fold_logits, shuffled_within_label, teach
from mmpkd.teachers.tabular import Tabular, TabularParams
from mmpkd.types import TeacherError


@pytest.fixture(scope="module")
def store(tiny_cohort: CohortConfig, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare(tiny_cohort, tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["linear", "mlp"])
def config(request: pytest.FixtureRequest) -> TeacherConfig:
    return TeacherConfig(kind="tabular", params={"model": request.param})


def test_logits_of_training_samples_are_out_of_fold_by_patient(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[int], set[int]]] = []
    fitted: list[set[int]] = []
    fit, ask = Tabular.fit, Tabular.outputs
    monkeypatch.setattr(
        Tabular, "fit", lambda self, s, rows: (fitted.append(set(s.patient_N[rows])), fit(self, s, rows))[1]
    )
    monkeypatch.setattr(
        Tabular,
        "outputs",
        lambda self, s, rows: (seen.append((fitted[-1], set(s.patient_N[rows]))), ask(self, s, rows))[1],
    )
    rows = store.rows("train")
    logits = out_of_fold_logits(Tabular(TabularParams(), store.facts), store, rows, 0)
    assert len(seen) == 5 and all(not learned & asked for learned, asked in seen)
    assert set().union(*(asked for _, asked in seen)) == set(store.patient_N[rows])
    assert np.isfinite(logits).all()


def test_test_samples_are_never_asked_about(store: Store, config: TeacherConfig, tmp_path: Path) -> None:
    outputs = cached_outputs(config, store, 0, tmp_path)
    for values in outputs.arrays.values():
        assert values[store.rows("test")].isnan().all()
        assert values[np.r_[store.rows("train"), store.rows("val")]].isfinite().all()


def test_the_second_asking_is_answered_from_the_cache(
    store: Store, config: TeacherConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_outputs(config, store, 0, tmp_path)
    monkeypatch.setattr(Tabular, "fit", lambda *_: pytest.fail("fitted again"))
    second = cached_outputs(config, store, 0, tmp_path)
    for name in first.arrays:
        assert torch.equal(first.arrays[name].nan_to_num(), second.arrays[name].nan_to_num())
    assert first.quality == second.quality
    assert [path.name for path in (tmp_path / "teachers").glob("*.partial")] == []


def test_other_parameters_other_address(store: Store, config: TeacherConfig, tmp_path: Path) -> None:
    cached_outputs(config, store, 0, tmp_path)
    cached_outputs(config.model_copy(update={"params": {**config.params, "l2": 3.0}}), store, 0, tmp_path)
    assert len(list((tmp_path / "teachers").glob("*/manifest.json"))) == 2


def test_fitting_twice_gives_the_same_numbers(store: Store, config: TeacherConfig) -> None:
    params = validate(TabularParams, config.params)
    rows = store.rows("train")
    answers = []
    for _ in range(2):
        teacher = Tabular(params, store.facts)
        teacher.fit(store, rows)
        answers.append(teacher.outputs(store, rows))
    assert torch.equal(answers[0].logits_BK, answers[1].logits_BK)  # type: ignore[arg-type]
    assert torch.equal(answers[0].embedding_BD, answers[1].embedding_BD)  # type: ignore[arg-type]


def test_declared_provides_is_what_comes_back(store: Store, tmp_path: Path) -> None:
    for kind in TEACHERS:
        outputs = cached_outputs(TeacherConfig(kind=kind), store, 0, tmp_path)
        assert set(outputs.arrays) == TEACHERS[kind].offers(TEACHERS[kind].Params(), store.facts).fields


def test_logits_are_read_from_the_embedding(store: Store, config: TeacherConfig) -> None:
    teacher = Tabular(validate(TabularParams, config.params), store.facts)
    teacher.fit(store, store.rows("train"))
    told = teacher.outputs(store, store.rows("val"))
    with torch.no_grad():
        torch.testing.assert_close(teacher.model[-1](told.embedding_BD), told.logits_BK)


def test_quality_is_that_of_the_out_of_fold_logits(store: Store, config: TeacherConfig, tmp_path: Path) -> None:
    outputs, rows = cached_outputs(config, store, 0, tmp_path), store.rows("train")
    logits, target = outputs.arrays["logits"][rows], store.target_NK[rows]
    expected = roc_auc_score(target.argmax(1), logits.softmax(1), multi_class="ovr")
    assert outputs.quality["auroc"] == pytest.approx(expected, abs=1e-3)  # log odds against probabilities
    agreement = (logits.argmax(1).numpy() == target.argmax(1)).mean()
    assert outputs.quality["agreement"] == pytest.approx(agreement)


def test_shuffled_control_keeps_labels_and_breaks_samples(store: Store, tmp_path: Path) -> None:
    outputs, rows = cached_outputs(TeacherConfig(kind="tabular"), store, 0, tmp_path), store.rows("train")
    shuffled = shuffled_within_label(outputs, store, 0, seed=0)
    before, after = outputs.arrays["logits"][rows].numpy(), shuffled.arrays["logits"][rows].numpy()
    label = store.target_NK[rows].argmax(1)
    assert (before != after).any(axis=1).mean() > 0.9
    for one in range(3):
        order = [pd.DataFrame(x[label == one]).sort_values([0, 1, 2]).to_numpy() for x in (before, after)]
        np.testing.assert_array_equal(*order)
    rest = np.setdiff1d(np.arange(len(store.sample_ids)), rows)
    np.testing.assert_array_equal(outputs.arrays["logits"][rest], shuffled.arrays["logits"][rest])


def test_a_teacher_nobody_listens_to_is_not_fitted(store: Store, tiny_cohort: CohortConfig, tmp_path: Path) -> None:
    config = TrialConfig(
        cohort=tiny_cohort,
        teachers={"findings": TeacherConfig(kind="tabular")},
        objectives={"logits": {"weight": 0.0}},  # type: ignore[dict-item]
    )
    assert teach(config, store, tmp_path) == {}
    assert not (tmp_path / "teachers").exists()


def test_a_single_class_is_refused(store: Store) -> None:
    one_class = store.rows("train")[store.target_NK[store.rows("train")][:, 0] == 1]
    with pytest.raises(TeacherError, match="a teacher needs both kinds"):
        Tabular(TabularParams(), store.facts).fit(store, one_class)


def test_manifest_says_what_was_fitted(store: Store, tmp_path: Path) -> None:
    cached_outputs(TeacherConfig(kind="tabular"), store, 0, tmp_path)
    (manifest,) = (tmp_path / "teachers").glob("*/manifest.json")
    content = json.loads(manifest.read_text())
    assert content["kind"] == "tabular" and content["cohort"] == store.fingerprint
