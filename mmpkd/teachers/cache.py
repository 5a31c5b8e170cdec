"""The cache of fitted teachers: addressed by content, shared by all trials of all sweeps.

`cached_outputs` serves a teacher whose outputs do not depend on the augmented image; `online.py` keeps the networks of
all other teachers in this cache, too. One process fits a teacher and the others wait for it.
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
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from mmpkd.augment import View, apply_view_to_map
from mmpkd.cohort.store import Store
from mmpkd.machine.checksums import DamagedError, fingerprint, first_changed, of_files, sealed, unsealed
from mmpkd.machine.files import locked
from mmpkd.scoring.teacher_scores import warnings
from mmpkd.teachers.controls import permute_between_patients
from mmpkd.teachers.fitting import HEAD, HIDDEN, fit_and_predict, folds
from mmpkd.teachers.quality import logit_quality, map_quality
from mmpkd.teachers.teacher import ResolvedTeacher, Teacher
from mmpkd.types import Needs, SharedCache, TeacherError, TeacherOutput

VERSION = 2  # raise it when the outputs are assembled differently from the same fits
REFIT = "delete that folder, and the teacher is fitted again"


@dataclass(frozen=True)
class CachedOutputs:
    """The outputs of a teacher for all samples of a store, as arrays by name.

    The arrays are `logits` (N, K), `embedding` and `hidden-<layer>` (N, D), and `map` (N, h, w), in the order of the
    store.

    The outputs are NaN for test samples. `head` holds the weight (KD) and bias (K) of the classifier, if the teacher
    offers it.
    """

    arrays: Mapping[str, Tensor]
    quality: Mapping[str, float]
    seconds: float  # time of fitting, without the fits of members; reported separately from the trials
    address: str = ""  # content hash of everything that determines the outputs
    head: tuple[Tensor, Tensor] | None = None
    recordable = True

    @property
    def width(self) -> int:
        """Returns the number of dimensions of the embedding; 0 if the teacher has no embedding."""
        return self.arrays["embedding"].shape[1] if "embedding" in self.arrays else 0

    def at(self, rows_B: Tensor, image_BCHW: Tensor | None = None, view: View | None = None) -> TeacherOutput:
        """Returns the outputs of some samples. Maps are cached for whole images; the given view is applied to them."""
        selected = {name: values[rows_B] for name, values in self.arrays.items()}
        if view is not None and "map" in selected:
            selected["map"] = apply_view_to_map(selected["map"], view)
        hidden = {
            int(name.removeprefix(HIDDEN)): values for name, values in selected.items() if name.startswith(HIDDEN)
        }
        return TeacherOutput(selected.get("logits"), selected.get("embedding"), hidden, selected.get("map"))

    def only(self, needs: Needs) -> CachedOutputs:
        """Returns these outputs without unneeded arrays, because a large encoder's hidden layers would fill memory."""
        names = needs.teacher | {f"{HIDDEN}{layer}" for layer in needs.teacher_layers}
        return replace(self, arrays={name: values for name, values in self.arrays.items() if name in names})

    def to(self, device: torch.device) -> CachedOutputs:
        return replace(self, arrays={name: values.to(device) for name, values in self.arrays.items()})

    def shuffled(self, store: Store, fold: int, seed: int) -> CachedOutputs:
        """Returns the negative control: `permute_between_patients` exchanges the outputs of training samples.

        If a student still gains under this control, the gain does not come from knowledge about the sample.
        """
        train = store.rows("train", fold)
        order = torch.from_numpy(permute_between_patients(np.zeros(len(train)), store, train, seed))
        return replace(self, arrays={name: values[order] for name, values in self.arrays.items()})


def cached_outputs(
    teacher: ResolvedTeacher,
    store: Store,
    fold: int,
    cache: Path,
    name: str = "",
    shared: SharedCache | None = None,
) -> CachedOutputs:
    """Returns a teacher's outputs from the cache, and fits it first if necessary; see `fit_or_load`.

    Args:
        name: the user's name of the teacher; its kind by default.

    Raises:
        TeacherError: the teacher cannot be fitted to these samples.
    """
    assert not teacher.teacher.sees_view, "outputs that depend on the augmented image cannot be cached"
    name = name or teacher.kind

    def fill(instance: Teacher, folder: Path) -> dict[str, NDArray[np.float32]]:
        arrays, _ = fit_and_predict(instance, store, fold, name)
        for key, values in arrays.items():
            np.save(folder / f"{key}.npy", values)
        return arrays

    folder, manifest = fit_or_load(teacher, store, fold, cache, name, fill, shared)
    # Copy-on-write maps: all workers of a machine share the pages, and torch wants writable memory.
    try:
        tensors = {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in sorted(folder.glob("*.npy"))}
    except OSError as error:
        raise TeacherError(f"teacher {name!r}: {folder} cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise TeacherError(f"teacher {name!r}: {folder} is damaged ({type(error).__name__}); {REFIT}") from error
    weight, bias = (tensors.pop(part, None) for part in HEAD)
    head = None if weight is None or bias is None else (weight, bias)
    return CachedOutputs(tensors, manifest["quality"], manifest["seconds"], folder.name, head)


def fit_or_load(
    teacher: ResolvedTeacher,
    store: Store,
    fold: int,
    cache: Path,
    name: str,
    fill: Callable[[Teacher, Path], Mapping[str, NDArray[np.float32]]],
    shared: SharedCache | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Returns the cache folder of a fitted teacher and its manifest. Fits the teacher first if it is not there.

    The address is a content hash of the teacher's kind, version, parameters and sources, the cohort, and the training
    samples, so outdated outputs are never loaded. The manifest is written last, then the folder is renamed: a folder
    that exists is complete. The members of a composite teacher are fitted or loaded first, each at its own address.

    Args:
        fill: fits this teacher, writes the files that the cache keeps into the given folder, and returns its outputs
            for every sample as `fit_and_predict` does; their quality goes into the manifest.
        shared: the cache that this machine shares with others. A teacher that lies there is copied from there, and a
            teacher that is fitted is published there.

    Raises:
        TeacherError: the teacher cannot be fitted to these samples (the message names it); or its folder is damaged or
            holds another teacher.
    """
    train, val = store.rows("train", fold), store.rows("val", fold)
    identity = {
        "kind": teacher.kind,
        "version": teacher.teacher.VERSION,
        "outputs": VERSION,
        "params": teacher.params.model_dump(mode="json"),
        "sources": teacher.sources(),
        "cohort": store.fingerprint,
        "samples": fingerprint(store.sample_ids.tolist()),  # the outputs are in this order
        "train": fingerprint(store.sample_ids[train].tolist()),
    }
    entry = f"teachers/{teacher.kind}-{fingerprint(identity)}"
    folder = (shared and shared.fetch(entry)) or cache / entry
    if folder.is_file():
        raise TeacherError(f"teacher {name!r}: {folder} is not a folder; {REFIT}")
    if not (folder / "manifest.json").exists():  # a finished cache may be read-only, so there is no lock before this
        with locked(folder, lambda lock, problem: TeacherError(f"teacher {name!r}: {lock}: {problem}")):
            folder = (shared and shared.fetch(entry)) or folder
            if not (folder / "manifest.json").exists():
                members = {
                    key: cached_outputs(member, store, fold, cache, f"{name}/{key}", shared)
                    for key, member in teacher.members.items()
                }
                started = time.perf_counter()
                partial = folder.with_name(f"{folder.name}.partial")
                partial.unlink() if partial.is_file() else shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    arrays = fill(instantiate(teacher, store, members), partial)
                except TeacherError as error:
                    raise TeacherError(f"teacher {name!r}: {error}") from None
                fold_n = folds(store, train, teacher.params.seed)
                quality = logit_quality(arrays["logits"], store, train, val, fold_n)
                for key, outputs in members.items():
                    quality |= {f"{key}/{score}": value for score, value in outputs.quality.items()}
                if "map" in arrays:
                    quality |= map_quality(torch.from_numpy(arrays["map"]), store, val)
                manifest: dict[str, Any] = {**identity, "quality": quality, "seconds": time.perf_counter() - started}
                manifest["checksums"] = of_files(partial, sorted(path.name for path in partial.iterdir()))
                (partial / "manifest.json").write_text(sealed(manifest, indent=1))
                shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is incomplete
                os.replace(partial, folder)
                if shared:
                    shared.publish(entry)
                for line in warnings(name, quality, teacher.teacher.LEAKAGE_REMEDY):
                    Console(stderr=True, soft_wrap=True, markup=False, emoji=False).print(
                        f"warning: {line}", highlight=False
                    )
    return folder, _manifest(folder, identity, name)


def _manifest(folder: Path, identity: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Reads the manifest of a teacher's folder and checks that the folder holds this teacher and is intact.

    Raises:
        TeacherError: the folder is damaged, cannot be read, or holds another teacher.
    """
    try:
        written = (folder / "manifest.json").read_bytes()
        manifest: dict[str, Any] = json.loads(written)
        differing = [key for key, value in json.loads(json.dumps(identity)).items() if manifest[key] != value]
        manifest = manifest if differing else unsealed(written)
    except PermissionError as error:
        raise TeacherError(f"teacher {name!r}: {folder} cannot be read ({error.strerror})") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        why = f"manifest.json {error}" if isinstance(error, DamagedError) else type(error).__name__
        raise TeacherError(f"teacher {name!r}: {folder} is damaged ({why}); {REFIT}") from error
    if differing:  # the folder was copied here from another cache
        raise TeacherError(
            f"teacher {name!r}: {folder} holds the outputs of another teacher or cohort ({', '.join(differing)} "
            f"differ); {REFIT}"
        )
    if file := first_changed(folder, manifest.get("checksums", {}), since=folder / "manifest.json"):
        raise TeacherError(f"teacher {name!r}: {folder / file} is missing or does not match its checksum; {REFIT}")
    return manifest


def instantiate(teacher: ResolvedTeacher, store: Store, members: Mapping[str, CachedOutputs]) -> Teacher:
    """Returns a teacher that is ready to be fitted; a composite teacher gets the logits of its members."""
    instance = teacher.teacher(teacher.params, store.facts)
    if members:
        instance.member_logits = {name: outputs.arrays["logits"].numpy() for name, outputs in members.items()}
    return instance
