"""What the teachers say of the training samples: fitted once, cached by content, shared by all trials.

Logits of training samples are out of fold (five patient-grouped folds), because in-sample logits are
overconfident, and the five models are brought to one level (`fold_levels.py`); embeddings, hidden layers and maps
come from one model fitted on all training patients, because the latent spaces of fold models are unrelated. Test
samples are never shown to a teacher.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmpkd.augment import View, apply_view_to_map
from mmpkd.cohort.splits import dealt
from mmpkd.cohort.store import Store
from mmpkd.config import TeacherConfig, validate
from mmpkd.fit import derived_seed
from mmpkd.machine.checksums import DamagedError, fingerprint, first_changed, of_files, sealed, unsealed
from mmpkd.scoring.teacher_scores import warnings
from mmpkd.teachers import TEACHERS, Teacher
from mmpkd.teachers.ensemble import Ensemble
from mmpkd.teachers.fold_levels import level_offsets
from mmpkd.teachers.quality import looks, quality
from mmpkd.teachers.training import require_classes
from mmpkd.types import Needs, TeacherError, TeacherOutput

VERSION = 2  # raise it when the answers of the same fits come to be put together otherwise
NUM_FOLDS = 5
HIDDEN = "hidden-"  # and the layer: names of arrays
MEND = "delete that folder, and it is fitted again"
HEAD = ("head-weight", "head-bias")


@dataclass(frozen=True)
class CachedOutputs:
    """A teacher's outputs by position in the store (`logits`: NK, `embedding` and `hidden-<layer>`: ND,
    `map`: Nhw); NaN for samples it was not asked about. `head`, if it offers one: weight KD and bias K."""

    arrays: Mapping[str, Tensor]
    quality: Mapping[str, float]
    seconds: float  # what fitting cost, members' own not counted, reported apart from the trials
    address: str = ""  # content hash of all that decides the answers
    head: tuple[Tensor, Tensor] | None = None

    @property
    def width(self) -> int:
        """Dimensions of the embedding; 0 where there is none."""
        return self.arrays["embedding"].shape[1] if "embedding" in self.arrays else 0

    def at(self, rows_B: Tensor, image_BCHW: Tensor | None = None, view: View | None = None) -> TeacherOutput:
        """Of some samples; their maps as the view shows them, since what was cached is of whole images."""
        taken = {name: values[rows_B] for name, values in self.arrays.items()}
        if view is not None and "map" in taken:
            taken["map"] = apply_view_to_map(taken["map"], view)
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


def cached_outputs(config: TeacherConfig, store: Store, fold: int, cache: Path, name: str = "") -> CachedOutputs:
    """A teacher's outputs from the cache, fitted first if need be; see `fit_or_load`.

    Args:
        name: what the user calls it; its kind by default.

    Raises:
        TeacherError: the teacher cannot be fitted to these samples.
    """
    kind = TEACHERS[config.kind]
    assert not kind.sees_view, "what depends on the augmented image cannot be cached"
    name = name or config.kind

    def fill(teacher: Teacher, folder: Path) -> dict[str, NDArray[np.float32]]:
        seed = validate(kind.Params, config.params).seed
        arrays, _ = fit_and_predict(teacher, store, fold, seed, name)
        for key, values in arrays.items():
            np.save(folder / f"{key}.npy", values)
        return arrays

    folder, manifest = fit_or_load(config, store, fold, cache, name, fill)
    # Copy-on-write maps: pages are shared by all workers of a machine, and torch wants writable memory.
    try:
        tensors = {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in sorted(folder.glob("*.npy"))}
    except OSError as error:
        raise TeacherError(f"teacher {name!r}: {folder} cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise TeacherError(f"teacher {name!r}: {folder} is damaged ({type(error).__name__}); {MEND}") from error
    weight, bias = (tensors.pop(name, None) for name in HEAD)
    head = None if weight is None or bias is None else (weight, bias)
    return CachedOutputs(tensors, manifest["quality"], manifest["seconds"], folder.name, head)


def fit_or_load(
    config: TeacherConfig,
    store: Store,
    fold: int,
    cache: Path,
    name: str,
    fill: Callable[[Teacher, Path], Mapping[str, NDArray[np.float32]]],
) -> tuple[Path, dict[str, Any]]:
    """Where a teacher's fit is kept, and its manifest; filled first if need be: one process fits, others wait.

    The address is a content hash of the teacher's kind, version, parameters and sources, the cohort, and the
    training samples, so a stale answer cannot be found. The manifest is written last, then the folder is
    renamed: one that is there is whole.

    Args:
        fill: fits this teacher, writes what is to be kept into a folder, and gives what it says of every sample,
            as `fit_and_predict`, whose quality goes into the manifest.

    Raises:
        TeacherError: the teacher, which is named, cannot be fitted to these samples; what lies there is damaged, or
            another's.
    """
    kind = TEACHERS[config.kind]
    params = validate(kind.Params, config.params)
    train, val = store.rows("train", fold), store.rows("val", fold)
    identity = {
        "kind": config.kind,
        "version": kind.VERSION,
        "outputs": VERSION,
        "params": params.model_dump(mode="json"),
        "sources": kind.sources(params),
        "cohort": store.fingerprint,
        "samples": fingerprint(store.sample_ids.tolist()),  # the answers stand in this order
        "train": fingerprint(store.sample_ids[train].tolist()),
    }
    folder = cache / "teachers" / f"{config.kind}-{fingerprint(identity)}"
    if folder.is_file():
        raise TeacherError(f"teacher {name!r}: {folder} is no folder; {MEND}")
    if not (folder / "manifest.json").exists():  # a finished cache may be read-only, so no lock before this
        with _alone(folder, name):
            if not (folder / "manifest.json").exists():
                teacher = instantiate(config, store, fold, cache, name)
                started = time.perf_counter()
                beside = folder.with_name(f"{folder.name}.partial")
                beside.unlink() if beside.is_file() else shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir()
                try:
                    said = fill(teacher, beside)
                except TeacherError as error:
                    raise TeacherError(f"teacher {name!r}: {error}") from None
                good = quality(said["logits"], store, train, val, folds(store, train, params.seed))
                if isinstance(teacher, Ensemble):
                    good |= teacher.member_quality
                if "map" in said:
                    good |= looks(torch.from_numpy(said["map"]), store, val)
                manifest: dict[str, Any] = {**identity, "quality": good, "seconds": time.perf_counter() - started}
                manifest["checksums"] = of_files(beside, sorted(path.name for path in beside.iterdir()))
                (beside / "manifest.json").write_text(sealed(manifest, indent=1))
                shutil.rmtree(folder, ignore_errors=True)  # one without a manifest is none
                os.replace(beside, folder)
                for told in warnings(name, good, config.kind):
                    Console(stderr=True, soft_wrap=True, markup=False, emoji=False).print(
                        f"warning: {told}", highlight=False
                    )
    try:
        written = (folder / "manifest.json").read_bytes()
        manifest = json.loads(written)
        foreign = [key for key, value in json.loads(json.dumps(identity)).items() if manifest[key] != value]
        manifest = manifest if foreign else unsealed(written)
    except PermissionError as error:
        raise TeacherError(f"teacher {name!r}: {folder} cannot be read ({error.strerror})") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"manifest.json {error}" if isinstance(error, DamagedError) else type(error).__name__
        raise TeacherError(f"teacher {name!r}: {folder} is damaged ({why}); {MEND}") from error
    if foreign:  # brought from elsewhere under this name
        differ = ", ".join(foreign)
        raise TeacherError(
            f"teacher {name!r}: {folder} holds the answers of another teacher or cohort ({differ}); {MEND}"
        )
    if file := first_changed(folder, manifest.get("checksums", {}), since=folder / "manifest.json"):
        raise TeacherError(f"teacher {name!r}: {folder / file} is gone, or not what its checksum says; {MEND}")
    return folder, manifest


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Holds the lock of a teacher's folder.

    Raises:
        TeacherError: nothing can be written there.
    """
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        where = f"{folder}.lock: cannot be locked ({error.strerror})"
        raise TeacherError(f"teacher {name!r}: {where}; delete it, or put the cache elsewhere with cache=DIR") from None
    try:
        yield
    finally:
        lock.release()


def instantiate(config: TeacherConfig, store: Store, fold: int, cache: Path, name: str) -> Teacher:
    """A teacher that can be fitted: an ensemble has been told what its members say."""
    kind = TEACHERS[config.kind]
    teacher = kind(validate(kind.Params, config.params), store.facts)
    if isinstance(teacher, Ensemble):
        members = {
            member: cached_outputs(one, store, fold, cache, f"{name}/{member}")
            for member, one in teacher.params.members.items()
        }
        teacher.members = {member: outputs.arrays["logits"].numpy() for member, outputs in members.items()}
        teacher.member_quality = {
            f"{member}/{key}": value for member, outputs in members.items() for key, value in outputs.quality.items()
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


class OutOfFold(NamedTuple):
    """Logits of samples, each from a model that saw none of its patient's, the models brought to one level."""

    logits_NK: NDArray[np.float32]
    offset_FK: NDArray[np.float32]  # what was added to those of each fold's model


def out_of_fold(
    teacher: Teacher,
    store: Store,
    rows: NDArray[np.int64],
    seed: int,
    fitted: Callable[[int, NDArray[np.int64]], None] = lambda fold, rows: None,
) -> OutOfFold:
    """What a teacher says of the samples at `rows`, out of fold.

    Args:
        fitted: told each of the five folds while the teacher is fitted without it, and the samples in it.

    Raises:
        CohortError, TeacherError: as `folds`, or the teacher cannot be fitted.
    """
    fold_N = folds(store, rows, seed)
    logits_NK = np.empty((len(rows), store.target_NK.shape[1]), np.float32)
    for fold in range(NUM_FOLDS):
        teacher.fit(store, rows[fold_N != fold])
        logits_NK[fold_N == fold] = _arrays(teacher.outputs(store, rows[fold_N == fold]))["logits"]
        fitted(fold, rows[fold_N == fold])
    offset_FK = np.zeros((NUM_FOLDS, logits_NK.shape[1]), np.float32)
    if not isinstance(teacher, Ensemble):  # its members have been brought to one level already
        offset_FK = level_offsets(logits_NK, fold_N, store.patient_N[rows], store.facts.tasks, NUM_FOLDS)
    return OutOfFold(logits_NK + offset_FK[fold_N], offset_FK)


def _stratum(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number per combination of labels, unknown ones counting as a value of their own."""
    labels = np.where(store.known_NK[rows], store.target_NK[rows], -1)
    return np.unique(labels, axis=0, return_inverse=True)[1].astype(np.int64)


def fit_and_predict(
    teacher: Teacher,
    store: Store,
    fold: int,
    seed: int,
    name: str,
    fitted: Callable[[int, NDArray[np.int64]], None] = lambda fold, rows: None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """What a teacher says, as arrays over all samples of a store, NaN for those that it is not asked about; and what
    was added to the logits of each fold's model, (F, K).

    Args:
        fitted: as of `out_of_fold`; then told NUM_FOLDS of the model of all training patients.
    """
    train, val = store.rows("train", fold), store.rows("val", fold)
    asked = np.concatenate([train, val])
    console = Console(stderr=True)
    columns = (
        TextColumn(f"fitting teacher {name}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=NUM_FOLDS + 1)

        def one_more(index: int, rows: NDArray[np.int64]) -> None:
            fitted(index, rows)
            progress.advance(bar)

        logits_NK, offset_FK = out_of_fold(teacher, store, train, seed, one_more)
        teacher.fit(store, train)
        one_more(NUM_FOLDS, asked)
    arrays = {}
    for name, values in _arrays(teacher.outputs(store, asked)).items():
        arrays[name] = np.full((len(store.sample_ids), *values.shape[1:]), np.nan, np.float32)
        arrays[name][asked] = values
    arrays["logits"][train] = logits_NK
    if (head := teacher.head()) is not None:
        arrays |= zip(HEAD, (part.detach().cpu().numpy() for part in (head.weight, head.bias)), strict=True)
    return arrays, offset_FK


def _arrays(output: TeacherOutput) -> dict[str, NDArray[np.float32]]:
    fields = {"logits": output.logits_BK, "embedding": output.embedding_BD, "map": output.map_Bhw}
    fields |= {f"{HIDDEN}{layer}": values for layer, values in output.hidden_BD.items()}
    return {name: values.numpy() for name, values in fields.items() if values is not None}
