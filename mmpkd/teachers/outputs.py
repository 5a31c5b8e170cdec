"""What the teachers say of the training samples: fitted once, cached by content, shared by all trials.

Logits of training samples are out of fold (five patient-grouped folds), because in-sample logits are
overconfident; embeddings, hidden layers and maps come from one model fitted on all training patients,
because the latent spaces of fold models are unrelated. Test samples are never shown to a teacher.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmpkd.augment import View, look_map
from mmpkd.cohort.splits import dealt
from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig, TrialConfig, fingerprint, validate
from mmpkd.fit import derived_seed
from mmpkd.teachers import TEACHERS, Teacher
from mmpkd.teachers.ensemble import Ensemble
from mmpkd.teachers.fitting import require_classes
from mmpkd.teachers.quality import quality, warning
from mmpkd.types import Needs, TeacherError, TeacherOutput

NUM_FOLDS = 5
HIDDEN = "hidden-"  # and the layer: names of arrays


@dataclass(frozen=True)
class CachedOutputs:
    """A teacher's outputs by position in the store (`logits`: NK, `embedding` and `hidden-<layer>`: ND,
    `map`: Nhw); NaN for samples it was not asked about."""

    arrays: Mapping[str, Tensor]
    quality: Mapping[str, float]
    seconds: float  # what fitting cost, members' own not counted, reported apart from the trials

    @property
    def width(self) -> int:
        """Dimensions of the embedding; 0 where there is none."""
        return self.arrays["embedding"].shape[1] if "embedding" in self.arrays else 0

    def at(self, rows_B: Tensor, view: View | None = None) -> TeacherOutput:
        """Of some samples; their maps as the view shows them, since what was cached is of whole images."""
        taken = {name: values[rows_B] for name, values in self.arrays.items()}
        if view is not None and "map" in taken:
            taken["map"] = look_map(taken["map"], view)
        hidden = {int(name.removeprefix(HIDDEN)): each for name, each in taken.items() if name.startswith(HIDDEN)}
        return TeacherOutput(taken.get("logits"), taken.get("embedding"), hidden, taken.get("map"))

    def only(self, needs: Needs) -> CachedOutputs:
        """The arrays that are needed; a large encoder's hidden layers fill memory for nothing."""
        named = needs.teacher | {f"{HIDDEN}{layer}" for layer in needs.teacher_layers}
        return replace(self, arrays={name: values for name, values in self.arrays.items() if name in named})

    def to(self, device: torch.device) -> CachedOutputs:
        return self.map(lambda values: values.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> CachedOutputs:
        return replace(self, arrays={name: function(values) for name, values in self.arrays.items()})


def teach(config: TrialConfig, store: Store, cache: Path) -> dict[str, CachedOutputs]:
    """The outputs of every teacher that an objective of this configuration uses."""
    outputs = {}
    for name in config.active_teachers():
        teacher = config.teachers[name]
        outputs[name] = cached_outputs(teacher, store, config.cohort.fold, cache, name)
        if teacher.control == "shuffled":
            outputs[name] = shuffled_within_label(outputs[name], store, config.cohort.fold, config.seed)
    return outputs


def cached_outputs(config: TeacherConfig, store: Store, fold: int, cache: Path, name: str = "") -> CachedOutputs:
    """A teacher's outputs from the cache, fitted first if need be; one process fits, others wait.

    The address is a content hash of the teacher's kind, version, parameters and sources, the cohort, and the
    training samples, so a stale answer cannot be found.

    Args:
        name: what the user calls it; its kind by default.

    Raises:
        TeacherError: the teacher cannot be fitted to these samples.
    """
    kind = TEACHERS[config.kind]
    params = validate(kind.Params, config.params)
    train, val = store.rows("train", fold), store.rows("val", fold)
    identity = {
        "kind": config.kind,
        "version": kind.VERSION,
        "params": params.model_dump(mode="json"),
        "sources": kind.sources(params),
        "cohort": store.fingerprint,
        "samples": fingerprint(store.sample_ids.tolist()),  # the answers stand in this order
        "train": fingerprint(store.sample_ids[train].tolist()),
    }
    folder = cache / "teachers" / f"{config.kind}-{fingerprint(identity)}"
    assert not kind.sees_view, "what depends on the augmented image cannot be cached"
    if not (folder / "manifest.json").exists():  # a finished cache may be read-only, so no lock before this
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "manifest.json").exists():
                name = name or config.kind
                teacher = ready(config, store, fold, cache, name)
                started = time.perf_counter()
                try:
                    arrays = _fit_and_ask(teacher, store, train, val, params.seed, name)
                except TeacherError as error:
                    raise TeacherError(f"teacher {name!r}: {error}") from None
                good = quality(arrays["logits"], store, train, val)
                manifest = {**identity, "quality": good, "seconds": time.perf_counter() - started}
                _write(folder, arrays, manifest)
                if told := warning(name, good):
                    Console(stderr=True, soft_wrap=True).print(told, markup=False, highlight=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    # Copy-on-write maps: pages are shared by all workers of a machine, and torch wants writable memory.
    tensors = {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in sorted(folder.glob("*.npy"))}
    return CachedOutputs(tensors, manifest["quality"], manifest["seconds"])


def ready(config: TeacherConfig, store: Store, fold: int, cache: Path, name: str) -> Teacher:
    """A teacher that can be fitted: an ensemble has been told what its members say."""
    kind = TEACHERS[config.kind]
    teacher = kind(validate(kind.Params, config.params), store.facts)
    if isinstance(teacher, Ensemble):
        teacher.members = {
            member: cached_outputs(one, store, fold, cache, f"{name}/{member}").arrays["logits"].numpy()
            for member, one in teacher.params.members.items()
        }
    return teacher


def folds(store: Store, rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The fold of each sample at `rows`, whole patients; what is fitted without it holds every class.

    Raises:
        CohortError: fewer than five patients.
        TeacherError: without some fold, a label has a single class.
    """
    fold_N = dealt(_stratum(store, rows), store.patient_N[rows], NUM_FOLDS, derived_seed(seed, "folds") % 2**32)
    for fold in range(NUM_FOLDS):
        fitted = rows[fold_N != fold]
        require_classes(store.facts.tasks, store.target_NK[fitted], store.known_NK[fitted])
    return fold_N


def out_of_fold_logits(
    teacher: Teacher,
    store: Store,
    rows: NDArray[np.int64],
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Logits (n, K) of the samples at `rows`, each from a model that saw none of its patient's.

    Args:
        advance: called after each of the five folds.

    Raises:
        CohortError, TeacherError: as `folds`, or the teacher cannot be fitted.
    """
    fold_N = folds(store, rows, seed)
    logits_NK = np.empty((len(rows), store.target_NK.shape[1]), np.float32)
    for fold in range(NUM_FOLDS):
        teacher.fit(store, rows[fold_N != fold])
        logits_NK[fold_N == fold] = _arrays(teacher.outputs(store, rows[fold_N == fold]))["logits"]
        advance()
    return logits_NK


def _stratum(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number per combination of labels, unknown ones counting as a value of their own."""
    labels = np.where(store.known_NK[rows], store.target_NK[rows], -1)
    return np.unique(labels, axis=0, return_inverse=True)[1].astype(np.int64)


def _fit_and_ask(
    teacher: Teacher, store: Store, train: NDArray[np.int64], val: NDArray[np.int64], seed: int, name: str
) -> dict[str, NDArray[np.float32]]:
    console = Console(stderr=True)
    columns = (
        TextColumn(f"fitting teacher {name}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=NUM_FOLDS + 1)
        out_of_fold = out_of_fold_logits(teacher, store, train, seed, lambda: progress.advance(bar))
        teacher.fit(store, train)
    asked = np.concatenate([train, val])
    arrays = {}
    for name, values in _arrays(teacher.outputs(store, asked)).items():
        arrays[name] = np.full((len(store.sample_ids), *values.shape[1:]), np.nan, np.float32)
        arrays[name][asked] = values
    arrays["logits"][train] = out_of_fold
    return arrays


def _arrays(output: TeacherOutput) -> dict[str, NDArray[np.float32]]:
    fields = {"logits": output.logits_BK, "embedding": output.embedding_BD, "map": output.map_Bhw}
    fields |= {f"{HIDDEN}{layer}": values for layer, values in output.hidden_BD.items()}
    return {name: values.numpy() for name, values in fields.items() if values is not None}


def _write(folder: Path, arrays: Mapping[str, NDArray[np.float32]], manifest: Mapping[str, Any]) -> None:
    """All files beside, the manifest last, then one rename: a folder that is there is whole."""
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    for name, values in arrays.items():
        np.save(beside / f"{name}.npy", values)
    (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    os.replace(beside, folder)


def shuffled_within_label(outputs: CachedOutputs, store: Store, fold: int, seed: int) -> CachedOutputs:
    """Negative control: the teacher's answers about training samples, dealt anew among samples of the
    same label. What is left of a gain under this control is not knowledge about the sample."""
    train = store.rows("train", fold)
    stratum = _stratum(store, train)
    generator = np.random.default_rng(derived_seed(seed, "shuffled-control"))
    source = np.arange(len(store.sample_ids))
    for label in np.unique(stratum):
        members = train[stratum == label]
        source[members] = generator.permutation(members)
    order = torch.from_numpy(source)
    return outputs.map(lambda values: values[order])
