"""Which columns may be taught from, and how a wrong wish is answered; which reader, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import READERS, facts, reader_for
from mmpkd.cohort.chosen_columns import check_columns
from mmpkd.cohort.facts import ADMITTED, Column, Facts, encode_labels, label_columns
from mmpkd.config import CohortConfig
from mmpkd.types import ConfigError, lay_out

COLUMNS = {
    one.name: one
    for one in (
        Column("mass_shape", "descriptor"),
        Column("mass_margins", "descriptor", "multivalued", "-"),
        Column("age", "context", "numeric"),
        Column("assessment", "near_label"),
        Column("pathology", "forbidden"),
        Column("patient_id", "id"),
    )
}
FACTS = Facts(
    tasks=lay_out([("malignant", "binary", ("benign", "malignant"))]),
    columns=COLUMNS,
    unlisted=("subtlety",),
    channels=1,
    image_size=32,
    roi_labels=(),
    views=(),
    sections={},
    credentialed=False,
    num_samples=4,
)


def test_descriptors_and_context_may_be_used_near_label_when_asked_for() -> None:
    assert check_columns(["mass_shape", "age"], [], FACTS) == []
    assert check_columns(["mass_shape"], ["assessment"], FACTS) == []
    assert check_columns([], [], FACTS) == []


@pytest.mark.parametrize(
    ("columns", "near_label", "said"),
    [
        (["pathology"], [], ["'pathology' is forbidden", "mass_shape, mass_margins, age"]),
        ([], ["pathology"], ["'pathology' is forbidden"]),
        (["assessment"], [], ["'assessment' nearly states the label", "list it under `near_label:`"]),
        (["subtlety"], [], ["'subtlety' has no role", "not stored"]),
        (["patient_id"], [], ["'patient_id' only names things"]),
        (["mass_shap"], [], ["no column 'mass_shap'", "did you mean 'mass_shape'"]),
        (["zzz"], [], ["no column 'zzz'", "known: age, assessment, mass_margins, mass_shape"]),
        (["Assessment "], [], ["'assessment'"]),
        ([" PATHOLOGY"], [], ["'pathology' is forbidden"]),
        (["Age"], [], ["no column 'Age'; write it as the source does: 'age'"]),
        ([], ["age"], ["'age' has role context, not near_label; list it under `columns:`"]),
        (["age", "age"], [], ["'age' is listed twice"]),
    ],
)
def test_wrong_columns(columns: list[str], near_label: list[str], said: list[str]) -> None:
    ((path, problem),) = check_columns(columns, near_label, FACTS)
    assert path == ("near_label" if near_label else "columns")
    for words in said:
        assert words in problem


def test_all_wrong_columns_are_told_at_once() -> None:
    mistakes = check_columns(["pathology", "subtlety", "age", "assessment"], ["zzz"], FACTS)
    assert [mistake.path for mistake in mistakes] == ["columns"] * 3 + ["near_label"]


def test_encode_by_hand() -> None:
    binary, multi = lay_out([("m", "binary", ("no", "yes")), ("k", "multiclass", ("a", "b", "c"))])
    assert label_columns([binary, multi]) == ["m/yes", "k/a", "k/b", "k/c"]
    names = pd.Series(["yes", None, "no"], index=["s1", "s2", "s3"])
    encoded = encode_labels(binary, names)
    assert encoded.index.tolist() == ["s1", "s2", "s3"] and encoded.columns.tolist() == ["m/yes"]
    np.testing.assert_array_equal(encoded.to_numpy(), [[1.0], [np.nan], [0.0]])
    np.testing.assert_array_equal(
        encode_labels(multi, pd.Series(["c", None, "a"])).to_numpy(), [[0, 0, 1], [np.nan] * 3, [1, 0, 0]]
    )
    with pytest.raises(KeyError):
        encode_labels(multi, pd.Series(["d"]))


def test_unknown_reader_lists_near_names() -> None:
    with pytest.raises(ConfigError, match=r"cohort\.reader: unknown reader 'breast_lesion_usg' \(did you mean"):
        reader_for(CohortConfig(reader="breast_lesion_usg"))


@pytest.mark.parametrize("reader", [name for name, one in READERS.items() if one.needs_root])
def test_missing_root_says_how_to_give_it(reader: str, tmp_path: Path) -> None:
    for root, said in ((None, "missing"), (tmp_path / "nowhere", "no such folder: ")):
        with pytest.raises(ConfigError) as caught:
            facts(CohortConfig(reader=reader, root=root))
        (mistake,) = [one for one in caught.value.mistakes if one.path == "cohort.root"]
        assert said in mistake.problem and "cohort.root=DIR" in mistake.problem
        assert root is None or str(root) in mistake.problem


def test_root_and_params_are_told_together(tmp_path: Path) -> None:
    config = CohortConfig(reader="breast_lesions_usg", root=tmp_path / "nowhere", params={"fold": 1})
    with pytest.raises(ConfigError) as caught:
        reader_for(config)
    assert [one.path for one in caught.value.mistakes] == ["cohort.root", "cohort.params.fold"]


def test_a_generated_cohort_takes_no_root(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort\.root: reader 'synthetic' generates its data"):
        reader_for(CohortConfig(reader="synthetic", root=tmp_path))


def test_admitted_roles_leave_out_what_gives_the_label_away() -> None:
    assert set(ADMITTED).isdisjoint({"near_label", "forbidden", "id"})


@pytest.mark.parametrize(
    "tasks",
    [
        [("a", "multilabel", ["b/c"]), ("a/b", "multilabel", ["c"])],
        [("a", "multilabel", ["b", "c"]), ("a/b", "binary", ["no", "yes"])],
        [("a", "multilabel", ["b", "b"])],
        [("a", "binary", ["no", "yes"]), ("a", "binary", ["no", "yes"])],
    ],
)
def test_no_two_scores_have_one_name(tasks: Any) -> None:
    with pytest.raises(ConfigError, match=r"cohort\.params\.tasks: two tasks or labels .* under the name 'a"):
        lay_out(tasks)
