"""Does the suite notice mistakes that a careful engineer might make? See HELP."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
LISTS = Path(__file__).with_name("fault_lists")
HELP = """\
Changes one place of the source at a time, in a copy of the tree, into what a careful engineer might have written by
mistake: no crash and no wrong syntax, but another row, part, label, weight or seed. Runs the tests that should notice,
and says which did. The last line counts. A list of faults is a YAML file under benchmarks/fault_lists; a fault whose
`old` text no longer stands exactly once in its file is an error of its own, so that the lists cannot rot in silence.
"""
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
SECONDS = 600  # that the tests of one fault may take
LIBRARIES = ("torch", "timm", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.ensemble", "sklearn.compose")
LIBRARIES += ("optuna", "matplotlib", "omegaconf", "pydantic", "pytest", "transformers.models.bert.modeling_bert")
FORKS = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Fault:
    """One wrong replacement, what is wrong with it, and the test files that should notice."""

    name: str
    file: str
    old: str
    new: str
    wrong: str
    tests: tuple[str, ...]

    def problem(self, root: Path) -> str:
        """Why it cannot be applied to this tree; empty if it can."""
        path = root / self.file
        if not path.is_file():
            return f"no file {self.file}"
        if lacking := [test for test in self.tests if not (root / test.partition("::")[0]).is_file()]:
            return f"no test file {', '.join(lacking)}"
        if (times := path.read_text().count(self.old)) != 1:
            return f"its old text stands {times} times in {self.file}, not once"
        return "" if self.new != self.old and self.tests else "it changes nothing, or names no test"


@dataclass(frozen=True)
class Result:
    name: str
    noticed: bool
    test: str  # the first that failed; else what else there is to say
    seconds: float
    wrong: str


def faults() -> list[Fault]:
    """All faults of all lists, in their order."""
    found = []
    for path in sorted(LISTS.glob("*.yaml")):
        for content in yaml.safe_load(path.read_text()):
            tests = content.pop("tests")
            found.append(Fault(**content, tests=tuple([tests] if isinstance(tests, str) else tests)))
    return found


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """The files that git knows or does not ignore, as they are in the working tree, in a folder of their own."""
    words = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for name in filter(None, listed.split("\0")):
            if (root / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / name, Path(folder) / name)
        yield Path(folder)


def run_tests(tree: Path, tests: Sequence[str], seconds: float = SECONDS) -> tuple[int, str]:
    """Exit status and output of pytest on some files, which stops at the first failure.

    In a fork of a process that has the libraries loaded already: to load them takes longer than most tests.
    """
    output = tree / ".output"
    process = FORKS.Process(target=_pytest, args=(tree, tests, output))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return 1, f"FAILED {tests[0]} (not done after {seconds:.0f} s)"
    return process.exitcode or 0, output.read_text(errors="replace")


def _pytest(tree: Path, tests: Sequence[str], output: Path) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)  # for the processes that tests start
    sys.path[0] = str(tree)
    import pytest

    status = pytest.main(["-n", "0", "-x", "-rfE", "-p", "no:cacheprovider", *tests])
    sys.stdout.flush()
    os._exit(int(status))


def tried(fault: Fault, tree: Path) -> Result:
    """Applies a fault to a copy of the tree, runs its tests, and takes it back."""
    started = time.perf_counter()
    path = tree / fault.file
    content = path.read_text()
    path.write_text(content.replace(fault.old, fault.new))
    try:
        status, output = run_tests(tree, fault.tests)
    finally:
        path.write_text(content)
    seconds = time.perf_counter() - started
    if status == 0:
        return Result(fault.name, False, "", seconds, fault.wrong)
    failed = FAILED.search(output)
    if status != 1 or failed is None:  # pytest itself was stopped: that is no test that noticed
        return Result(fault.name, False, f"pytest ended with {status}: {output.strip()[-300:]}", seconds, fault.wrong)
    return Result(fault.name, True, failed.group(1), seconds, fault.wrong)


def try_all(chosen: Sequence[Fault], jobs: int) -> Iterator[Result]:
    """Every fault in turn, in as many copies of the tree as there are jobs; results as they come."""
    trees: SimpleQueue[Path] = SimpleQueue()

    def one(fault: Fault) -> Result:
        tree = trees.get()
        try:
            return tried(fault, tree)
        finally:
            trees.put(tree)

    def copies(count: int) -> Iterator[Result]:
        if count:
            with copy_of(ROOT) as tree:
                trees.put(tree)
                yield from copies(count - 1)
            return
        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(one, chosen)

    yield from copies(jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", default="*", help="faults whose name fits, such as 'sweep-*'")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree that are tested at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same figures there")
    parser.add_argument("--list", action="store_true", help="name the faults, and run nothing")
    parser.add_argument("--as-is", action="store_true", help="do not first run the tests on the tree as it is")
    words = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    FORKS.set_forkserver_preload(list(LIBRARIES))
    chosen = [fault for fault in faults() if fnmatch(fault.name, words.only)]
    problems = [f"{fault.name}: {problem}" for fault in chosen if (problem := fault.problem(ROOT))]
    names = Counter(fault.name for fault in chosen)
    problems += [f"{name}: {count} faults have this name" for name, count in names.items() if count > 1]
    if problems or not chosen:
        sys.exit("\n".join(problems) or f"no fault is called {words.only}")
    if words.list:
        print("\n".join(f"{fault.name}: {fault.wrong}" for fault in chosen))
        return
    if not words.as_is:
        with copy_of(ROOT) as tree:
            tests = sorted({test for fault in chosen for test in fault.tests})
            status, output = run_tests(tree, tests, SECONDS * len(tests))
        if status:
            sys.exit(f"the tests fail without any fault, so they can notice none:\n{output[-3000:]}")
    results = []
    for result in try_all(chosen, words.jobs):
        results.append(result)
        verdict = f"noticed by {result.test}" if result.noticed else f"MISSED {result.test}"
        print(f"{result.name:42} {result.seconds:5.0f} s  {verdict}", flush=True)
    noticed = sum(result.noticed for result in results)
    content: dict[str, Any] = {"command": sys.argv, "noticed": noticed, "faults": len(results)}
    if words.json:
        words.json.write_text(json.dumps(content | {"results": [asdict(one) for one in results]}, indent=1))
    missed = [f"  {result.name}: {result.wrong}" for result in results if not result.noticed]
    print("\n".join(["missed:", *missed]) if missed else "missed: none")
    print(f"{noticed} of {len(results)} faults noticed")


if __name__ == "__main__":
    main()
