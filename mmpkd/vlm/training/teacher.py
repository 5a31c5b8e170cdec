"""The teacher of a vision-language student: it learns the labelled training items once, and all students share it."""

from __future__ import annotations

import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmpkd import checkpoint, command
from mmpkd.cohort.store import Store
from mmpkd.config import ScheduleConfig, TrialConfig
from mmpkd.machine.checksums import fingerprint, of_files, sealed, unsealed
from mmpkd.machine.files import locked, write_atomically
from mmpkd.machine.new_folder import new_folder
from mmpkd.teachers.training import content_hash
from mmpkd.types import ConfigError, DivergedError, EpochReport, SharedCache, TeacherError
from mmpkd.vlm import exported
from mmpkd.vlm.config import FAMILIES, VlmTeacherConfig
from mmpkd.vlm.model import Vlm, build
from mmpkd.vlm.scores.goals import goals, own_scores
from mmpkd.vlm.training import losses
from mmpkd.vlm.training.items import Items, exchanged
from mmpkd.vlm.training.learner import Learner
from mmpkd.vlm.training.losses import Logits
from mmpkd.vlm.vocabulary import Processor

TEACHERS = "teachers"  # folder of the cache
MANIFEST = "manifest.json"  # written last: a folder that has it is complete, and other machines may copy it
BEGUN = ".training"  # ending of the folder of a teacher that still learns
VERSION = 3  # must be raised when the same configuration would give another teacher

Content = TypeVar("Content")


@dataclass
class FittedVlmTeacher:
    """A teacher that has learned, with the training items as it sees them.

    Attributes:
        address: hash of everything that determines the teacher.
        quality: its goals on the validation patients.
        folder: its folder in the cache, where its answers are kept as well.
    """

    vlm: Vlm
    items: Items
    address: str
    quality: Mapping[str, float]
    folder: Path
    config: VlmTeacherConfig
    batch_size: int
    device: torch.device

    def logits(self, chosen: Sequence[int], targets: Mapping[int, str]) -> Logits:
        """Returns its logits at the answer tokens of these items, from its own view of their images.

        Words beyond the vocabulary of the student are left out.
        """
        rows = self.items.batch(chosen, targets, self.device)
        with torch.no_grad():
            logits_TV, _ = losses.answer_tokens(*self.vlm.answer_logits(rows))
        return Logits(logits_TV[:, : self.items.num_words])

    def answers(self, chosen: Sequence[int]) -> dict[int, tuple[str, float]]:
        """Returns its answer to each of these items and the margin of the answer. They are cached beside the teacher,
        because all students of a sweep use them."""
        path = self.folder / f"answers-{fingerprint([self.config.control, list(chosen)])}.json"

        def make() -> None:
            given = self.items.answers(self.vlm, chosen, self.config.max_new_tokens, self.batch_size, self.device)
            write_atomically(path, sealed({"answers": list(zip(chosen, *given, strict=True))}))

        answers = _kept(path, make, lambda: unsealed(path.read_bytes())["answers"])
        return {item: (text, margin) for item, text, margin in answers}

    def samples(self, chosen: Sequence[int], truth: Mapping[int, str], draw: object, seed: int) -> list[str]:
        """Returns one sampled answer to each of these items. The teacher is shown their true answers."""
        hints = {item: truth[item] for item in chosen}
        most, size = self.config.max_new_tokens, self.batch_size
        return self.items.answers(self.vlm, chosen, most, size, self.device, hints, draw=(seed, draw))[0]


class CachedLogits:
    """The k largest logits of a teacher at the answer tokens of each item, which are kept on disk.

    Args:
        targets: the target of every item that is ever used; the logits belong to these texts.
    """

    def __init__(self, teacher: FittedVlmTeacher, targets: Mapping[int, str], k: int):
        identity = fingerprint([teacher.config.control, k, sorted(targets.items())])
        path = teacher.folder / f"logits-{identity}.npz"
        arrays = _kept(path, lambda: _write_logits(path, teacher, targets, k), lambda: _arrays(path))
        self._items: dict[int, int] = {int(item): index for index, item in enumerate(arrays["items"])}
        self._ends: NDArray[np.int64] = arrays["ends"]
        self._values = torch.from_numpy(arrays["values"])
        self._words = torch.from_numpy(arrays["words"])
        self._device = teacher.device

    def __call__(self, chosen: Sequence[int], targets: Mapping[int, str]) -> Logits:
        parts = [slice(*self._ends[[self._items[item], self._items[item] + 1]]) for item in chosen]
        values, words = (torch.cat([kept[part] for part in parts]) for kept in (self._values, self._words))
        return Logits(values.to(self._device), words.long().to(self._device))


def _kept(path: Path, make: Callable[[], None], read: Callable[[], Content]) -> Content:
    """Returns the content of a file beside a teacher. It is made if it is missing, and a lock makes others wait for it.

    Raises:
        TeacherError: the file cannot be locked, or it is damaged.
    """
    if not path.exists():
        with locked(path, _not_locked):
            if not path.exists():
                make()
    try:
        return read()
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        problem = f"distillation.teacher: {path} cannot be read, or is damaged ({type(error).__name__})"
        raise TeacherError(f"{problem}; delete it (rm {path}) and it is made again") from error


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as arrays:  # compares each array with its checksum
        return dict(arrays)


def _not_locked(lock: str, problem: str) -> TeacherError:
    return TeacherError(f"distillation.teacher: {lock}: {problem}")


def _write_logits(path: Path, teacher: FittedVlmTeacher, targets: Mapping[int, str], k: int) -> None:
    items, values, words = sorted(targets), [], []
    for start in range(0, len(items), teacher.batch_size):
        kept = losses.most_likely(teacher.logits(items[start : start + teacher.batch_size], targets).values_Tk, k)
        assert kept.words_Tk is not None
        values.append(kept.values_Tk.cpu().numpy())
        words.append(kept.words_Tk.cpu().numpy().astype(np.int32))
    ends = np.cumsum([0, *(teacher.items.num_tokens(item, targets[item]) for item in items)])
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, items=items, ends=ends, values=np.concatenate(values), words=np.concatenate(words))
    partial.replace(path)


def fit_teacher(
    config: TrialConfig,
    store: Store,
    processor: Processor,
    cache: Path,
    device: torch.device,
    shared: SharedCache | None = None,
) -> FittedVlmTeacher | None:
    """Returns the teacher of a configuration, from the cache if it is there; None if nothing is distilled.

    A teacher learns only items of training patients that have a true answer. A lock makes other trainings wait for it.
    An interrupted teacher goes on from its own checkpoint, which is written as those of students are.
    Its address is a content hash of everything that determines it, of which the weights in the folder of a model are a
    part, but not the path of the folder.

    Raises:
        TeacherError: the training patients have no answer to learn from, the teacher diverges, or the cached teacher is
            damaged.
    """
    teacher = config.distillation.teacher
    if teacher is None or not config.distillation.needs_teacher:
        return None
    # A shuffled teacher is the same model.
    plain = teacher.model_copy(update={"control": None, "model": source_of(teacher.model)})
    train, val = store.rows("train", config.cohort.fold), store.rows("val", config.cohort.fold)
    size, samples = config.evaluation.batch_size, [store.sample_ids.tolist(), train.tolist(), val.tolist()]
    content = [VERSION, plain.model_dump(mode="json"), store.fingerprint, fingerprint(samples), processor.state()]
    address = fingerprint([*content, config.optimizer.weight_decay, config.optimizer.clip_norm])
    entry = f"{TEACHERS}/vlm-{address}"
    folder = (shared and shared.fetch(entry)) or cache / entry
    if not (folder / MANIFEST).exists():
        with locked(folder, _not_locked):
            folder = (shared and shared.fetch(entry)) or folder
            if not (folder / MANIFEST).exists():
                begun = folder.with_name(f"{folder.name}{BEGUN}")
                of_train = Items(store, train, teacher, processor)
                vlm = _trained(config, teacher, of_train, processor, store, device, begun, address)
                seen = Items(store, val, teacher, processor)
                texts, _ = seen.answers(vlm, range(len(seen)), teacher.max_new_tokens, size, device)
                quality = goals(seen.scored(texts), own_scores(store.questions))
                shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is incomplete
                with new_folder(folder, []) as made:
                    exported.write(made, vlm, teacher, store.facts.image_size, store.facts.channels, {})
                    manifest = {"cohort": store.fingerprint, "quality": quality}
                    manifest["checksums"] = of_files(made, [exported.NAME])
                    (made / MANIFEST).write_text(sealed(manifest))
                shutil.rmtree(begun, ignore_errors=True)
                if shared:
                    shared.publish(entry)
    try:
        vlm, _ = exported.read(folder / exported.NAME)
        quality = unsealed((folder / MANIFEST).read_bytes())["quality"]
    except (OSError, ValueError, LookupError, ConfigError) as error:
        problem = f"distillation.teacher: {folder} does not hold a whole teacher ({type(error).__name__})"
        raise TeacherError(f"{problem}; delete it (rm -r {folder}) and it is trained again") from error
    shown = exchanged(store, train, teacher.seed) if teacher.control == "shuffled" else None
    items = Items(store, train, teacher, processor, shown)
    vlm = vlm.to(device).eval().requires_grad_(False)
    return FittedVlmTeacher(vlm, items, fingerprint([address, teacher.control]), quality, folder, teacher, size, device)


def _trained(
    config: TrialConfig,
    teacher: VlmTeacherConfig,
    items: Items,
    processor: Processor,
    store: Store,
    device: torch.device,
    begun: Path,
    address: str,
) -> Vlm:
    """Returns the teacher after its last epoch.

    Args:
        begun: folder of its checkpoint, from which an interrupted training goes on. `sweep.clean` reads there for
            which cohort it was.
    """
    size, channels = store.facts.image_size, store.facts.channels
    vlm = build(teacher, processor, size, channels, teacher.seed, "vlm teacher").to(device)
    if not items.answered and teacher.epochs:
        problem = "no training question has an answer, so that the teacher has nothing to learn from"
        raise TeacherError(f"distillation.teacher: {problem}; use a trained one (a folder, with epochs: 0)")
    targets = {item: str(items.table["answer"].iloc[item]) for item in items.answered}
    learner = Learner(
        vlm,
        items,
        teacher.learning_rate,
        config.optimizer.weight_decay,
        config.optimizer.clip_norm,
        teacher.batch_size,
        ScheduleConfig(),
        teacher.seed,
        "vlm teacher",
    )
    nothing, history = nn.ModuleDict(), list[EpochReport]()
    if (begun / checkpoint.NAME).exists():
        try:
            _, history = checkpoint.restore(begun / checkpoint.NAME, vlm, nothing, lambda _: learner.optimizer, address)
        except ConfigError as error:
            ((path, problem),) = error.mistakes
            raise TeacherError(f"distillation.teacher: {path}: {problem}") from error
    elif teacher.epochs:
        begun.mkdir(parents=True, exist_ok=True)
        write_atomically(begun / MANIFEST, sealed({"cohort": store.fingerprint}))

    def state(epoch: int) -> dict[str, Any]:
        progress = checkpoint.Progress(0, epoch)
        return checkpoint.state_of(vlm, nothing, learner.optimizer, history, progress, address, address)

    what = "teacher" if teacher.model in FAMILIES else f"teacher {Path(teacher.model).name}"
    try:
        with checkpoint.CheckpointWriter(begun, config.checkpoint_seconds) as writer:
            for epoch in command.progress_bar(range(len(history), teacher.epochs), what):
                started, step = time.perf_counter(), history[-1].step if history else 0
                writer.begin_epoch()
                terms, step = learner.epoch(epoch, teacher.epochs, targets, step, hints=teacher.hints)
                history.append(EpochReport(epoch + 1, step, time.perf_counter() - started, terms, {}))
                writer.offer(partial(state, epoch + 1))
    except DivergedError as error:  # its advice is about the student
        problem = "distillation.teacher: its loss is no longer finite"
        raise TeacherError(f"{problem}; lower distillation.teacher.learning_rate") from error
    return vlm


def source_of(model: str) -> str:
    """Returns what determines the network of a `model`: the family, or a hash of the files of its folder, of which
    another one may lie under the same path one day."""
    if model in FAMILIES:
        return model
    files = [Path(model) / "config.json", *sorted(Path(model).glob("*.safetensors*"))]
    return _content(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@lru_cache(maxsize=8)
def _content(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Returns the hash of files. Times of change and sizes are in the key, so that changed files are read again."""
    return content_hash(path for path, _, _ in files)
