"""Checks that `sweep/storage/layout.py` alone spells the names of a sweep's files, and that the folder behaves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmpkd.types import UserError
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.lock import driver_of, hold_driver_lock, is_locked

ROOT = Path(__file__).parents[3]
LAYOUT = ROOT / "sweep" / "storage" / "layout.py"
# Text that may name a file of the folder: docstrings, and the constant HELP that a command prints for --help.
HELP = "HELP"


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and the value of every string in a source, but for docstrings and HELP texts."""
    tree = ast.parse(source)
    allowed = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                allowed.add(id(first.value))
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == HELP for to in node.targets):
            allowed |= {id(part) for part in ast.walk(node.value)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in allowed:
            yield node.lineno, node.value


def names() -> set[str]:
    """Returns the names of all files and folders of a sweep's folder, and of MLflow's beside it."""
    folder, storage = SweepFolder(Path("name")), Storage(Path("storage"))
    paths = [getattr(folder, name) for name, member in vars(SweepFolder).items() if isinstance(member, property)]
    paths = [path for path in paths if isinstance(path, Path)]
    paths += [*folder.files, storage.mlflow_database, storage.mlflow_artifacts]
    return {path.name for path in paths} | {"attempt-", "last.pt", "before-repair-"}


def spelled(text: str) -> set[str]:
    """Returns the names of files in a text: names with a dot or dash anywhere in it, bare words as parts of a path."""
    return {
        name
        for name in names()
        if re.search(rf"(?<![\w.]){re.escape(name)}" if re.search(r"[.-]", name) else rf"(^|/){name}(/|$)", text)
    }


def test_every_file_is_known_to_the_test() -> None:
    assert {
        "journal.log",
        "spool.jsonl",
        "spool.sent",
        "plan.json",
        "space.yaml",
        "warm.json",
        "driver.lock",
    } <= names()
    assert {"stop", "best.yaml", "trials.parquet", "epochs.parquet", "report.html", "errors", "checkpoints"} <= names()
    assert {"mlflow.db", "mlartifacts"} <= names()


def test_names_of_files_stand_in_the_layout_alone() -> None:
    places = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for path in sorted((ROOT / "sweep").rglob("*.py"))
        if path != LAYOUT
        for line, text in literals(path.read_text())
        if spelled(text)
    ]
    assert not places, "\n".join(["ask sweep.storage.layout.SweepFolder for these files:", *places])


@pytest.mark.parametrize(
    "source",
    [
        'path = folder / "plan.json"',
        'FILES = ("stop", "trials.parquet")',
        'print(f"see {folder}/errors/{number}.txt")',
        'print(f"{folder}/checkpoints/{number}")',
        'def f():\n    """Reads plan.json."""\n    return "spool.jsonl"',
    ],
)
def test_a_literal_is_noticed(source: str) -> None:
    assert any(spelled(text) for _, text in literals(source))


@pytest.mark.parametrize(
    "source",
    [
        '"""Reads plan.json."""',
        'HELP = """report.html   the front"""',
        'print("the driver was asked to stop; errors are counted; ray starts")',
        'name = "myplan.json"',
    ],
)
def test_other_text_is_allowed(source: str) -> None:
    assert not any(spelled(text) for _, text in literals(source))


def test_a_trial_keeps_checkpoints_until_they_are_deleted(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    attempt = folder.checkpoints_of(3) / "attempt-1"
    attempt.mkdir(parents=True)
    assert not folder.keeps_checkpoints(3)
    (attempt / "last.pt").touch()
    assert folder.keeps_checkpoints(3)
    folder.delete_checkpoints(3)
    assert not folder.keeps_checkpoints(3) and not attempt.exists()


def test_a_storage_lists_the_folders_in_which_a_sweep_began(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for name in ("b", "a", "c"):
        storage.sweep(name).path.mkdir()
    storage.sweep("b").spool.touch()
    storage.sweep("a").driver_lock.touch()
    assert [sweep.name for sweep in storage.sweeps()] == ["a", "b"]
    assert Storage(tmp_path / "absent").sweeps() == []


def test_the_lock_has_one_holder_and_an_empty_folder_goes_again(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    with hold_driver_lock(folder):
        assert is_locked(folder.driver_lock) and driver_of(folder).startswith("process ")
        with pytest.raises(UserError, match="another driver runs this sweep"), hold_driver_lock(folder):
            pass
    assert not folder.path.exists()
    with hold_driver_lock(folder):
        folder.write_plan({"space": "demo"})
    assert folder.read_plan() == {"space": "demo"} and not is_locked(folder.driver_lock)


def test_files_are_set_aside_in_a_new_folder_each_time(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.journal.write_text("a line\n")
    copies = [folder.set_aside([folder.journal, folder.best]) for _ in range(2)]
    assert [copy.name for copy in copies] == ["before-repair-1", "before-repair-2"]
    assert [path.name for path in copies[1].iterdir()] == ["journal.log"]
