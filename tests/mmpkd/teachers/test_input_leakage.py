"""Every command warns of columns, pairs of columns and sections that state the label."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mmpkd import evaluate, train
from mmpkd.cohort.__main__ import main as cohort_command
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.cohort.suspects import Suspects, find_suspects_in, suspects_of
from mmpkd.config import TeacherConfig
from mmpkd.teachers import resolve
from mmpkd.teachers.input_leakage import leakage_warnings
from mmpkd.training.stand_in import stand_in
from tests.mmpkd import cohort_fixtures

TASKS = {
    "malignant": {"kind": "binary", "column": "pathology", "labels": ["benign", "malignant"]},
    "site": {"kind": "multiclass", "column": "site", "labels": ["upper", "lower", "middle"]},
}
COLUMNS = {
    "shape": {"role": "descriptor"},
    "verdict": {"role": "descriptor"},  # states the first task
    "quadrant": {"role": "context"},  # states a class of the second
    "first": {"role": "descriptor"},  # these two state the first task together
    "second": {"role": "descriptor"},
    "birads": {"role": "near_label"},
}


def table() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    cases = cohort_fixtures.cases(40)
    patient = np.arange(len(cases)) // 2
    ill = (cases["pathology"] == "malignant").to_numpy()
    site = rng.permutation(np.arange(40) % 3)[patient]
    first = rng.integers(0, 2, 40)[patient]
    return cases.assign(
        verdict=np.where(ill, "secret-yes", "secret-no"),
        site=np.take(["upper", "lower", "middle"], site),
        quadrant=np.where(site == 2, "q3", "q1"),
        first=np.take(["a", "b"], first),
        second=np.take(["c", "d"], first ^ ill),
        report=np.where(ill, "A malignant coronavirus lesion", "A benign lesion"),
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("raw")
    cohort_fixtures.write_cohort(root, table())
    return cohort_fixtures.config(root, image_size=16, tasks=TASKS, columns=COLUMNS, text={"report": "report"})


@pytest.fixture(scope="module")
def store(cohort: Any, cache: Path) -> Store:
    return prepare(cohort, cache)


def said(store: Store, *teachers: TeacherConfig) -> list[str]:
    named = [(f"teachers.t{index}", resolve(teacher)) for index, teacher in enumerate(teachers)]
    return leakage_warnings(suspects_of(store), named, store, 0)


def test_columns_and_pairs_of_columns_by_name_and_score(store: Store) -> None:
    lines = suspects_of(store).lines(store.facts)
    assert [line.partition(";")[0] for line in lines] == [
        "column 'quadrant' alone tells site/middle with AUROC 1.00, out of fold",
        "column 'verdict' alone tells malignant/malignant with AUROC 1.00, out of fold",
        "columns 'first' and 'second' together tell malignant/malignant with AUROC 1.00, out of fold, though neither "
        "does alone",
        "the words of section 'report' alone tell malignant/malignant with AUROC 1.00, out of fold",
    ]
    assert "secret" not in " ".join(lines), "values are not told"


def test_tables_and_store_give_the_same_suspects(store: Store, cohort: Any) -> None:
    assert find_suspects_in(stand_in(cohort)) == suspects_of(store)
    assert find_suspects_in(store) == suspects_of(store)


def test_a_near_label_column_is_reported_if_a_teacher_reads_it(store: Store) -> None:
    asking = TeacherConfig(kind="tabular", params={"columns": ["shape"], "near_label": ["birads"]})
    members = {"members": {"a": asking, "b": {"kind": "tabular"}}}
    line = "reads the near-label column 'birads', which alone tells malignant/malignant with AUROC 1.00, out of fold"
    assert f"teachers.t0 {line}" in said(store, asking)
    assert f"teachers.t0.params.members.a {line}" in said(store, TeacherConfig(kind="ensemble", params=members))
    assert not any("birads" in one for one in said(store, TeacherConfig(kind="tabular")))


def test_a_section_is_reported_in_the_form_in_which_it_is_read(store: Store) -> None:
    """Whole, with the labels' names hidden, and with the synonym hidden as well; each choice on a path counts."""
    whole, masked = TeacherConfig(kind="text"), TeacherConfig(kind="text", params={"mask_labels": True})
    clean = TeacherConfig(kind="text", params={"mask_labels": {"also": ["coronavirus"]}})
    teachers = [("t", resolve(teacher)) for teacher in (whole, masked, clean, masked)]
    lines = leakage_warnings(suspects_of(store), teachers, store, 0)[3:]
    assert len(lines) == 2
    assert lines[0].startswith("t reads 'report', whose words alone tell malignant/malignant with AUROC 1.00")
    assert lines[1].startswith("t reads 'report' with the labels' names hidden, and the single words that are left")
    assert "coronavirus" in lines[1], "public, so the words may be shown"


def test_words_of_credentialed_cohorts_are_not_shown(store: Store, cohort: Any, cache: Path) -> None:
    params = {**cohort.params, "credentialed": True}
    closed = prepare(cohort.model_copy(update={"params": params}), cache)
    (line,) = said(closed, TeacherConfig(kind="text", params={"mask_labels": True}))[3:]
    assert "single words that are left still tell malignant/malignant" in line and "coronavirus" not in line
    assert "credentialed: false in cohort.params names them here, for public data only" in line


def test_a_sound_cohort_gives_no_warnings(tmp_path: Path) -> None:
    cohort_fixtures.write_cohort(tmp_path)
    tables = stand_in(cohort_fixtures.config(tmp_path))
    assert find_suspects_in(tables).lines(tables.facts) == []
    assert Suspects().lines(tables.facts) == []


def test_every_command_warns_each_time(
    store: Store, cohort: Any, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    content = {
        "cohort": cohort.model_dump(mode="json"),
        "student": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "teachers": {"findings": {"kind": "tabular", "params": {"near_label": ["birads"]}}},
        "objectives": {"logits": {}},
        "epochs": 1,
    }
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(content))
    words = [f"config={path}", f"cache={cache}", f"out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["train"])
    for _ in range(2):  # the second time it is in the cache, and done
        train.main(words)
        captured = capsys.readouterr()
        told = captured.err
        assert ", all but states the label on malignant (AUROC on validation; out of fold " in captured.out
        assert "warning: column 'verdict' alone tells malignant/malignant" in told
        assert "warning: teachers.findings reads birads, which nearly states the label" in told
        assert "near-label column 'birads', which alone tells" in told
    for verb in ("prepare", "show"):
        cohort_command([verb, *words[:2]])
        assert "warning: columns 'first' and 'second' together tell" in capsys.readouterr().err
    (student,) = (tmp_path / "out").glob("*/student.safetensors")
    evaluate.main([f"model={student}", *words])
    assert "warning: the words of section 'report' alone tell" in capsys.readouterr().err
