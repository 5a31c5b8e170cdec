"""Export of a trained student: one file with its weights and everything that is needed to use it.

The file is a safetensors file. Its metadata state as JSON how the student is built, what its logits mean, how raw
pixels become its input, and what was fitted on the validation patients: a temperature for each task and a threshold
for each label; and its training in numbers (`origin`). A guided student includes its guide, and the classifier of its
teacher if this classifier computes the logits. The file holds nothing else that is privileged, and no path and no
sample of the cohort.
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

from mmpkd.cohort.decode import Depth, depth_of, read_depth
from mmpkd.cohort.facts import Facts
from mmpkd.cohort.formats.nifti import is_nifti
from mmpkd.cohort.readers.table.params import TableParams
from mmpkd.cohort.store import Store
from mmpkd.config import StudentConfig, TrialConfig
from mmpkd.export.lookup import ANSWERS
from mmpkd.export.lookup import NAME as NAME
from mmpkd.export.lookup import find as find
from mmpkd.export.origin import Origin
from mmpkd.fit import task_loss
from mmpkd.machine.checksums import fingerprint
from mmpkd.objectives.guidance import Guided
from mmpkd.scoring import classify
from mmpkd.scoring.saliency import MAPS
from mmpkd.scoring.stats import Floats
from mmpkd.student import Student, build_student
from mmpkd.types import ConfigError, Task

FORMAT = 1
SEEN = "seen"  # name of the tensor that holds the digests of images, beside the weights
LOG_TEMPERATURES = (-3.0, 3.0)  # bounds of the search for the natural logarithm of a temperature


@dataclass(frozen=True)
class Card:
    """The description of an exported student; see `Exported`."""

    model: dict[str, Any]  # StudentConfig, without its pretrained weights
    mean: tuple[float, ...]  # mean that normalises the pixels, which lie in [0, 1]
    std: tuple[float, ...]
    tasks: tuple[Task, ...]
    channels: int
    image_size: int  # side of the input square, pixels
    depth: Depth  # how raw pixels become 8 bits
    map: str  # name of the saliency map
    temperature: Mapping[str, float]  # temperature of each task, fitted on the validation patients
    threshold: Mapping[str, float]  # probability for each logit outside multi-class tasks, chosen on validation
    map_threshold: Mapping[str, float]  # threshold of `iou_tuned` for each ROI label, chosen on validation
    source: str  # hash of the training data set, see `source_of`
    cohort: str  # fingerprint of the store
    fold: int  # the validation fold
    trial: str  # fingerprint of the training configuration
    credentialed: bool
    head: Mapping[str, Any] | None = None  # the head of Deep Multimodal Guidance, see `Guided`
    slices: tuple[float, ...] = ()  # shares of height at which volumes are cut; empty for other images


@dataclass(frozen=True)
class Exported:
    """A student and its card, read from a file.

    seen: digests of all images of the training cohort, whatever their part (see `Store.digests`). With them an external
        test detects images that both cohorts share. A digest reveals nothing about an image to a person who does not
        have the image.
    origin: what the file states about the training; None in files of earlier versions.
    """

    student: Student
    card: Card
    seen: NDArray[np.int64]
    origin: Origin | None = None

    def probabilities(self, logits_NK: NDArray[Any]) -> Floats:
        """Returns N x K calibrated probabilities: softmax or sigmoid of the logits over the temperature of the task."""
        return classify.probabilities(tempered(logits_NK, self.card.tasks, self.card.temperature), self.card.tasks)


def tempered(logits_NK: NDArray[Any], tasks: tuple[Task, ...], temperature: Mapping[str, float]) -> Floats:
    """Returns the logits divided by the temperature of their task."""
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
    """Returns the card of a trained student, with values that are fitted to logits and labels of validation samples.

    Each task gets a temperature (Guo et al. 2017, section 4.2), and each label the threshold of the calibrated
    probability with the best balanced accuracy (Youden's J).
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
    """Returns a hash that is equal for stores that may share patients, whatever their options.

    The hash covers the kind of the reader, which suffices for most readers, since each of them reads one published data
    set. For the readers `table` and `vqa` the hash also covers the files, and for generated cohorts the options that
    generate the data.
    """
    reader = manifest["reader"]
    source, params = manifest["source"], manifest["params"]
    own = {"table": source, "vqa": source, "synthetic": params, "synthetic_vqa": params}
    return fingerprint([reader, own.get(reader)])


def slices_of(store: Store) -> tuple[float, ...]:
    """Returns the positions at which NIfTI volumes are cut, as shares of their height; empty for other images."""
    params, reader = store.manifest["params"], store.manifest["reader"]
    if reader == "radpath":
        return tuple(params["slices"])
    if reader == "table" and any(map(is_nifti, store.sample_ids)):  # the name of a sample is the path of its image
        return TableParams.model_validate(params).slices
    return ()


def fit_temperature(logits_NK: Floats, target_NK: NDArray[Any], known_NK: NDArray[np.bool_], task: Task) -> float:
    """Returns the T > 0 that minimises the cross-entropy of the task for logits / T over its known labels."""
    from scipy.optimize import minimize_scalar

    logits, target = (torch.from_numpy(np.asarray(values, np.float32)) for values in (logits_NK, target_NK))
    known = torch.from_numpy(np.asarray(known_NK))

    def loss(log_temperature: float) -> float:
        return task_loss(logits / float(np.exp(log_temperature)), target, known, [task]).item()

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def best_threshold(probability_N: Floats, target_N: NDArray[Any]) -> float:
    """Returns the threshold with the largest sensitivity + specificity; 0.5 if there is a single class.

    The threshold lies midway between the best probability and the next lower one.
    """
    from sklearn.metrics import roc_curve  # takes half a second, which no training needs before its end

    if len(np.unique(target_N)) < 2:
        return 0.5
    false_rate, true_rate, thresholds = roc_curve(target_N, probability_N)
    threshold = min(float(thresholds[np.argmax(true_rate - false_rate)]), 1.0)  # infinite if no threshold separates
    lower = probability_N[probability_N < threshold]
    return (threshold + float(lower.max())) / 2 if lower.size else threshold


def write(folder: Path, student: Student, card: Card, seen: NDArray[np.int64], origin: Origin | None = None) -> Path:
    """Writes `folder/student.safetensors` atomically."""
    path = folder / NAME
    partial = path.with_suffix(".partial")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    weights[SEEN] = torch.tensor(seen)
    content = asdict(card)
    if not card.slices:
        del content["slices"]  # keeps the file as it was before slices existed
    text = json.dumps(content)
    metadata = {"format": str(FORMAT), "card": text, "crc": _checksum(text, weights)}
    if origin is not None:  # beside the card, so that earlier versions, which know no such key, read the file as well
        metadata |= {"origin": origin.dump(), "origin_crc": _checksum(origin.dump(), {})}
    partial.write_bytes(save(weights, metadata))
    os.replace(partial, path)
    return path


def read(path: Path) -> Exported:
    """Reads an exported student, on the CPU, in evaluation mode.

    Args:
        path: the exported file, or a folder that holds exactly one exported file, at any depth.

    Raises:
        ConfigError: the path leads to no exported student, or to several.
    """
    file = find(path)
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except OSError as error:
        raise ConfigError.at("model", f"{file} cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        problem = f"{file} is not a readable safetensors file: it is cut, damaged or of another kind"
        raise ConfigError.at("model", f"{problem}; wanted {NAME}, as mmpkd.train writes it") from error
    if metadata.get("format") == ANSWERS:
        problem = f"{file} is a student that answers questions, and this needs one that classifies"
        ask = f"python -m mmpkd.predict model={file} images=PATH question=TEXT"
        raise ConfigError.at("model", f"{problem}; ask it: {ask}")
    if metadata.get("format") != str(FORMAT) or SEEN not in weights:
        given = f"format {metadata['format']}" if "format" in metadata else "no card"
        wanted = f"an exported student of format {FORMAT}, as mmpkd.train writes it after its last epoch"
        raise ConfigError.at("model", f"{file} has {given}; wanted {wanted}")
    checksums = {"crc": ("card", weights), "origin_crc": ("origin", {})}  # older files lack the last or both
    if any(
        key in metadata and metadata[key] != _checksum(metadata.get(text, ""), tensors)
        for key, (text, tensors) in checksums.items()
    ):
        problem = f"{file} is damaged: its card or its weights do not match its checksum"
        advice = "replace it by an undamaged copy, or repeat the mmpkd.train command that made it"
        raise ConfigError.at("model", f"{problem}; {advice}")
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
        origin = Origin.load(metadata["origin"]) if "origin" in metadata else None
        student.load_state_dict(weights)
    except (LookupError, TypeError, ValueError, RuntimeError, AssertionError, ConfigError) as error:
        raise ConfigError.at("model", f"{file} has a damaged card ({type(error).__name__})") from error
    student.mean, student.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (card.mean, card.std))
    return Exported(student.eval(), card, seen, origin)


def _checksum(card: str, weights: Mapping[str, torch.Tensor]) -> str:
    """Returns the checksum of a card and the tensors beside it; safetensors has no checksum of its own."""
    crc = zlib.crc32(card.encode())
    for name, tensor in sorted(weights.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), crc)
    return f"{crc:08x}"
