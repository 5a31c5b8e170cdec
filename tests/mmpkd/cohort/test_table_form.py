"""Tables of another form than CSV with commas in UTF-8, words that YAML takes for none, files that are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmpkd.cohort import facts
from mmpkd.cohort.prepare import prepare
from mmpkd.config import CohortConfig, load_trial
from mmpkd.machine.files import read_yaml
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort_fixtures import cases, config, write_cohort

SECRET = "case7"  # part of a name that no message about private data may hold


def written(path: Path, **options: Any) -> None:
    cases().assign(note="\u00e9").to_csv(path, index=False, **options)


def as_spreadsheet(path: Path) -> None:
    cases().to_excel(path.with_suffix(".xlsx"), index=False)
    path.with_suffix(".xlsx").rename(path)


FORMS: list[tuple[Callable[[Path], None], str, bool]] = [
    (lambda path: written(path, sep=";"), "separated by semicolons instead of commas", True),
    (lambda path: written(path, sep="\t"), "separated by tabs instead of commas", True),
    (lambda path: written(path, sep="|"), "separated by vertical bars instead of commas", True),
    (lambda path: written(path, encoding="utf-16"), "in UTF-16 instead of UTF-8", True),
    (lambda path: written(path, encoding="utf-16-le"), "in UTF-16 instead of UTF-8", True),
    (lambda path: written(path, encoding="latin-1"), "in Windows-1252 or latin-1 instead of UTF-8", True),
    (lambda path: written(path, encoding="cp1252", sep=";"), "UTF-8 and separated by semicolons instead of", True),
    (lambda path: written(path, sep=";", compression="gzip"), "a gzipped file under another name", False),
    (as_spreadsheet, "a spreadsheet (.xlsx) under another name; give it that suffix", False),
    (lambda path: cases().to_parquet(path), "a Parquet file under another name", False),
]


@pytest.mark.parametrize(("write", "message", "is_mended"), FORMS)
def test_another_form_is_suspected_aloud(
    tmp_path: Path, write: Callable[[Path], None], message: str, is_mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With default privacy; and the command that the message gives writes a table that is read."""
    write_cohort(tmp_path)
    write(tmp_path / "cases.csv")
    with pytest.raises(ConfigError) as raised:
        facts(config(tmp_path, credentialed=True))
    ((path, problem),) = raised.value.mistakes
    assert path == "cohort.params.file" and " seems to be " in problem and message in problem
    assert SECRET not in problem
    if is_mended:
        monkeypatch.chdir(tmp_path)
        exec(problem.partition('python -c "')[2].partition('" writes cases-mended.csv')[0])
        assert facts(config(tmp_path, file="cases-mended.csv")).num_samples == 60


def test_a_table_with_semicolons_in_a_name_is_no_other_form(tmp_path: Path) -> None:
    table = cases().rename(columns={"scanner": "a; b; c; d; e; f; g; h; i; j; k; l"})
    write_cohort(tmp_path, table)
    assert facts(config(tmp_path)).num_samples == 60


def test_decimal_commas(tmp_path: Path) -> None:
    table = cases()
    table["age"] = np.resize(["41,5", "41.5"], 60)
    write_cohort(tmp_path, table)
    with pytest.raises(ConfigError, match=r"30 cells are not a finite number: decimals follow a point, not a comma"):
        facts(config(tmp_path, credentialed=True))


QUESTION = """
cohort:
  reader: table
  root: ROOT
  params:
    file: cases.csv
    image: image
    image_root: images
    patient: patient
    tasks: {m: {kind: binary, column: pathology, labels: LABELS}}
    missing: MISSING
"""


def asked(tmp_path: Path, labels: str, missing: str = "[]") -> CohortConfig:
    path = tmp_path / "question.yaml"
    path.write_text(QUESTION.replace("ROOT", str(tmp_path)).replace("LABELS", labels).replace("MISSING", missing))
    return load_trial(path).cohort


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[no, yes]", "labels.0: YAML takes no, off and false for False where there are no quotes; put it in quotes"),
        ("[on, off]", "labels.0: YAML takes yes, on and true for True where there are no quotes"),
        ("[null, a]", "labels.0: YAML takes null, ~ and nothing for no value where there are no quotes"),
        ("[a, ]", "a binary task has at least 2 different labels"),
        ("[010, 020]", "as YAML reads numbers; labels in quotes stay as they are written"),
    ],
)
def test_labels_that_yaml_reads_as_no_words(tmp_path: Path, labels: str, message: str) -> None:
    write_cohort(tmp_path, cases().assign(pathology=np.resize(["010", "020"], 60)))
    with pytest.raises(ConfigError) as raised:
        facts(asked(tmp_path, labels))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["no", "yes"], "['no', \"yes\"]"),
        (["2020-01-01", "2021-01-01"], "[2020-01-01, 2021-01-01]"),
        (["1.5", "2"], "[1.5, 2]"),
    ],
)
def test_labels_in_quotes_and_numbers(tmp_path: Path, cells: list[str], labels: str) -> None:
    write_cohort(tmp_path, cases().assign(pathology=np.repeat(np.resize(cells, 30), 2)))
    assert facts(asked(tmp_path, labels)).tasks[0].labels == tuple(cells)


def test_missing_words_may_be_numbers_but_no_booleans(tmp_path: Path) -> None:
    cells = np.resize(["benign", "malignant", "-1", "99"], 60)
    write_cohort(tmp_path, cases().assign(pathology=cells))
    assert facts(asked(tmp_path, "[benign, malignant]", "[-1, 99]")).num_samples == 60
    with pytest.raises(ConfigError, match=r"missing\.0: YAML takes no, off and false for False"):
        facts(asked(tmp_path, "[benign, malignant]", "[no]"))
    assert read_yaml(tmp_path / "question.yaml")["cohort"]["params"]["missing"] == [False]


def refusal(root: Path, **params: Any) -> str:
    with pytest.raises(CohortError) as raised:
        facts(config(root, credentialed=True, **params))
    assert SECRET not in str(raised.value)
    assert "cohort.params.credentialed=false shows which files these are" in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: name.removesuffix(".png"), "there is one that ends in .png: is the extension missing?"),
        (lambda name: name.replace(".png", ".PNG"), "there is one that differs only in case, in blanks or in how its"),
        (lambda name: f"{name}\u200b", "there is one that differs only in case, in blanks or in how its"),
        (lambda name: name.replace(".png", ".jpg"), "there is one that ends in .png instead"),
        (lambda name: f"..\\images\\{name}", "its path has backslashes, and with slashes it is there"),
        (lambda name: f"..\\{name}", "its path has backslashes, slashes are wanted"),
        (lambda name: f"images/{name}", "its folder is not there, or empty"),
        (lambda name: ".", "it is a folder"),
        (lambda name: f"{name}.old", "row 9: no such file\n"),
    ],
)
def test_what_is_there_instead_of_a_file_that_is_not(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    table = cases()
    write_cohort(tmp_path, table)
    table.loc[7, "image"] = change("case7.png")
    table.to_csv(tmp_path / "cases.csv", index=False)
    assert message in refusal(tmp_path)


def test_a_further_file_is_named_by_its_column(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    (tmp_path / "masks" / "case8.png").unlink()
    assert "row 10, column 'mask': no such file\n" in refusal(tmp_path)


def test_public_data_show_the_file(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    (tmp_path / "images" / "case7.png").unlink()
    with pytest.raises(CohortError, match=r"images/case7\.png: no such file\n") as raised:
        facts(config(tmp_path))
    assert "credentialed=false" not in str(raised.value)


def shared_and_own(tmp_path: Path) -> tuple[Path, Path]:
    """A cohort whose images lie in another folder than its table."""
    write_cohort(tmp_path / "shared", cases())
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "shared" / "cases.csv").rename(own / "cases.csv")
    return tmp_path / "shared", own


def test_folders_that_are_links(tmp_path: Path) -> None:
    shared, own = shared_and_own(tmp_path)
    (own / "images").symlink_to(shared / "images")
    (own / "masks").symlink_to(shared / "masks")
    message = refusal(own)
    assert "row 2: leads out of cohort.root" in message and "cohort.allow_outside=true" in message
    linked = config(own).model_copy(update={"allow_outside": True})
    assert len(prepare(linked, tmp_path / "cache").sample_ids) == 60


def test_a_table_beside_shared_data(tmp_path: Path) -> None:
    """By an absolute path of the table, or of the images, or of each image."""
    shared, own = shared_and_own(tmp_path)
    for root, params in ((shared, {"file": str(own / "cases.csv")}), (own, {"image_root": str(shared / "images")})):
        outside = config(root, masks={}, **params)
        with pytest.raises((CohortError, ConfigError), match=r"cohort\.allow_outside=true"):
            facts(outside)
        assert facts(outside.model_copy(update={"allow_outside": True})).num_samples == 60
    table = pd.read_csv(own / "cases.csv", dtype=str, keep_default_na=False)
    table.assign(image=f"{shared}/images/" + table["image"]).to_csv(own / "cases.csv", index=False)
    absolute = config(own, masks={}, image_root=".")
    with pytest.raises(ConfigError, match=r"60 cells are absolute; .* unless cohort\.allow_outside=true"):
        facts(absolute)
    assert facts(absolute.model_copy(update={"allow_outside": True})).num_samples == 60


def test_where_files_lie_is_no_part_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("cohort: {reader: synthetic}\n")
    assert load_trial(path).fingerprint() == load_trial(path, ["cohort.allow_outside=true"]).fingerprint()
