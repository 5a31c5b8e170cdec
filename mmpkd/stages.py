"""A training in stages: what learns in each and what answers, and the stages that are finished already.

A stage is one loop of epochs with an optimiser and a schedule of its own. In it the modules that it trains learn
from its terms; all others stand still, dropout off. The last is the training that a sweep sees.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmpkd.cohort.store import Store
from mmpkd.config import STUDENT, EvaluationConfig, StageConfig, TrialConfig
from mmpkd.fit import optimizer_for
from mmpkd.machine.checksums import DamagedError, fingerprint, require_whole_archive
from mmpkd.objectives import Objective
from mmpkd.stage_validation import concerned, part_of
from mmpkd.student import Student
from mmpkd.teachers.fitted import FittedTeacher
from mmpkd.teachers.training import content_hash
from mmpkd.types import ConfigError, DivergedError
from mmpkd.weights import weights_of

ADDRESS = "."  # in a kept stage, beside the names of modules, none of which is that
VERSION = 2  # raise it when a training of the same configuration comes to hold other numbers


@dataclass
class Run:
    """Everything that one training holds in its hands; `enter` takes it to one of its stages.

    Attributes:
        answerer: the student as it answers in this stage, by itself or by an objective's head; weights are shared.
    """

    config: TrialConfig
    store: Store
    rows: NDArray[np.int64]  # of the training samples, in the store
    student: Student
    objectives: nn.ModuleDict
    teachers: Mapping[str, FittedTeacher]
    device: torch.device
    weight_2K: Tensor | None = None  # of the task loss; None: all alike

    def __post_init__(self) -> None:
        self.stages = self.config.staged()
        both = (*self.student.parameters(), *self.objectives.parameters())
        self._free = [one for one in both if one.requires_grad]  # what a model froze for good stays so
        self.enter(0)

    def enter(self, index: int) -> torch.optim.Optimizer:
        """Begins a stage: what learns and what answers is chosen anew, and so is the optimiser, which is returned."""
        self.index, self.stage = index, self.stages[index]
        chosen = {id(one) for module in self._learners() for one in module.parameters()}
        for one in self._free:
            one.requires_grad_(id(one) in chosen)
            one.grad = None
        config = self.config.optimizer
        self.optimizer = optimizer_for(self.student, self.objectives, config.lr, config.weight_decay)
        label, _, head = self.stage.answer.partition(".")
        by_itself = self.stage.answer == STUDENT
        self.answerer = self.student if by_itself else self.student.answering(self.objective(label).head(head))
        return self.optimizer

    def wake(self) -> None:
        """Dropout where something learns, and nowhere else; a validation turns it off."""
        for root in (self.student, self.objectives):
            root.eval()
        for module in self._learners():
            module.train()

    def objective(self, label: str) -> Objective:
        return cast(Objective, self.objectives[label])

    def purpose(self, name: str, epoch: int) -> tuple[object, ...]:
        """Of random draws: no two stages share them, and the first draws as a training without stages does."""
        return (name, epoch, self.index) if self.index else (name, epoch)

    def _learners(self) -> list[nn.Module]:
        return [part_of(path, self.student, self.objectives) for path in self.stage.train]


def addresses(config: TrialConfig, store: Store, outputs: Mapping[str, FittedTeacher], cache: Path) -> list[Path]:
    """Where each stage but the last is kept once it is finished, in their order.

    The name is a content hash of all that led there and of nothing after it, so that trials which part
    in a later stage share the stages before.
    """
    if len(config.stages) < 2:
        return []
    active, weights, paths = config.active_objectives(), weights_of(config.student), []
    pretrained = weights and content_hash([weights])  # a file may be replaced under its name
    for count in range(1, len(config.stages)):
        stages = config.stages[:count]
        listening = {label: active[label] for label in concerned(stages)}
        teachers = [one.teacher for one in listening.values() if one.teacher]
        until = config.model_copy(
            update={
                "stages": stages,
                "objectives": listening,
                "teachers": {name: config.teachers[name] for name in teachers},
                "epochs": 1,
                "evaluation": EvaluationConfig(),
            }
        )
        told = [outputs[name].address for name in teachers]
        identity = [VERSION, until.fingerprint(), told, pretrained, store.sample_ids.tolist()]
        paths.append(cache / "stages" / f"{store.fingerprint}-{fingerprint(identity)}.pt")
    return paths


def keep(path: Path, stages: Sequence[StageConfig], student: nn.Module, objectives: nn.ModuleDict) -> None:
    """Writes what some stages have come to beside and renames it.

    Raises:
        DivergedError: the last step left weights that are not finite.
    """
    state = {STUDENT: student.state_dict()} | {label: objectives[label].state_dict() for label in concerned(stages)}
    kept = {ADDRESS: path.stem, **state}
    values: list[Tensor] = [value for one in state.values() for value in one.values() if value.is_floating_point()]
    if not all(bool(value.isfinite().all()) for value in values):
        raise DivergedError(
            f"stage {stages[-1].name!r} ended with weights that are not finite: "
            "lower optimizer.lr, or set optimizer.clip_norm"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # two trials may be at the same stage
    torch.save(kept, beside)
    os.replace(beside, path)


def recall(paths: Sequence[Path], student: nn.Module, objectives: nn.ModuleDict) -> int:
    """Loads the furthest finished stage that is kept, and returns how many stages it spares.

    Raises:
        ConfigError: its file is damaged, or another's.
    """
    for index in reversed(range(len(paths))):
        if not paths[index].exists():
            continue
        try:
            require_whole_archive(paths[index])
            state = torch.load(paths[index], map_location="cpu", weights_only=True)
            if (address := state.pop(ADDRESS, paths[index].stem)) != paths[index].stem:
                raise DamagedError(f"it is another's, {address}")
            student.load_state_dict(state.pop(STUDENT))
            for label, values in state.items():
                objectives[label].load_state_dict(values)
        except OSError as error:
            raise ConfigError.at(str(paths[index]), f"cannot be read ({error.strerror})") from error
        except Exception as error:  # torch raises whatever the bytes led it to
            why = str(error) if isinstance(error, DamagedError) else type(error).__name__
            problem = f"is not this finished stage ({why}); delete it, and it is trained again"
            raise ConfigError.at(str(paths[index]), problem) from error
        return index + 1
    return 0
