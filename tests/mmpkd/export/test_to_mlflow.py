"""`mlflow models serve` answers from an exported model with the student's numbers, by its own copy of the package."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from exported_students import BINARY, MULTICLASS, MULTILABEL, write_student
from PIL import Image

from mmpkd.cohort.decode import Depth
from mmpkd.export import student_file, to_mlflow
from mmpkd.export.__main__ import main
from mmpkd.predict import Predictor
from tests.test_imports import DISTRIBUTIONS

SECONDS = 120  # within which the server must answer


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "case.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 67, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a guided student with two tasks."""
    folder = tmp_path_factory.mktemp("mlflow")
    write_student(folder / "student", MULTILABEL, joint=True)
    main([f"model={folder / 'student'}", "to=mlflow", f"out={folder / 'model'}"])
    return folder / "model"


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow models serve`, in processes where a package of the same name on the path is broken."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mmpkd").mkdir()
    (folder / "mmpkd" / "__init__.py").write_text("raise ImportError('not the copy beside the student')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["models", "serve", "--env-manager", "local", "--model-uri", str(model), "--port", str(port)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow looks for uvicorn
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)},
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while not _answers(address):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5):
            return True
    except OSError:
        return False


def _ask(address: str, row: dict[str, str]) -> tuple[int, Any]:
    """Returns the status and the content of the answer to a row."""
    content = json.dumps({"dataframe_records": [row]}).encode()
    request = urllib.request.Request(f"{address}/invocations", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_server_gives_the_students_probabilities(server: str, model: Path, image: Path) -> None:
    wanted = Predictor(model)(image).probabilities
    for row in ({"image": base64.b64encode(image.read_bytes()).decode()}, {"path": str(image)}):
        status, answer = _ask(server, row)
        assert status == 200 and list(answer["predictions"][0]) == list(wanted)
        assert answer["predictions"][0] == pytest.approx(wanted, rel=0, abs=1e-5)


def test_the_server_says_what_is_amiss_with_a_row(server: str, image: Path) -> None:
    text = base64.b64encode(b"no image").decode()
    for row, problem in (
        ({"image": text}, "row 0: the image is not"),
        ({"path": f"{image}.tif"}, "row 0: the image"),
        ({"path": ""}, "row 0: the image"),
        ({"path": str(image), "image": text}, "row 0: wanted either 'image', the content of a file, or 'path'"),
        ({"picture": text}, "no row has a column 'image' or 'path'"),
    ):
        status, answer = _ask(server, row)
        assert status == 400 and problem in answer["message"], answer


def test_nothing_of_this_machine_is_in_the_model(model: Path) -> None:
    here = [str(Path(__file__).parents[3]), str(model.parent), sys.prefix]
    for path in (path for path in model.rglob("*") if path.is_file() and "code" not in path.relative_to(model).parts):
        assert not [folder for folder in here if folder.encode() in path.read_bytes()], path
    pins = (model / "requirements.txt").read_text().split()
    assert f"timm=={to_mlflow.metadata.version('timm')}" in pins and not [pin for pin in pins if "+" in pin]
    assert not [*model.rglob("__pycache__")]


def test_the_pins_are_what_an_import_needs(monkeypatch: pytest.MonkeyPatch, model: Path, image: Path) -> None:
    """The libraries that the module imports when it is loaded, those of formats, and timm, which builds the student; no
    library of trainings.
    """
    root, modules, needed = Path(__file__).parents[3], ["mmpkd.export.to_mlflow"], set()
    for module in modules:  # the list grows
        path = root / module.replace(".", "/")
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        for node in ast.parse(source).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
            for name in names:
                is_module = (root / name.replace(".", "/")).is_dir() or (root / f"{name.replace('.', '/')}.py").exists()
                if name.startswith("mmpkd.") and is_module:
                    modules += [name] * (name not in modules)
                elif (top := name.partition(".")[0]) not in {*sys.stdlib_module_names, "mmpkd"}:
                    needed.add(DISTRIBUTIONS.get(top, top).replace("_", "-"))
    later = {"nibabel", "pydicom", "scikit-image", "timm"}
    assert {*to_mlflow.LIBRARIES} - needed == later and len(modules) > 40
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    others = {re.split("[>=<]", line)[0] for line in declared} - {*to_mlflow.LIBRARIES}
    tops = {distribution: top for top, distribution in DISTRIBUTIONS.items()}
    for name in others:
        monkeypatch.setitem(sys.modules, tops.get(name, name), None)  # an import of it now fails
    served = to_mlflow._load_pyfunc(str(student_file.find(model)))
    assert served.predict(pd.DataFrame({"path": [str(image)]})).to_dict("records") == [
        Predictor(model)(image).probabilities
    ]


@pytest.mark.parametrize(
    ("tasks", "channels", "depth"),
    [(BINARY, 1, Depth()), (MULTICLASS, 3, Depth()), (MULTILABEL, 1, Depth(16, (500.0, 30000.0)))],
)
def test_bytes_and_paths_give_the_students_probabilities(
    tasks: Any, channels: int, depth: Depth, image: Path, tmp_path: Path
) -> None:
    """The loaded object alone; what MLflow adds is tested above."""
    file = write_student(tmp_path / "student", tasks, channels, depth=depth)
    if depth.bits == 16:
        image = tmp_path / "deep.png"
        Image.fromarray(np.random.default_rng(1).integers(0, 40_000, (30, 50)).astype(np.uint16)).save(image)
    wanted = Predictor(file)(image).probabilities
    served = to_mlflow._load_pyfunc(str(file))
    for rows in ({"image": [image.read_bytes()]}, {"path": [str(image)]}):
        assert served.predict(pd.DataFrame(rows)).to_dict("records") == [wanted]


def test_a_volume_may_be_sent_as_well(tmp_path: Path) -> None:
    """Its bytes say that it is one; slices of a volume are what the student was trained on."""
    exported = student_file.read(write_student(tmp_path / "student", BINARY, channels=3))
    sliced = student_file.write(
        tmp_path, exported.student, replace(exported.card, slices=(0.3, 0.5, 0.7)), exported.seen
    )
    served, voxels = to_mlflow._load_pyfunc(str(sliced)), np.random.default_rng(0).random((20, 24, 16)) * 1000
    for ending in (".nii", ".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), np.eye(4)), tmp_path / f"scan{ending}")
        content = (tmp_path / f"scan{ending}").read_bytes()
        wanted = Predictor(sliced)(tmp_path / f"scan{ending}").probabilities
        assert served.predict(pd.DataFrame({"image": [content]})).to_dict("records") == [wanted]
