"""The contract of every teacher, the cache of outputs, and the tabular teacher, on a small generated store."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, TeacherConfig, TrialConfig, validate
from mmpkd.teachers import TEACHERS, check, resolve
from mmpkd.teachers.cache import CachedOutputs, cached_outputs, instantiate
from mmpkd.teachers.controls import permute_between_patients
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.teachers.fitting import folds
from mmpkd.teachers.quality import map_quality
from mmpkd.teachers.tabular import Tabular, TabularParams
from mmpkd.types import Needs, TaskKind, TeacherError, lay_out
from tests.mmpkd.teacher_fixtures import EXAMPLES, outputs_of


@pytest.fixture(scope="module")
def store(tiny_cohort: CohortConfig, cache: Path) -> Store:
    return prepare(tiny_cohort, cache)


class Taught(NamedTuple):
    """A teacher's cached outputs, and the rows of each fit and of each prediction, in turn."""

    config: TeacherConfig
    outputs: CachedOutputs
    fitted: list[NDArray[np.int64]]
    asked: list[NDArray[np.int64]]
    cache: Path


@pytest.fixture(scope="module", params=EXAMPLES)
def taught(request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    config, cache = EXAMPLES[request.param], tmp_path_factory.mktemp("taught")
    kind = TEACHERS[config.kind]
    fitted: list[NDArray[np.int64]] = []
    asked: list[NDArray[np.int64]] = []
    fit, ask = kind.fit, kind.outputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "fit", lambda self, s, rows: (fitted.append(rows), fit(self, s, rows))[1])
        patch.setattr(kind, "outputs", lambda self, s, rows: (asked.append(rows), ask(self, s, rows))[1])
        outputs = outputs_of(config, store, cache)
    if config.kind == "ensemble":  # which has a tabular and a text member of its own
        assert len(list((cache / "teachers").glob("*/manifest.json"))) == 3
    return Taught(config, outputs, fitted, asked, cache)


def test_every_kind_has_an_example() -> None:
    assert {one.kind for one in EXAMPLES.values()} == set(TEACHERS)


def test_patients_stay_in_one_fold(store: Store, taught: Taught) -> None:
    patients = [[set(store.patient_N[rows]) for rows in side] for side in (taught.fitted, taught.asked)]
    learnt, asked = patients
    assert len(learnt) == len(asked) == 6
    assert all(not one & other for one, other in zip(learnt[:5], asked[:5], strict=True))
    train = store.rows("train")
    assert sorted(np.concatenate(taught.asked[:5])) == train.tolist(), "each training sample is asked about once"
    assert all(
        set(one) | other == set(store.patient_N[train]) for one, other in zip(learnt[:5], asked[:5], strict=True)
    )


def test_test_samples_are_never_seen(store: Store, taught: Taught) -> None:
    train, val = store.rows("train"), store.rows("val")
    assert all(np.isin(rows, train).all() for rows in taught.fitted)
    assert np.array_equal(taught.fitted[-1], train) and np.array_equal(taught.asked[-1], np.r_[train, val])
    for values in taught.outputs.arrays.values():
        assert values[store.rows("test")].isnan().all()


def test_only_samples_without_text_have_no_output(store: Store, taught: Taught) -> None:
    asked = np.r_[store.rows("train"), store.rows("val")]
    says = np.ones(len(asked), bool)
    if taught.config.kind == "text":
        says = store.text(["report"])["report"].notna().to_numpy()[asked]
    assert says.mean() > 0.7
    for values in taught.outputs.arrays.values():
        finite = values[asked].isfinite().flatten(1)
        assert np.array_equal(finite.all(1), says) and np.array_equal(finite.any(1), says)
    assert taught.outputs.quality["silent"] == pytest.approx(1 - says[: len(store.rows("train"))].mean())


def test_outputs_match_the_offer(store: Store, taught: Taught) -> None:
    assert not check(taught.config, store.facts)
    offer = resolve(taught.config).offers(store.facts)
    arrays = taught.outputs.arrays
    hidden = [f"hidden-{layer}" for layer in range(offer.layers)]
    assert set(arrays) == (offer.fields - {"hidden", "head"}) | set(hidden)
    assert (taught.outputs.head is not None) == ("head" in offer.fields)
    assert ("hidden" in offer.fields) == (offer.layers > 0)
    assert all(arrays[name].shape == arrays["embedding"].shape for name in hidden)
    assert arrays["logits"].shape == store.target_NK.shape
    if "map" in offer.fields:
        maps = arrays["map"][store.rows("train")]
        assert (maps >= 0).all()
        torch.testing.assert_close(maps.sum(dim=(1, 2)), torch.ones(len(maps)))


def test_a_new_fit_gives_the_same_outputs(store: Store, taught: Taught) -> None:
    """Cache, earlier work of the process and number of threads have no influence; predicting changes nothing."""
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    resolved = resolve(taught.config)
    members = {name: cached_outputs(each, store, 0, taught.cache) for name, each in resolved.members.items()}
    teacher = instantiate(resolved, store, members)
    teacher.fit(store, store.rows("train"))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    rows, val = taught.asked[-1], store.rows("val")
    rounding = 1e-5 if teacher.sees_view else 0.0  # asked in other batches
    exact = {"rtol": 0.0, "atol": rounding, "equal_nan": True}
    for said in (teacher.outputs(store, rows), teacher.outputs(store, rows)):
        assert said.logits_BK is not None and not said.logits_BK.requires_grad
        cached = taught.outputs.at(torch.from_numpy(val))
        assert cached.logits_BK is not None
        fresh = said.logits_BK[len(rows) - len(val) :]
        torch.testing.assert_close(fresh, cached.logits_BK, **exact)
        for name in ("embedding_BD", "map_Bhw"):
            values = getattr(said, name)
            if values is not None:
                known = taught.outputs.at(torch.from_numpy(rows))
                assert not values.requires_grad
                torch.testing.assert_close(values, getattr(known, name), **exact)
    alone = teacher.outputs(store, val[:1]).logits_BK
    torch.testing.assert_close(alone, fresh[:1], equal_nan=True)


@pytest.fixture(params=["linear", "mlp"])
def config(request: pytest.FixtureRequest) -> TeacherConfig:
    return TeacherConfig(kind="tabular", params={"model": request.param})


def test_the_second_request_is_served_from_the_cache(
    store: Store, taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TEACHERS[taught.config.kind], "fit", lambda *_: pytest.fail("fitted again"))
    first, second = taught.outputs, outputs_of(taught.config, store, taught.cache)
    assert set(first.arrays) == set(second.arrays)
    for name in first.arrays:
        assert torch.equal(first.arrays[name].nan_to_num(), second.arrays[name].nan_to_num())
    assert first.quality == second.quality
    assert [path.name for path in (taught.cache / "teachers").glob("*.partial")] == []


def test_other_parameters_give_another_address(store: Store, tmp_path: Path) -> None:
    for l2 in (1.0, 3.0):
        cached_outputs(resolve(TeacherConfig(kind="tabular", params={"l2": l2})), store, 0, tmp_path)
    assert len(list((tmp_path / "teachers").glob("*/manifest.json"))) == 2


def test_only_what_an_objective_reads_is_kept(taught: Taught) -> None:
    kept = taught.outputs.only(Needs(teacher=frozenset({"logits", "hidden"}), teacher_layers=frozenset({1})))
    assert set(kept.arrays) == {"logits", "hidden-1"} & set(taught.outputs.arrays)


def test_logits_are_computed_from_the_embedding(store: Store, config: TeacherConfig) -> None:
    teacher = Tabular(validate(TabularParams, config.params), store.facts)
    teacher.fit(store, store.rows("train"))
    told = teacher.outputs(store, store.rows("val"))
    with torch.no_grad():
        torch.testing.assert_close(teacher.model[-1](told.embedding_BD), told.logits_BK)


def test_boosted_trees_are_those_of_scikit_learn(store: Store) -> None:
    teacher = Tabular(TabularParams(model="boosting", columns=("stiffness",)), store.facts)
    train, val = store.rows("train"), store.rows("val")
    teacher.fit(store, train)
    said = teacher.outputs(store, val)
    assert said.embedding_BD is None and said.logits_BK is not None
    column = store.privileged(["stiffness"]).to_numpy()
    filled = np.where(np.isnan(column), np.nanmedian(column[train]), column)
    plain = np.hstack([filled, np.isnan(column)])  # trees do not mind the scale
    peer = HistGradientBoostingClassifier(l2_regularization=1.0, early_stopping=False, random_state=0)
    peer.fit(plain[train], store.target_NK[train].argmax(1))
    np.testing.assert_allclose(said.logits_BK.softmax(1), peer.predict_proba(plain[val]), atol=1e-4)


def test_quality_is_that_of_the_out_of_fold_logits(store: Store, taught: Taught) -> None:
    outputs, rows = taught.outputs, store.rows("train")
    spoken = outputs.arrays["logits"][rows].isfinite().all(1).numpy()
    fold, rows = folds(store, rows, 0)[spoken], rows[spoken]
    logits, target = outputs.arrays["logits"][rows], store.target_NK[rows]
    by_fold = [
        roc_auc_score(target[fold == one].argmax(1), logits[fold == one].softmax(1), multi_class="ovr")
        for one in range(5)
    ]
    assert outputs.quality["auroc"] == pytest.approx(np.mean(by_fold), abs=1e-3)  # log odds against probabilities
    agreement = (logits.argmax(1).numpy() == target.argmax(1)).mean()
    assert outputs.quality["agreement"] == pytest.approx(agreement)
    seen = map_quality(outputs.arrays["map"], store, store.rows("val")) if "map" in outputs.arrays else {}
    assert {score: outputs.quality.get(score) for score in seen} == seen and ("pointing" in outputs.quality) == bool(
        seen
    )


def test_shuffled_control_keeps_labels_and_breaks_samples(store: Store, tmp_path: Path) -> None:
    outputs, rows = cached_outputs(resolve(TeacherConfig(kind="tabular")), store, 0, tmp_path), store.rows("train")
    shuffled = outputs.shuffled(store, 0, seed=0)
    before, after = outputs.arrays["logits"][rows].numpy(), shuffled.arrays["logits"][rows].numpy()
    label = store.target_NK[rows].argmax(1)
    assert (before != after).any(axis=1).mean() > 0.9
    for one in range(3):
        order = [pd.DataFrame(x[label == one]).sort_values([0, 1, 2]).to_numpy() for x in (before, after)]
        np.testing.assert_array_equal(*order)
    rest = np.setdiff1d(np.arange(len(store.sample_ids)), rows)
    np.testing.assert_array_equal(outputs.arrays["logits"][rest], shuffled.arrays["logits"][rest])


class _Labelled(NamedTuple):
    """The part of a store that the control reads."""

    sample_ids: NDArray[np.str_]
    patient_N: NDArray[np.int64]
    target_NK: NDArray[np.float32]
    known_NK: NDArray[np.bool_]
    facts: SimpleNamespace


def _dealt(
    labels: NDArray[np.int64],
    patient: NDArray[np.int64],
    group: NDArray[np.int64],
    kind: TaskKind = "multilabel",
    seed: int = 0,
) -> NDArray[np.int64]:
    ids, known = np.arange(len(labels)).astype(str), labels >= 0
    facts = SimpleNamespace(tasks=lay_out([("t", kind, [f"c{k}" for k in range(labels.shape[1])])]))
    labelled = cast(Store, _Labelled(ids, patient, labels.astype(np.float32), known, facts))
    return permute_between_patients(group, labelled, np.arange(len(labels)), seed)


def test_the_control_never_uses_the_same_patient() -> None:
    generator = np.random.default_rng(0)
    patient, group = np.repeat(np.arange(150), 2), np.repeat(generator.integers(0, 2, 150), 2)
    labels = (generator.random((300, 8)) < 0.3).astype(np.int64)  # most combinations are a single patient's
    source = _dealt(labels, patient, group)
    assert (patient[source] != patient).all() and (group[source] == group).all()
    differing = (labels[source] != labels).sum(axis=1)
    for sample in range(300):
        others = (group == group[sample]) & (patient != patient[sample])
        assert differing[sample] == (labels[others] != labels[sample]).sum(axis=1).min()


def test_the_control_by_hand() -> None:
    labels = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0], [-1, 0, 0], [1, 1, 1]])
    one, two = np.array([0, 0, 1, 2, 3, 4]), np.array([0, 0, 0, 0, 0, 1])
    # The first two are one patient's, and the nearest other's in their group is the third; its nearest are they;
    # the fourth and the fifth differ by what is unknown; the last is alone in its group.
    source = _dealt(labels, one, two)
    assert source[[0, 1, 3, 4, 5]].tolist() == [2, 2, 4, 3, 5] and source[2] in (0, 1)


def test_the_control_counts_a_multiclass_label_once() -> None:
    """An unknown class and another class differ equally, although in five columns or in two."""
    labels = np.concatenate([np.eye(5, dtype=np.int64)[:2], np.full((1, 5), -1)])
    drawn = {_dealt(labels, np.arange(3), np.zeros(3, np.int64), "multiclass", seed)[0] for seed in range(20)}
    assert drawn == {1, 2}


def test_an_unused_teacher_is_not_fitted(store: Store, tiny_cohort: CohortConfig, tmp_path: Path) -> None:
    config = TrialConfig(
        cohort=tiny_cohort,
        teachers={"findings": TeacherConfig(kind="tabular")},
        objectives={"logits": {"weight": 0.0}},  # type: ignore[dict-item]
    )
    assert fit_teachers(config, store, tmp_path) == {}
    assert not (tmp_path / "teachers").exists()


def test_a_single_class_is_refused(store: Store) -> None:
    one_class = store.rows("train")[store.target_NK[store.rows("train")][:, 0] == 1]
    with pytest.raises(TeacherError, match="a teacher needs both sides"):
        Tabular(TabularParams(), store.facts).fit(store, one_class)


def test_the_manifest_describes_the_fit(store: Store, tmp_path: Path) -> None:
    cached_outputs(resolve(TeacherConfig(kind="tabular")), store, 0, tmp_path)
    (manifest,) = (tmp_path / "teachers").glob("*/manifest.json")
    content = json.loads(manifest.read_text())
    assert content["kind"] == "tabular" and content["cohort"] == store.fingerprint
