"""Exports a student as an MLflow model (`pyfunc`), which `mlflow models serve` answers from, or logs it to a run.

The model holds the student's file and a copy of this package, so that images are read as `mmpkd.predict` reads them:
all formats, windows, volumes and the letterbox. MLflow imports this module from that copy and calls `_load_pyfunc`, so
that nothing is unpickled. No other module of `mmpkd` imports MLflow, and this one does so once a model is wanted.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from mmpkd.cohort.facts import BadSample
from mmpkd.export import student_file
from mmpkd.export.comparison import random_originals
from mmpkd.export.student_file import Card, Exported
from mmpkd.export.usage import calibration_of, image_notes, label_names
from mmpkd.predict import Predictor

README = "README.md"
PACKAGE = Path(__file__).parents[1]  # the folder of `mmpkd`
# What this module imports, itself or through the modules of mmpkd that it imports, and what reads DICOM, volumes, and
# images whose contrast is equalised. Libraries that only trainings and teachers need are not installed with a model.
LIBRARIES = (
    "huggingface-hub",
    "matplotlib",
    "nibabel",
    "numpy",
    "omegaconf",
    "pandas",
    "pillow",
    "pydantic",
    "pydicom",
    "pyyaml",
    "rich",
    "safetensors",
    "scikit-image",
    "scipy",
    "timm",
    "torch",
)
IMAGE, PATH = "image", "path"  # columns of a row: the content of an image's file, or where the file lies


def write(exported: Exported, source: Path, folder: Path) -> None:
    """Writes the model to an existing folder."""
    import mlflow

    with _without_advice():
        mlflow.pyfunc.save_model(folder, **_content(exported.card, source))
    (folder / README).write_text(_readme(exported.card), encoding="utf-8")


def log(model: Path, run_id: str, registered_as: str | None = None) -> str:
    """Logs a student as the model `student` of a run, on the MLflow server in use, and returns the model's address.

    Args:
        model: see `student_file.read`.
        run_id: the run; it may have ended.
        registered_as: name of a registered model, which gets a new version; None registers nothing.

    The experiment of the run becomes MLflow's active experiment.

    Raises:
        ConfigError: `model` leads to no exported student, or to a damaged one.
        mlflow.exceptions.MlflowException: the server refuses.
    """
    import mlflow

    file = student_file.find(model)
    content = _content(student_file.read(file).card, file)
    mlflow.set_experiment(experiment_id=mlflow.get_run(run_id).info.experiment_id)  # where MLflow puts the model
    with _without_advice():
        logged = mlflow.models.Model.log(
            artifact_path=None,
            name="student",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            registered_model_name=registered_as,
            **content,
        )
    return str(logged.model_uri)


@contextmanager
def _without_advice() -> Iterator[None]:
    """A context without MLflow's advice to log an example: an image of the cohort must not leave it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _content(card: Card, file: Path) -> dict[str, Any]:
    """Returns what MLflow's functions need to know of a model."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns = [ColSpec("binary", IMAGE, required=False), ColSpec("string", PATH, required=False)]
    outputs = [ColSpec("double", name) for name in label_names(card)]
    return {
        "loader_module": __name__,
        "data_path": str(file),
        "code_paths": [str(PACKAGE)],
        "signature": ModelSignature(Schema([*columns]), Schema([*outputs])),
        "pip_requirements": requirements(),
        "metadata": {"trial": card.trial, "calibration": calibration_of(card)},
    }


def requirements() -> list[str]:
    """Returns what a served student needs, each in the version that is installed here. A version's local part, such as
    `+cpu`, is left out, because package indices do not know it."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in LIBRARIES]


def _readme(card: Card) -> str:
    names = ", ".join(f"`{name}`" for name in label_names(card))
    return f"""# A student as an MLflow model: {card.model["model"]}

{image_notes(card)} The model does this itself.

## Use

A row has the content of an image's file in the column `{IMAGE}`, or in `{PATH}` a path that the server can read. The
answer has a column for the calibrated probability of each label: {names}. A server reads any image that a client names
by its path, so it should be open to trusted clients only.

```sh
mlflow models serve --env-manager local --model-uri FOLDER --port 5001
echo '{{"dataframe_records": [{{"{IMAGE}": "'$(base64 -w0 case.png)'"}}]}}' |
  curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' --data-binary @-
```

`--env-manager local` uses the Python of the command; `requirements.txt` pins what it needs. From Python:

```python
import mlflow
import pandas as pd

model = mlflow.pyfunc.load_model("FOLDER")
with open("case.png", "rb") as opened:
    print(model.predict(pd.DataFrame({{"{IMAGE}": [opened.read()]}})))
```
"""


def compare(exported: Exported, source: Path, folder: Path) -> float:
    """Loads the written model with MLflow, and returns the largest difference between its probabilities for random
    pictures, by their content, and those of `mmpkd.predict`."""
    import mlflow

    search_path = list(sys.path)
    try:  # MLflow adds the folder of the model's code, which is renamed afterwards
        model = mlflow.pyfunc.load_model(str(folder))
    finally:
        sys.path[:] = search_path
    contents = [_as_png(image) for image in random_originals(exported.card)]
    given = model.predict(pd.DataFrame({IMAGE: contents}))[label_names(exported.card)].to_numpy()
    predictor = Predictor(source)
    wanted = []
    with TemporaryDirectory() as pictures:
        for count, content in enumerate(contents):
            picture = Path(pictures, f"{count}.png")
            picture.write_bytes(content)
            wanted.append([*predictor(picture).probabilities.values()])
    return float(np.abs(given - np.array(wanted)).max())


def _as_png(image: NDArray[np.uint8 | np.uint16]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


class Served:
    """A student in the form that MLflow calls."""

    def __init__(self, file: Path) -> None:
        self.predictor = Predictor(file)

    def predict(self, rows: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Returns one row per image with a column `task/label` for each calibrated probability.

        Args:
            rows: each row has the content of an image's file (bytes) in the column `image`, or a path in `path`.

        Raises:
            mlflow.exceptions.MlflowException: a row has neither or both, or its image cannot be read. A server answers
                with status 400, and the message names the row.
        """
        from mlflow.exceptions import MlflowException

        if rows.empty:
            raise MlflowException.invalid_parameter_value(f"no row has a column {IMAGE!r} or {PATH!r}")
        table = []
        for count, row in enumerate(rows.to_dict("records")):
            path: Any = row.get(PATH)
            content: Any = row.get(IMAGE)
            if isinstance(content, bytes) == isinstance(path, str):
                problem = f"row {count}: wanted either {IMAGE!r}, the content of a file, or {PATH!r}, where it lies"
                raise MlflowException.invalid_parameter_value(problem)
            try:
                is_path = isinstance(path, str)
                table.append(self.predictor(path).probabilities if is_path else self._probabilities(content))
            except BadSample as error:
                raise MlflowException.invalid_parameter_value(f"row {count}: the image {error.reason}") from error
        return pd.DataFrame(table, columns=self.predictor.names)

    def _probabilities(self, content: bytes) -> dict[str, float]:
        """Returns the probabilities for an image by the content of its file, whose format shows in the content."""
        ending = ".nii.gz" if content[:2] == b"\x1f\x8b" else ".nii" if content[344:347] in (b"n+1", b"ni1") else ""
        with TemporaryDirectory() as folder:
            file = Path(folder, f"image{ending}")
            file.write_bytes(content)
            return self.predictor(file).probabilities


def _load_pyfunc(path: str) -> Served:
    """Returns the student at a path; the name is MLflow's."""
    return Served(Path(path))
