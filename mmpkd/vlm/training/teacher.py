"""The teacher of a vision-language student: it learns the labelled training items once, and all students share it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from mmpkd import command
from mmpkd.cohort.store import Store
from mmpkd.config import ScheduleConfig, TrialConfig
from mmpkd.machine.checksums import fingerprint
from mmpkd.machine.files import write_atomically
from mmpkd.machine.new_folder import new_folder
from mmpkd.types import ConfigError, SharedCache, TeacherError
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
VERSION = 2  # must be raised when the same configuration would give another teacher


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
        """Returns its logits at the answer tokens of these items, from its own view of their images."""
        rows = self.items.batch(chosen, targets, self.device)
        with torch.no_grad():
            return Logits(losses.answer_tokens(*self.vlm.answer_logits(rows))[0])

    def answers(self, chosen: Sequence[int]) -> dict[int, tuple[str, float]]:
        """Returns its answer to each of these items and the margin of the answer. They are cached beside the teacher,
        because all students of a sweep use them."""
        path = self.folder / f"answers-{fingerprint([self.config.control, list(chosen)])}.json"
        if not path.exists():
            given = self.items.answers(self.vlm, chosen, self.config.max_new_tokens, self.batch_size, self.device)
            write_atomically(path, json.dumps(list(zip(chosen, *given, strict=True))))
        return {item: (text, margin) for item, text, margin in json.loads(path.read_text())}

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
        if not path.exists():
            _write_logits(path, teacher, targets, k)
        with np.load(path) as arrays:
            self._items: dict[int, int] = {int(item): index for index, item in enumerate(arrays["items"])}
            self._ends: NDArray[np.int64] = arrays["ends"]
            self._values = torch.from_numpy(arrays["values"])
            self._words = torch.from_numpy(arrays["words"])
        self._device = teacher.device

    def __call__(self, chosen: Sequence[int], targets: Mapping[int, str]) -> Logits:
        parts = [slice(*self._ends[[self._items[item], self._items[item] + 1]]) for item in chosen]
        values, words = (torch.cat([kept[part] for part in parts]) for kept in (self._values, self._words))
        return Logits(values.to(self._device), words.long().to(self._device))


def _write_logits(path: Path, teacher: FittedVlmTeacher, targets: Mapping[int, str], k: int) -> None:
    items, values, words, ends = sorted(targets), [], [], [0]
    for item in items:
        kept = losses.most_likely(teacher.logits([item], targets).values_Tk, k)
        assert kept.words_Tk is not None
        values.append(kept.values_Tk.cpu().numpy())
        words.append(kept.words_Tk.cpu().numpy().astype(np.int32))
        ends.append(ends[-1] + len(values[-1]))
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

    Raises:
        TeacherError: the training patients have no answer to learn from, or the cached teacher is damaged.
    """
    teacher = config.distillation.teacher
    if teacher is None or not config.distillation.needs_teacher:
        return None
    plain = teacher.model_copy(update={"control": None})  # a shuffled teacher is the same model
    content = [VERSION, plain.model_dump(mode="json"), store.fingerprint, config.cohort.fold, processor.state()]
    address = fingerprint(content)
    folder = cache / TEACHERS / f"vlm-{address}"
    train, val = store.rows("train", config.cohort.fold), store.rows("val", config.cohort.fold)
    size = config.evaluation.batch_size
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists() and not (shared and shared.fetch(f"{TEACHERS}/{folder.name}")):
            vlm = _trained(config, teacher, Items(store, train, teacher, processor), processor, store, device)
            seen = Items(store, val, teacher, processor)
            texts, _ = seen.answers(vlm, range(len(seen)), teacher.max_new_tokens, size, device)
            with new_folder(folder, []) as partial:
                exported.write(partial, vlm, teacher, store.facts.image_size, store.facts.channels, {})
                write_atomically(
                    partial / "quality.json", json.dumps(goals(seen.scored(texts), own_scores(store.questions)))
                )
            if shared:
                shared.publish(f"{TEACHERS}/{folder.name}")
    try:
        vlm, _ = exported.read(folder / exported.NAME)
        quality = json.loads((folder / "quality.json").read_text())
    except (OSError, ValueError, ConfigError) as error:
        problem = f"{folder} does not hold a whole teacher ({type(error).__name__})"
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
) -> Vlm:
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
    step = 0
    what = "teacher" if teacher.model in FAMILIES else f"teacher {Path(teacher.model).name}"
    for epoch in command.progress_bar(range(teacher.epochs), what):
        _, step = learner.epoch(epoch, teacher.epochs, targets, step, hints=teacher.hints)
    return vlm
