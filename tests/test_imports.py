"""The import rule of the house, read from the source; and what an import loads, seen in a fresh interpreter."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. A room imports only from rooms below its own, never from a neighbour beside it.
# DESIGN section 2 has `leakage` above the teachers; its probe knows arrays only and runs when a cohort
# is prepared, so it stands below them. `saliency` takes the student's module, so it stands above it.
LAYERS = (
    {"types", "checksums"},
    {"machine", "spelling", "files"},
    {"faults"},
    {"config", "fit", "frames", "stats", "leakage", "command", "scores", "priors", "attainable", "teacher_scores"},
    {"weights"},
    {"cohort", "student", "objectives", "localize", "classify", "augment"},
    {"saliency", "patients"},
    {"teachers"},
    {"stage_check"},
    {"stages"},
    {"build", "checkpoint", "export", "validation"},
    {"train"},
    {"grouping"},
    {"external", "shown_images"},
    {"evaluate", "predict", "probe"},
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
ENGINE = {"ray", "optuna", "mlflow", "sweep"}  # what one training run never needs
DISTRIBUTIONS = {
    "PIL": "pillow",
    "grpc": "grpcio",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Every module that a source names in an import, wherever it stands, under its absolute name."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from mmpkd import stats` names a module, not something in it.
            whole = origin in ("mmpkd", "sweep")
            found |= {f"{origin}.{alias.name}" for alias in node.names} if whole else {origin}
    return found


def room(module: str) -> str:
    """`cohort` of `mmpkd.cohort.store`; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of an `mmpkd` module that break the rule."""
    own, broken = room(module), []
    for imported in sorted(imports(source, module, is_package)):
        top = imported.split(".")[0]
        if top in ENGINE:
            broken.append(f"{module} imports {imported}: mmpkd knows nothing of the engine")
        elif top == "mmpkd" and room(imported) != own:
            if not own or room(imported) not in HEIGHT or own not in HEIGHT:
                broken.append(f"{module} imports {imported}: give both a place in LAYERS")
            elif HEIGHT[room(imported)] >= HEIGHT[own]:
                broken.append(f"{module} imports {imported}: imports go one way, see LAYERS")
    return broken


def test_imports_go_one_way():
    broken = []
    for path in sources("mmpkd"):
        broken += violations(path.read_text(), module_name(path), path.name == "__init__.py")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "from optuna.trial import Trial",
        "def late():\n    import mlflow",
        "from sweep import space",
        "from mmpkd import train",
        "from mmpkd.train import train",
        "from .train import train",
        "from mmpkd.classify import score",  # a neighbour
        "if TYPE_CHECKING:\n    from mmpkd.build import build",
    ],
)
def test_the_rule_catches(source):
    assert violations(source, "mmpkd.localize")


def test_the_rule_lets_pass():
    source = "import torch\nfrom mmpkd import stats\nfrom mmpkd.types import Task\nfrom .config import Strict"
    assert violations(source, "mmpkd.localize") == []
    assert violations("from mmpkd.cohort.facts import Facts\nfrom . import splits", "mmpkd.cohort.store") == []
    assert violations("from . import store\nfrom .. import types", "mmpkd.cohort", is_package=True) == []


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages that a fresh interpreter holds after importing some modules."""
    program = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_mmpkd_loads_nothing_of_the_engine():
    modules = [module_name(path) for path in sources("mmpkd")]
    assert "mmpkd" in modules and "mmpkd.train" in modules
    assert not loaded_by(modules) & ENGINE


def test_a_space_is_read_without_torch_and_without_the_engine():
    assert not loaded_by(["sweep.space"]) & {"torch", "ray", "optuna", "mlflow"}


@pytest.mark.parametrize(("package", "extra"), [("mmpkd", None), ("sweep", "sweep")])
def test_every_library_imported_is_declared(package, extra):
    """`pip install mmpkd` brings what mmpkd imports, and the extra `sweep` what sweep imports beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    declared = {re.split(r"[\[<>=~!; ]", requirement)[0].lower() for requirement in requirements}
    for path in sources(package):
        for imported in imports(path.read_text(), module_name(path), path.name == "__init__.py"):
            top = imported.split(".")[0]
            if top not in sys.stdlib_module_names and top not in {"mmpkd", "sweep"}:
                assert DISTRIBUTIONS.get(top, top).lower() in declared, f"{path} imports {top}"


def test_constraints_are_exact_and_hold_no_address():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line
