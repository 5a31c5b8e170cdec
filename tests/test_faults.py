"""The lists of `benchmarks/faults.py` can be applied to the source as it is today."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from benchmarks.faults import ROOT, Fault, faults


def test_every_fault_applies_exactly_once_and_leaves_python() -> None:
    problems = [f"{fault.name}: {problem}" for fault in faults() if (problem := fault.problem(ROOT))]
    assert not problems, "\n".join(problems)
    for fault in faults():
        ast.parse((ROOT / fault.file).read_text().replace(fault.old, fault.new))
        assert fault.wrong.endswith("."), f"{fault.name}: one whole sentence says what is wrong"


def test_faults_are_many_and_spread_over_both_packages() -> None:
    assert len(faults()) >= 66
    assert max(Counter(fault.name for fault in faults()).values()) == 1
    files = {fault.file for fault in faults()}
    areas = Counter(fault.file.partition("/")[0] for fault in faults())
    assert areas["mmpkd"] >= 35 and areas["sweep"] >= 20 and len(files) >= 25


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"file": "mmpkd/nowhere.py"}, "no file mmpkd/nowhere.py"),
        ({"tests": ("tests/nowhere.py::test_it",)}, "no test file tests/nowhere.py::test_it"),
        ({"old": "what nobody wrote"}, "its old text stands 0 times in mmpkd/types.py, not once"),
        ({"new": "HINT = 1\n", "old": "HINT = 1\n"}, "its old text stands 0 times in mmpkd/types.py, not once"),
    ],
)
def test_a_fault_that_no_longer_applies_is_reported(change: dict[str, object], problem: str) -> None:
    content = {"name": "x", "file": "mmpkd/types.py", "old": "class Task:", "new": "class Tsk:", "wrong": "It is."}
    fault = Fault(**{**content, "tests": ("tests/test_faults.py",), **change})  # type: ignore[arg-type]
    assert fault.problem(ROOT) == problem
