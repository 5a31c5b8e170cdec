"""The import rule of the house, read from the source; and what an import loads, seen in a fresh interpreter."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Floors, lowest first. A room is a module or a package; a module of a package may have a floor of its own.
# A room imports only from floors below its own, never from a neighbour on the same floor.
FLOORS = {
    "mmpkd": (
        {"types", "machine.checksums"},
        {"machine.resources", "machine.files", "machine.recording", "near_names", "export.lookup"},
        {"machine.errors"},
        {"machine.new_folder"},
        {"vlm.config", "vlm.boxes", "training.pretrain_config"},
        {"config", "fit", "frames", "command", "scoring.stats", "scoring.formulas", "scoring.overlays"},
        {"scoring.attainable", "scoring.regions", "scoring.teacher_scores", "weights", "vlm.scores"},
        {"vlm.vocabulary", "vlm.positions"},
        {"vlm.rows", "vlm.network"},
        {"vlm.model"},
        {"cohort", "student", "objectives", "scoring.classify", "scoring.localize", "augment"},
        {
            "training.stand_in",
            "images",
            "export.origin",
            "scoring.saliency",
            "scoring.patients",
            "scoring.baselines",
        },
        {"scoring.forward"},
        {"teachers", "vlm.check", "vlm.exported"},
        {"training.stage_validation"},
        {"training.batches", "training.masked_autoencoder"},
        {"training.stages"},
        {"training.pretrain"},
        {"build", "checkpoint", "export.student_file", "scoring.validation"},
        {"vlm.student"},
        {"training.step", "vlm.training"},
        {"training.execution"},
        {"training.epoch"},
        {"train"},
        {"scoring.grouping", "scoring.pictures", "scoring.replicates", "export.usage"},
        {"scoring.subgroups", "scoring.answers"},
        {"prediction"},
        {"evaluate", "predict", "training.probe"},
        {"vlm.training.probe"},
        {"export"},  # a student in formats of other software
    ),
    "sweep": (
        {"surrogate", "interrupt", "arm_styles", "provenance", "transfer.refusals", "transfer.scratch"},
        {"transfer.addresses", "verdict.inference"},
        {"patience", "verdict.power"},
        {"storage.whole_files"},
        {"types", "storage.layout", "search.samplers"},  # a space names samplers
        {"selection"},  # a space states the rule
        {"options", "pareto", "local_ray", "autoscaling", "space", "driver_status", "supervisor"},
        {"cluster"},
        {"storage", "plan"},
        {"transfer", "tracking.trial_run"},
        {"search", "workers", "tracking", "students"},
        {"reports", "teachers"},
        {"summary", "front_files"},
        {"reports.final", "interim"},
        {"driver", "picking"},
        {"verdict"},
        {"run", "status", "stop", "clean", "pick", "confirm"},
    ),
}
HEIGHT = {
    f"{package}.{room}": height
    for package, floors in FLOORS.items()
    for height, rooms in enumerate(floors)
    for room in rooms
}
ENGINE = {"ray", "optuna", "mlflow", "sweep"}  # what one training run never needs
# Libraries of an extra that one module imports, and only when it needs them: those of a format in which a student is
# exported, and that of low-rank adapters.
FORMATS = {
    "mmpkd.vlm.network": {"peft"},
    "mmpkd.export.to_mlflow": {"mlflow"},
    "mmpkd.export.to_onnx": {"onnx", "onnxruntime"},
}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "grpc": "grpcio",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface-hub",
}


@cache
def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Returns the absolute name of every module that a source imports, wherever the import stands in it."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from mmpkd.scoring import stats` names a module, not something in the package
                path = ROOT / f"{origin}.{alias.name}".replace(".", "/")
                names.add(f"{origin}.{alias.name}" if path.is_dir() or path.with_suffix(".py").exists() else origin)
    return names


def room(module: str) -> str:
    """Returns the room of a module, `mmpkd.cohort` for `mmpkd.cohort.store`; empty for a package without a floor."""
    while module and module not in HEIGHT:
        module = module.rpartition(".")[0]
    return module


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Returns a line for each import of a module that breaks the rule."""
    package, own, broken = module.partition(".")[0], room(module), []
    if module in FLOORS:  # the docstring of a package is not above anything
        return [f"{module} imports {name}" for name in imports(source, module, is_package) if name.startswith(module)]
    for imported in sorted(imports(source, module, is_package)):
        top = imported.partition(".")[0]
        if package == "mmpkd" and top in ENGINE - FORMATS.get(module, set()):
            broken.append(f"{module} imports {imported}: mmpkd knows nothing of the engine")
        if top != package or room(imported) == own:
            continue
        if not own or not room(imported):
            broken.append(f"{module} imports {imported}: give both a floor in FLOORS")
        elif HEIGHT[room(imported)] >= HEIGHT[own]:
            broken.append(f"{module} imports {imported}: imports go one way, see FLOORS")
    return broken


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_one_way(package):
    broken = []
    for path in sources(package):
        broken += violations(path.read_text(), module_name(path), path.name == "__init__.py")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("package", FLOORS)
def test_no_import_leads_back_to_where_it_began(package):
    """Within a room as well, and whether an import stands at the top of a file or in a function."""
    graph = {}
    for path in sources(package):
        module = module_name(path)
        names = imports(path.read_text(), module, path.name == "__init__.py")
        graph[module] = {name for name in names if name.partition(".")[0] == package and name != module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_every_floor_is_inhabited():
    for name in HEIGHT:
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists() or name == "sweep.types", f"{name} does not exist"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mmpkd.scoring.localize", "import ray"),
        ("mmpkd.scoring.localize", "from optuna.trial import Trial"),
        ("mmpkd.scoring.localize", "def late():\n    import mlflow"),
        ("mmpkd.scoring.localize", "from sweep import space"),
        ("mmpkd.scoring.localize", "from mmpkd import train"),
        ("mmpkd.scoring.localize", "from mmpkd.train import train"),
        ("mmpkd.scoring.localize", "from ..train import train"),
        ("mmpkd.scoring.localize", "from mmpkd.scoring.classify import score"),  # a neighbour
        ("mmpkd.scoring.localize", "if TYPE_CHECKING:\n    from mmpkd.build import build"),
        ("sweep.storage.records", "from sweep.plan.plan import Plan"),  # a neighbour
        ("sweep.storage.records", "from sweep.workers import worker"),
        ("sweep.space.space", "from sweep.pareto import dominates"),  # a neighbour
        ("sweep.search.searcher", "def late():\n    from sweep.run import main"),
        ("sweep.space", "from sweep.unknown import something"),
    ],
)
def test_the_rule_catches(module, source):
    assert violations(source, module)


def test_the_rule_lets_pass():
    source = "import torch\nfrom mmpkd.scoring import stats\nfrom mmpkd.types import Task\nfrom ..config import Strict"
    assert violations(source, "mmpkd.scoring.localize") == []
    assert violations("from mmpkd.cohort.facts import Facts\nfrom . import splits", "mmpkd.cohort.store") == []
    assert violations("from . import store\nfrom .. import types", "mmpkd.cohort", is_package=True) == []
    assert (
        violations("import ray\nfrom mmpkd.train import train\nfrom sweep import storage", "sweep.search.searcher")
        == []
    )


def loaded_by(*groups: list[str]) -> list[set[str]]:
    """Top-level packages that a fresh interpreter holds after importing each group of modules, one after another."""
    program = (
        "import importlib, json, sys\n"
        f"for group in {groups!r}:\n"
        "    for name in group: importlib.import_module(name)\n"
        "    print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [set(json.loads(line)) for line in done.stdout.splitlines()[-len(groups) :]]


def test_mmpkd_loads_nothing_of_the_engine_and_a_training_nothing_that_few_trainings_need():
    """Each of the libraries takes a part of a second in every process that trains or times a trial."""
    modules = [module_name(path) for path in sources("mmpkd")]
    assert "mmpkd" in modules and "mmpkd.train" in modules
    by_a_training, by_all = loaded_by(["mmpkd.train", "mmpkd.training.probe"], modules)
    assert not by_a_training & {"sklearn", "pydicom", "nibabel", "transformers", "matplotlib", "skimage"}
    assert not by_all & ENGINE


def test_what_only_reads_a_sweep_or_trains_loads_little():
    by_commands, by_all_that_reads = loaded_by(["sweep.status", "sweep.stop"], ["sweep.space.space", "sweep.interim"])
    assert not by_commands & {"ray", "torch", "optuna", "mlflow", "pandas"}
    assert not by_all_that_reads & {"ray", "torch", "optuna", "mlflow"}
    assert not loaded_by(["sweep.workers.worker"])[0] & {"torch", "optuna", "mlflow", "scipy"}


@pytest.mark.parametrize(("package", "extra"), [("mmpkd", None), ("sweep", "sweep")])
def test_every_library_imported_is_declared(package, extra):
    """`pip install mmpkd` brings what mmpkd imports, and the extra `sweep` what sweep imports beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    declared = {re.split(r"[\[<>=~!; ]", requirement)[0].lower() for requirement in requirements}
    for path in sources(package):
        own = declared | FORMATS.get(module_name(path), set())
        for imported in imports(path.read_text(), module_name(path), path.name == "__init__.py"):
            top = imported.split(".")[0]
            if top not in sys.stdlib_module_names and top not in {"mmpkd", "sweep"}:
                assert DISTRIBUTIONS.get(top, top).lower() in own, f"{path} imports {top}"


def test_constraints_are_exact_and_hold_no_address():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", line), line
