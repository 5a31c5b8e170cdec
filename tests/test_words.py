"""Names that say what they hold, files that a reader can take in, packages that a reader can survey."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("mmpkd", "sweep")
EMPTY_WORDS: Final = frozenset({"told", "said", "found", "one", "heard", "asked", "taken"})
# The limit of such bindings; it never rises.
MAX_BINDINGS: Final = 9
MAX_LINES: Final = 300


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields each name that a syntax tree binds, with its line: variables, attributes, arguments, functions, ..."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                for alias in aliases:
                    yield alias.asname or alias.name.partition(".")[0], node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.MatchMapping(rest=str(name)):
                yield name, node.lineno


def empty_bindings(source: str) -> list[tuple[str, int]]:
    """Returns the bindings of a source whose name, without underscores around it, is an empty word."""
    names = sorted(bound_names(ast.parse(source)), key=lambda binding: binding[1])
    return [(name, line) for name, line in names if name.strip("_") in EMPTY_WORDS]


def test_names_say_what_they_hold() -> None:
    places = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for package in PACKAGES
        for path in sources(package)
        for name, line in empty_bindings(path.read_text())
    ]
    print("\n".join(places))
    assert len(places) <= MAX_BINDINGS, "\n".join(places)


@pytest.mark.parametrize(
    "source",
    [
        "told = 1",
        "_told = 1",
        "told: int = 1",
        "told: int",
        "told += 1",
        "a, (b, *told) = 1, (2, 3)",
        "for a, told in (): pass",
        "[told for told in ()]",
        "with a as told: pass",
        "try: pass\nexcept ValueError as told: pass",
        "(told := 1)",
        "def f(told): pass",
        "def f(*, told=1): pass",
        "def f(*told): pass",
        "def f(**told): pass",
        "lambda told: 1",
        "def told(): pass",
        "async def _told(): pass",
        "class told: pass",
        "self.told = 1",
        "self._told: int = 1",
        "import a as told",
        "import told.a",
        "from a import b as told",
        "from a import told",
        "match a:\n    case told: pass",
        "match a:\n    case [*told]: pass",
        "match a:\n    case {**told}: pass",
        "match a:\n    case B(c=told): pass",
    ],
)
def test_every_kind_of_binding_is_counted(source: str) -> None:
    assert len(empty_bindings(source)) == 1


def test_uses_and_longer_names_are_not_counted() -> None:
    assert not empty_bindings("f(told)\nself.told\nfound_files = one_hot = taken[one]\nf(one=1)\ndel told")


def test_no_file_is_long() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for package in PACKAGES
        for path in sources(package)
    }
    long_files = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not long_files, f"more than {MAX_LINES} lines: {long_files}"


def test_packages_can_be_surveyed() -> None:
    """The commands stand at the top of sweep beside its packages, so that only the packages below it have a limit."""
    limits = {ROOT / "mmpkd": 25} | {file.parent: 12 for file in (ROOT / "sweep").glob("*/**/__init__.py")}
    for folder, limit in limits.items():
        entries = [path.name for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
        assert len(entries) <= limit, f"{folder.relative_to(ROOT)} has {len(entries)} entries: {sorted(entries)}"
