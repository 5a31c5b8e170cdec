"""The student as it leaves training: one file with its weights and all it takes to use it.

A safetensors file whose metadata say, as JSON, how the student is built, what its logits mean, how raw pixels
become its input, and what was fitted on the validation patients: a temperature for each task and a threshold for
each label. A guided student brings its guide, and its teacher's classifier where that answers. Nothing else that is
privileged is in it, and no path and no sample of the cohort.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_curve

from mmpkd.cohort.decode import Depth, depth_of, read_depth
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.formats.nifti import is_nifti
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.cohort.store import Store
from mmpkd.config import StudentConfig, TrialConfig
from mmpkd.fit import task_loss
from mmpkd.machine.checksums import fingerprint
from mmpkd.objectives.guidance import Guided
from mmpkd.scoring import classify
from mmpkd.scoring.saliency import MAPS
from mmpkd.scoring.stats import Floats
from mmpkd.student import Student, build_student
from mmpkd.types import ConfigError, Task

NAME = "student.safetensors"
FORMAT = 1
SEEN = "seen"  # beside the weights
LOG_TEMPERATURES = (-3.0, 3.0)  # natural logarithm, bounds of the search


@dataclass(frozen=True)
class Card:
    """What is known of an exported student besides its weights; see `Exported`."""

    model: dict[str, Any]  # StudentConfig, without its pretrained weights
    mean: tuple[float, ...]  # of the pixels in [0, 1]
    std: tuple[float, ...]
    tasks: tuple[Task, ...]
    channels: int
    image_size: int  # side of the square it sees, pixels
    depth: Depth  # how raw pixels become 8 bits
    map: str  # where it looks, by name
    temperature: Mapping[str, float]  # by task, fitted on validation
    threshold: Mapping[str, float]  # probability by logit of the tasks that are not multi-class, chosen on validation
    map_threshold: Mapping[str, float]  # of `iou_tuned` by ROI label, chosen on validation
    source: str  # the data set it was trained on, see `source_of`
    cohort: str  # fingerprint of the store
    fold: int  # that validated
    trial: str  # fingerprint of its configuration
    credentialed: bool
    head: Mapping[str, Any] | None = None  # what answers by the guide of Deep Multimodal Guidance, see `Guided`
    slices: tuple[float, ...] = ()  # at which shares of their height volumes were cut; of other images, not written


@dataclass(frozen=True)
class Exported:
    """A student and its card, read back.

    seen: digests of all images of the cohort it was trained on, whatever their part (see `Store.digests`), by which
        an external test finds out that it is none. They tell nothing of an image to who does not have it.
    """

    student: Student
    card: Card
    seen: NDArray[np.int64]

    def probabilities(self, logits_NK: NDArray[Any]) -> Floats:
        """N x K calibrated probabilities: the logits over their task's temperature, through softmax or sigmoid."""
        return classify.probabilities(tempered(logits_NK, self.card.tasks, self.card.temperature), self.card.tasks)


def tempered(logits_NK: NDArray[Any], tasks: tuple[Task, ...], temperature: Mapping[str, float]) -> Floats:
    logits = np.array(logits_NK, dtype=np.float64)
    for task in tasks:
        logits[:, task.columns] /= temperature[task.name]
    return logits


def card_of(
    config: TrialConfig,
    facts: Facts,
    manifest: Mapping[str, Any],
    student: Student,
    logits_NK: Floats,
    target_NK: NDArray[Any],
    known_NK: NDArray[np.bool_],
) -> Card:
    """The card of a trained student, with what the validation samples' logits and labels say.

    Temperature scaling (Guo et al. 2017, section 4.2) for each task; and for each label the threshold of the best
    balanced accuracy (Youden's J), on the calibrated probability.
    """
    temperature = {task.name: fit_temperature(logits_NK, target_NK, known_NK, task) for task in facts.tasks}
    probability_NK = classify.probabilities(tempered(logits_NK, facts.tasks, temperature), facts.tasks)
    threshold = {}
    for task in facts.tasks:
        if task.kind != "multiclass":
            for name, column in zip(task.logit_names, range(task.columns.start, task.columns.stop), strict=True):
                known = known_NK[:, column]
                threshold[f"{task.name}/{name}"] = best_threshold(
                    probability_NK[known, column], target_NK[known, column]
                )
    head = None
    if isinstance(student.head, Guided):
        head = {"width": student.head.width, "joint": student.head.joint}
    return Card(
        model=config.student.model_copy(update={"pretrained": False, "weights": None}).model_dump(
            mode="json", exclude={"reads"}
        ),
        mean=tuple(student.mean.flatten().tolist()),
        std=tuple(student.std.flatten().tolist()),
        tasks=facts.tasks,
        channels=facts.channels,
        image_size=facts.image_size,
        depth=depth_of(manifest),
        map=config.evaluation.map,
        temperature=temperature,
        threshold=threshold,
        map_threshold={},
        source=source_of(manifest),
        cohort=manifest["fingerprint"],
        fold=config.cohort.fold,
        trial=config.fingerprint(),
        credentialed=facts.credentialed,
        head=head,
    )


def source_of(manifest: Mapping[str, Any]) -> str:
    """What tells whether two stores may share patients, whatever their options: the reader, for it reads one published
    data set; with the files, where it reads any (`table`); with the options, where they generate it (`synthetic`)."""
    reader = manifest["reader"]
    return fingerprint([reader, {"table": manifest["source"], "synthetic": manifest["params"]}.get(reader)])


def slices_of(store: Store) -> tuple[float, ...]:
    """Of a cohort of NIfTI volumes, at which shares of their height its images are cut; of any other, nothing."""
    params, reader = store.manifest["params"], store.manifest["reader"]
    if reader == "radpath":
        return tuple(params["slices"])
    if reader == "table" and any(map(is_nifti, store.sample_ids)):  # there, a sample's name is its image's path
        return TableParams.model_validate(params).slices
    return ()


def fit_temperature(logits_NK: Floats, target_NK: NDArray[Any], known_NK: NDArray[np.bool_], task: Task) -> float:
    """The T > 0 that minimises the task's cross-entropy of logits / T over its known labels."""
    logits, target = (torch.from_numpy(np.asarray(values, np.float32)) for values in (logits_NK, target_NK))
    known = torch.from_numpy(np.asarray(known_NK))

    def loss(log_temperature: float) -> float:
        return task_loss(logits / float(np.exp(log_temperature)), target, known, [task]).item()

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def best_threshold(probability_N: Floats, target_N: NDArray[Any]) -> float:
    """Where sensitivity + specificity is largest, halfway to the next lower probability; 0.5 with a single class."""
    if len(np.unique(target_N)) < 2:
        return 0.5
    false_rate, true_rate, at = roc_curve(target_N, probability_N)
    threshold = min(float(at[np.argmax(true_rate - false_rate)]), 1.0)  # infinite where no threshold does any good
    lower = probability_N[probability_N < threshold]
    return (threshold + float(lower.max())) / 2 if lower.size else threshold


def write(folder: Path, student: Student, card: Card, seen: NDArray[np.int64]) -> Path:
    """Writes `folder/student.safetensors` beside and renames it."""
    path = folder / NAME
    beside = path.with_suffix(".partial")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    weights[SEEN] = torch.tensor(seen)
    content = asdict(card)
    if not card.slices:
        del content["slices"]  # so that the file is the one that it was before there were slices
    text = json.dumps(content)
    beside.write_bytes(save(weights, {"format": str(FORMAT), "card": text, "crc": _checksum(text, weights)}))
    os.replace(beside, path)
    return path


def read(path: Path) -> Exported:
    """An exported student, on the CPU, ready to look.

    Args:
        path: the file, or a folder with one such file in it or below it.

    Raises:
        ConfigError: no such file, several, or not an exported student.
    """
    file = _find(path)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except OSError as error:
        raise ConfigError.at("model", f"{file} cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        what = f"{file} is not a readable safetensors file ({type(error).__name__})"
        raise ConfigError.at("model", f"{what}; wanted {NAME}, as mmpkd.train leaves it") from error
    if metadata.get("format") != str(FORMAT) or SEEN not in weights:
        found = f"format {metadata['format']}" if "format" in metadata else "no card"
        wanted = f"an exported student of format {FORMAT}, as mmpkd.train leaves it after its last epoch"
        raise ConfigError.at("model", f"{file} has {found}; wanted {wanted}")
    if "crc" in metadata and metadata["crc"] != _checksum(metadata.get("card", ""), weights):  # earlier files have none
        raise ConfigError.at(
            "model",
            f"{file} is damaged: its card, or what was learnt, is not what its checksum says; "
            "put an undamaged copy in its place, or the mmpkd.train command that made it writes it anew",
        )
    try:
        content = json.loads(metadata["card"])
        tasks = tuple(Task(**{**task, "labels": tuple(task["labels"])}) for task in content["tasks"])
        depth = read_depth(*content["depth"])
        card = Card(
            **{**content, "tasks": tasks, "depth": depth, "mean": tuple(content["mean"]), "std": tuple(content["std"])}
        )
        card = replace(card, slices=tuple(card.slices))
        assert card.map in MAPS and set(card.temperature) == {task.name for task in tasks}
        config = StudentConfig.model_validate(card.model)
        student = build_student(config, card.image_size, card.channels, tasks[-1].columns.stop)
        if card.head is not None:
            student.head = Guided.empty(student.dim, num_logits=tasks[-1].columns.stop, **card.head)
        seen = weights.pop(SEEN).numpy()
        student.load_state_dict(weights)
    except (LookupError, TypeError, ValueError, RuntimeError, AssertionError, ConfigError) as error:
        raise ConfigError.at("model", f"{file} has a card that is damaged ({type(error).__name__})") from error
    student.mean, student.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (card.mean, card.std))
    return Exported(student.eval(), card, seen)


def _checksum(card: str, weights: Mapping[str, torch.Tensor]) -> str:
    """Of a card and the tensors beside it, by their names, forms and bytes; the format of the file has none."""
    crc = zlib.crc32(card.encode())
    for name, tensor in sorted(weights.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), crc)
    return f"{crc:08x}"


def _find(path: Path) -> Path:
    if path.suffix.lower() in (".yaml", ".yml"):
        train = f"python -m mmpkd.train config={path}"
        raise ConfigError.at("model", f"{path} is a configuration, no student; train it first: {train}")
    if path.suffix.lower() == ".pt":
        what = f"{path} is a training's checkpoint, with which it goes on"
        raise ConfigError.at("model", f"{what}; wanted {NAME}, which that folder has after the last epoch")
    if path.is_file():
        return path
    found = sorted(path.rglob(NAME)) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"  model={file}" for file in found[:10])
    if found:
        raise ConfigError.at("model", f"{path} holds {len(found)} exported students; name one:\n{listed}")
    wanted = f"python -m mmpkd.train config=FILE leaves {NAME} in its folder after the last epoch"
    raise ConfigError.at("model", f"no exported student at {path}; {wanted}")
