"""Derm7pt on a generated release_v0: its labels, what is left out, and copies with something wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmpkd.cohort import facts, reader_for
from mmpkd.cohort.chosen_columns import check_columns
from mmpkd.cohort.facts import BadSample, Scan
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.readers.derm7pt.classes import CLASSES, DEEPGUIDE_COUNTS, DEEPGUIDE_LACKS, DEEPGUIDE_PARTS
from mmpkd.cohort.readers.derm7pt.reader import Derm7pt
from mmpkd.cohort.source import missing_files
from mmpkd.cohort.store import PRIVILEGED
from mmpkd.config import CohortConfig
from mmpkd.types import CohortError, ConfigError
from tests.mmpkd.cohort.derm7pt_trees import NUM_CASES, SIZE, UNPAIRED, made_up, picture, write_tables, write_tree

BORDER = 25
SAMPLE = "567"  # position 5: its files are named in capitals
POSITION = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("derm7pt")
    write_tree(root / "release_v0", made_up())
    return root


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "release_v0", tmp_path / "release_v0")
    return tmp_path / "release_v0"


def config(root: Path, **params: Any) -> CohortConfig:
    return CohortConfig(reader="derm7pt", root=root, image_size=32, params=params)


def scan(root: Path, **params: Any) -> Scan:
    return reader_for(config(root, **params)).scan()


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def cell(root: Path, name: str, value: str) -> None:
    """Puts a value into a column of the case at POSITION."""
    rows = made_up()
    rows[POSITION][name] = value
    write_tables(root, rows)


def clinic(root: Path) -> Path:
    """The photograph of SAMPLE."""
    (path,) = (root / "images").glob(f"NFL/NFL{POSITION:03d}.JPG")
    return path


# What the columns say, by hand: raw string, class.
GROUPED = {
    "diagnosis": {
        "basal cell carcinoma": "BCC",
        "nevus": "NEV",
        "blue nevus": "NEV",
        "clark nevus": "NEV",
        "combined nevus": "NEV",
        "congenital nevus": "NEV",
        "dermal nevus": "NEV",
        "recurrent nevus": "NEV",
        "reed or spitz nevus": "NEV",
        "melanoma": "MEL",
        "melanoma (in situ)": "MEL",
        "melanoma (less than 0.76 mm)": "MEL",
        "melanoma (0.76 to 1.5 mm)": "MEL",
        "melanoma (more than 1.5 mm)": "MEL",
        "melanoma metastasis": "MEL",
        "dermatofibroma": "MISC",
        "lentigo": "MISC",
        "melanosis": "MISC",
        "miscellaneous": "MISC",
        "vascular lesion": "MISC",
        "seborrheic keratosis": "SK",
    },
    "pigment_network": {"absent": "ABS", "typical": "TYP", "atypical": "ATP"},
    "streaks": {"absent": "ABS", "regular": "REG", "irregular": "IR"},
    "pigmentation": {
        "absent": "ABS",
        "diffuse regular": "REG",
        "localized regular": "REG",
        "diffuse irregular": "IR",
        "localized irregular": "IR",
    },
    "regression_structures": {"absent": "ABS", "blue areas": "PRS", "white areas": "PRS", "combinations": "PRS"},
    "dots_and_globules": {"absent": "ABS", "regular": "REG", "irregular": "IR"},
    "blue_whitish_veil": {"absent": "ABS", "present": "PRS"},
    "vascular_structures": {
        "absent": "ABS",
        "arborizing": "REG",
        "comma": "REG",
        "hairpin": "REG",
        "within regression": "REG",
        "wreath": "REG",
        "dotted": "IR",
        "linear irregular": "IR",
    },
}
ORDER = {
    "diagnosis": ("BCC", "NEV", "MEL", "MISC", "SK"),
    "pigment_network": ("ABS", "TYP", "ATP"),
    "blue_whitish_veil": ("ABS", "PRS"),
    "vascular_structures": ("ABS", "REG", "IR"),
    "pigmentation": ("ABS", "REG", "IR"),
    "streaks": ("ABS", "REG", "IR"),
    "dots_and_globules": ("ABS", "REG", "IR"),
    "regression_structures": ("ABS", "PRS"),
}


def test_every_raw_string_has_its_class(whole: Path) -> None:
    one = scan(whole)
    rows = {row["case_num"]: row for row in made_up()}
    assert {task.name: task.labels for task in one.tasks} == ORDER
    assert sum(len(task.labels) for task in one.tasks) == 24
    for task in one.tasks:
        assert task.kind == ("binary" if len(task.labels) == 2 else "multiclass")
        met = set()
        for sample, row in one.labels.iterrows():
            raw = rows[str(sample)][task.name]
            logits = row[[f"{task.name}/{label}" for label in task.logit_names]]
            assert logits.to_list() == [float(label == GROUPED[task.name][raw]) for label in task.logit_names]
            met.add(raw)
        assert met == set(GROUPED[task.name])
    assert not one.labels.isna().any(axis=None)


def test_published_counts_add_up() -> None:
    """42 BCC, 575 NEV, 252 MEL, 97 MISC, 45 SK of 1,011 (JBHI 2019), less six MISC, two MEL and one NEV."""
    totals = {name: sum(counts) for name, counts in DEEPGUIDE_COUNTS["diagnosis"].items()}
    assert totals == {"BCC": 42, "NEV": 575 - 1, "MEL": 252 - 2, "MISC": 97 - 6, "SK": 45}
    assert sum(DEEPGUIDE_PARTS) == 1002 and len(DEEPGUIDE_LACKS) == 9
    for task, counts in DEEPGUIDE_COUNTS.items():
        assert tuple(counts) == tuple(CLASSES[task])
        assert tuple(map(sum, zip(*counts.values(), strict=True))) == DEEPGUIDE_PARTS


def test_a_prepared_store(whole: Path, tmp_path: Path) -> None:
    store = prepare(config(whole), tmp_path)
    rows = [row for position, row in enumerate(made_up()) if position != UNPAIRED]
    assert list(store.sample_ids) == [row["case_num"] for row in rows]
    assert store.manifest["left_out"] == {}
    assert store.manifest["counts"]["parts"] == {"train": 20, "val": 21, "test": 21}
    assert store.manifest["counts"]["positive"]["diagnosis/MISC"] == 5 * 3
    assert store.manifest["counts"]["positive"]["diagnosis/BCC"] == 3
    assert store.target_NK.shape == (NUM_CASES - 1, 5 + 3 + 1 + 3 + 3 + 3 + 3 + 1)
    assert store.image_NCHW.shape == (NUM_CASES - 1, 3, 32, 32)
    views = np.load(store.path / "views" / "dermoscopy.npy", mmap_mode="r")
    assert views.shape == store.image_NCHW.shape
    assert not np.array_equal(views[0], store.image_NCHW[0])
    kept = [row["case_num"] for row in rows]
    samples = pd.read_parquet(store.path / "samples.parquet").set_index("sample")
    assert set(samples.loc[kept, "height"]) == {SIZE[0] - 2 * BORDER}
    assert set(samples.loc[kept, "width"]) == {SIZE[1] - 2 * BORDER}
    cells = store.privileged(["sex", "location", "elevation", "seven_point_score"])
    assert cells["seven_point_score"].to_list() == [float(row["seven_point_score"]) for row in rows]
    assert cells["sex"].to_list() == [row["sex"] for row in rows]
    assert not {"notes", "case_id", *CLASSES} & {str(name).removeprefix(PRIVILEGED) for name in samples}


def test_roles(whole: Path) -> None:
    outline = facts(config(whole))
    assert outline.unlisted == ("notes",) and outline.channels == 3 and outline.views == ("dermoscopy",)
    assert not outline.credentialed and not outline.roi_labels and not outline.sections
    assert not check_columns(["sex", "location", "elevation"], ["management", "seven_point_score"], outline)
    for name in ("diagnosis", "streaks", "management", "level_of_diagnostic_difficulty", "case_num", "notes"):
        assert check_columns([name], [], outline), name


def test_what_is_left_out_is_said(whole: Path) -> None:
    one = scan(whole)
    assert "565" not in one.samples.index and "566" in one.samples.index
    told = " ".join(one.notes)
    assert "cases whose photograph is missing or replaced, left out: 1 (case_num 565)" in told
    assert "a case is taken for a patient" in told and "25 pixels are cut off" in told
    other = scan(whole, unpaired="deepguide", border=0)
    assert "565" in other.samples.index and "566" not in other.samples.index
    told = " ".join(other.notes)
    assert "cases that DeepGuide lacks, left out: 1 (case_num 566)" in told and "cut off" not in told
    assert "cases that stay though their photograph is the dermoscopic picture: 1" in told
    assert other.files["565"] == [f"release_v0/images/NFL/Nfl{UNPAIRED:03d}d.jpg"]
    raw = reader_for(config(whole, unpaired="deepguide")).load("565")
    assert np.array_equal(raw.image, raw.views["dermoscopy"])


@pytest.mark.parametrize("border", [0, 10, 25])
def test_pictures_without_their_border(whole: Path, border: int) -> None:
    raw = reader_for(config(whole, border=border)).load(SAMPLE)
    row = made_up()[POSITION]
    for pixels, name in ((raw.image, "clinic"), (raw.views["dermoscopy"], "derm")):
        original = picture(row[name])
        height, width = original.shape[:2]
        inner = original[border : height - border, border : width - border].astype(int)
        assert pixels.shape == inner.shape and np.abs(pixels - inner).mean() < 4  # JPEG


def test_options_that_are_none(whole: Path) -> None:
    for params in ({"border": -1}, {"border": 2.5}, {"unpaired": "kept"}, {"crop": 25}):
        with pytest.raises(ConfigError, match=r"cohort\.params"):
            reader_for(config(whole, **params))


def test_either_folder_is_the_root(whole: Path) -> None:
    inside, outside = scan(whole / "release_v0"), scan(whole)
    pd.testing.assert_frame_equal(inside.labels, outside.labels)
    assert outside.files["562"] == [f"release_v0/{file}" for file in inside.files["562"]]
    assert inside.tables[0] == "meta/meta.csv" and outside.tables[0] == "release_v0/meta/meta.csv"


def test_deviations(broken: Path) -> None:
    reader = reader_for(config(broken))
    told = reader.deviations(reader.scan())
    assert "part train has 21 of DeepGuide's 408 cases" in told
    assert "part val has 20 of DeepGuide's 202 cases" in told  # without 566, a nevus
    assert "diagnosis in part val: BCC 1 for 7, NEV 7 for 100, MEL 6 for 61, MISC 5 for 24, SK 1 for 10" in told
    assert not any("seven_point_score" in line or "several cases" in line for line in told)
    rows = made_up()
    rows[7]["seven_point_score"] = str(int(rows[7]["seven_point_score"]) + 1)
    rows[8]["clinic"] = rows[10]["clinic"]
    write_tables(broken, rows)
    told = reader.deviations(reader.scan())
    assert "cases whose seven_point_score is not the sum of their criteria: 1" in told
    assert "pictures that stand in several cases: 1" in told


def test_a_whole_copy_deviates_in_nothing(broken: Path) -> None:
    """1,011 cases with DeepGuide's counts in each part, the nine that it lacks among them."""
    first_raw = {task: {code: raws[0] for code, raws in classes.items()} for task, classes in CLASSES.items()}
    rows, parts = [], []
    for position, size in enumerate(DEEPGUIDE_PARTS):
        columns = {
            task: [first_raw[task][code] for code, each in counts.items() for _ in range(each[position])]
            for task, counts in DEEPGUIDE_COUNTS.items()
        }
        rows += [{task: column[each] for task, column in columns.items()} for each in range(size)]
        parts += [position] * size
    numbers = [number for number in range(1, 1012) if str(number) not in DEEPGUIDE_LACKS]
    rows = [
        {**made_up(1 + UNPAIRED)[0], **row, "case_num": str(number)} for row, number in zip(rows, numbers, strict=True)
    ]
    rows += [{**rows[0], "case_num": number} for number in DEEPGUIDE_LACKS]
    for row in rows:
        row |= {"clinic": f"{row['case_num']}.jpg", "derm": f"{row['case_num']}d.jpg"}
        present = {"atypical": 2, "present": 2, "dotted": 2, "irregular": 1, "diffuse irregular": 1, "blue areas": 1}
        row["seven_point_score"] = str(sum(present.get(value, 0) for value in row.values()))
    write_tables(broken, rows)
    for position, part in enumerate(("train", "valid", "test")):
        indexes = [str(index) for index, one in enumerate([*parts, *[0] * 5, 1, *[2] * 3]) if one == position]
        (broken / "meta" / f"{part}_indexes.csv").write_text("\n".join(["indexes", *indexes]) + "\n")
    reader = reader_for(config(broken))
    assert reader.deviations(reader.scan()) == []


def reason(root: Path) -> str:
    """Why SAMPLE alone cannot be used."""
    reader = reader_for(config(root))
    one = reader.scan()
    if lacking := missing_files(root, one):
        assert set(lacking) == {SAMPLE}
        return lacking[SAMPLE].reason
    reader.load("562")
    with pytest.raises(BadSample) as raised:
        reader.load(SAMPLE)
    assert raised.value.file.startswith("images/")
    return raised.value.reason


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def grey(path: Path) -> None:
    Image.open(path).convert("L").save(path)


def shrink(path: Path) -> None:
    Image.open(path).resize((200, 2 * BORDER)).save(path)


def deep(path: Path) -> None:
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (halve, "cannot be read: image file is truncated"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.write_text("<html>404</html>"), "not an image"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "no such file"),
        (grey, "is grey"),
        (deep, "is grey"),
        (shrink, "is 200 x 50 pixels: nothing is left inside a border of 25"),
        (lambda path: shutil.copyfile(path.with_name("NFL005D.JPG"), path), "is the dermoscopic picture"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "leads out of cohort.root"),
    ],
)
def test_damaged_photographs(broken: Path, damage: Callable[[Path], object], told: str) -> None:
    damage(clinic(broken))
    assert told in reason(broken)


def test_a_damaged_photograph_is_listed_and_the_rest_prepared(broken: Path, tmp_path: Path) -> None:
    halve(clinic(broken))
    with pytest.raises(CohortError, match=r"1 of 62 samples cannot be used"):
        prepare(config(broken), tmp_path / "cache")
    store = prepare(config(broken).model_copy(update={"max_bad": 0.05}), tmp_path / "cache")
    assert set(store.manifest["left_out"]) == {SAMPLE} and len(store.sample_ids) == NUM_CASES - 2


@pytest.mark.parametrize("name", ["../../../etc/passwd", "NFL/" + "x" * 300 + ".jpg", "/etc/hostname", "NFL"])
def test_names_that_lead_nowhere(broken: Path, name: str) -> None:
    cell(broken, "clinic", name)
    assert reason(broken).partition(";")[0] in ("no such file", "leads out of cohort.root")


def test_files_that_differ_in_case_only(broken: Path) -> None:
    """The very name is taken where it is there; between two others there is no telling."""
    path = clinic(broken)
    shutil.copyfile(path.with_name("NFL010.JPG"), path.with_name("nfl005.jpg"))
    with pytest.raises(CohortError, match=r"meta\.csv: a clinic that several files .* row 7 .* got 'NFL/Nfl005.jpg'"):
        scan(broken)
    shutil.copyfile(path, path.with_name("Nfl005.jpg"))
    assert scan(broken).files[SAMPLE][0] == "images/NFL/Nfl005.jpg"


def test_folders_that_differ_in_case(broken: Path) -> None:
    before = scan(broken)
    edit(broken / "meta" / "meta.csv", lambda text: text.replace("NFL/", "nfl/"))
    assert scan(broken).files == before.files


META_DAMAGE = [
    (lambda text: text.replace("pigmentation", "pigments"), r"no column pigmentation \(found: case_num"),
    (lambda text: text.replace(",case_id,notes", ",clinic,notes", 1), "no column case_id"),
    (lambda text: text.replace(",notes", ",streaks", 1), "columns 5, 19 have the same name, streaks"),
    (lambda text: text.split("\n", 1)[1], "no column case_num"),
    (lambda text: text.split("\n", 1)[0] + "\n", "no row"),
    (lambda text: "", "is not a CSV file"),
    (lambda text: "\x00\x01", "no column"),
    (lambda text: text + text.split("\n")[1] + "\n", r"a case_num that is listed before, in row 65 .* got '562'"),
    (lambda text: text.replace("\n562,", "\n,"), r"no case_num, in row 2 "),
    (lambda text: text.replace("wreath", "wreathe"), r"a vascular_structures that is none of absent, .*got 'wreathe'"),
    (lambda text: text.replace("recurrent", "Recurrent"), r"a diagnosis that is none .*got 'Recurrent nevus'"),
    (lambda text: text.replace(",present,", ",,"), r"a blue_whitish_veil that is none of absent, present, .*got ''"),
    (lambda text: text.replace("NFL/Nfl001.jpg", ""), r"no clinic, in row 3 "),
    (lambda text: text.replace("\n562,basal cell carcinoma,0,", "\n562,basal cell carcinoma,,"), "seven_point_score"),
    (lambda text: text.replace("\n562,basal cell carcinoma,0,", "\n562,basal cell carcinoma,nan,"), "got 'nan'"),
    (lambda text: text.replace("\n562,basal", "\n562,more,basal"), "ParserError .* line 2, saw 20"),
    (lambda text: text.replace("\n563,", '\n"563,'), "is not a CSV file|none of|no case_num|seven_point_score"),
    (lambda text: text.replace(",", ";"), "no column case_num"),
]


@pytest.mark.parametrize(("change", "told"), META_DAMAGE)
def test_tables_that_are_not_as_published(broken: Path, change: Callable[[str], str], told: str) -> None:
    edit(broken / "meta" / "meta.csv", change)
    with pytest.raises(CohortError, match=told) as raised:
        scan(broken)
    assert "meta.csv" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text + "63\n", r"not a position in meta.csv, 0 to 62, in row 23 .* got '63'"),
        (lambda text: text + "-1\n", "got '-1'"),
        (lambda text: text + "1.5\n", "got '1.5'"),
        (lambda text: text + "9" * 5000 + "\n", "not a position"),
        (lambda text: text + "\u0665\n", "not a position"),  # a digit, but of another alphabet
        (lambda text: text + "1\n", r"a position that is listed before, in row 23 "),
        (lambda text: text + "3\n", r"valid_indexes.csv: a position that another index file lists too, .* got '3'"),
        (lambda text: text.replace("indexes", "index"), r"no column indexes \(found: index\)"),
        (lambda text: text.split("\n", 1)[1], r"no column indexes \(found: 1\)"),
        (lambda text: "indexes\n", "no row"),
    ],
)
def test_index_files_that_are_not_as_published(broken: Path, change: Callable[[str], str], told: str) -> None:
    edit(broken / "meta" / "valid_indexes.csv", change)
    with pytest.raises(CohortError, match=told) as raised:
        scan(broken)
    assert "valid_indexes.csv" in str(raised.value)


def test_a_case_in_no_part_is_left_out(broken: Path) -> None:
    edit(broken / "meta" / "valid_indexes.csv", lambda text: text.replace("\n1\n", "\n"))
    one = scan(broken)
    assert "563" not in one.samples.index and "cases that are in none of the index files, left out: 1" in one.notes


def test_a_byte_order_mark_windows_line_ends_and_columns_in_another_order(broken: Path) -> None:
    before = scan(broken)
    rows = [{f" {name.upper()}": value for name, value in reversed(row.items())} for row in made_up()]
    write_tables(broken, rows)
    for path in (broken / "meta").iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    after = scan(broken)
    for one, other in ((before.labels, after.labels), (before.samples, after.samples)):
        pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(before.privileged, after.privileged)
    assert after.files == before.files and after.unlisted == ("NOTES",)


def test_an_index_file_with_a_column_of_row_numbers(broken: Path) -> None:
    """As pandas writes it."""
    path = broken / "meta" / "test_indexes.csv"
    pd.read_csv(path).to_csv(path)
    assert scan(broken).samples["split"].value_counts().to_dict() == {"train": 20, "val": 21, "test": 21}


@pytest.mark.parametrize("what", ["meta", "images", "meta/meta.csv", "meta/train_indexes.csv"])
def test_folders_and_tables_that_are_missing(broken: Path, what: str) -> None:
    path = broken / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CohortError, match=r"release_v0") as raised:
        scan(broken)
    assert path.name in str(raised.value)


def test_latin_1(broken: Path) -> None:
    path = broken / "meta" / "meta.csv"
    path.write_bytes(path.read_bytes().replace(b"Clinical missing", b"Clinique \xe9gar\xe9e"))
    with pytest.raises(CohortError, match=r"meta.csv is not a CSV file: UnicodeDecodeError"):
        scan(broken)


def test_a_missing_context_cell_is_missing(broken: Path) -> None:
    cell(broken, "location", "")
    one = scan(broken)
    assert one.privileged["location"].isna()[SAMPLE]
    assert one.privileged["location"].notna().sum() == NUM_CASES - 2


def test_loading_does_not_depend_on_a_scan_before(whole: Path) -> None:
    reader = reader_for(config(whole))
    assert isinstance(reader, Derm7pt)
    first = reader.load(SAMPLE)
    reader.scan()
    assert np.array_equal(first.image, reader.load(SAMPLE).image)


def test_folders_of_images_that_are_links(tmp_path: Path) -> None:
    """Some files are named in capitals whatever the table says, so that folders are listed."""
    write_tree(tmp_path / "release_v0", made_up())
    folder = tmp_path / "release_v0" / "images"
    for linked in list(folder.iterdir()):
        linked.rename(tmp_path / linked.name)
        linked.symlink_to(tmp_path / linked.name)
    asked = CohortConfig(reader="derm7pt", root=tmp_path / "release_v0")
    with pytest.raises(CohortError, match=r"leads out of cohort\.root(.|\n)*cohort\.allow_outside=true"):
        facts(asked)
    assert facts(asked.model_copy(update={"allow_outside": True})).num_samples == NUM_CASES - 1
