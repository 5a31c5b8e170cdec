"""A training in stages: the modules that learn in each, the logits that are scored, and the cache of finished stages.

A stage is one loop of epochs with an optimiser and a schedule of its own. In a stage, the modules that it trains learn
from its loss terms; all other modules are frozen, with dropout off. A sweep sees only the last stage.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from mmpkd.student import Student
from mmpkd.teachers.fitted import FittedTeacher
from mmpkd.teachers.training import content_hash
from mmpkd.training.batches import StepInputs, TrainingSamples
from mmpkd.training.stage_validation import concerned, part_of
from mmpkd.types import ConfigError, DivergedError, SharedCache
from mmpkd.weights import weights_of

STAGES = "stages"  # folder in the cache
ADDRESS = "."  # key of the address in a saved stage, beside the names of modules; no module has this name
VERSION = 2  # raise it when a training of the same configuration gives other numbers


@dataclass
class Run:
    """The state of one training. `enter` begins one of its stages.

    Attributes:
        answerer: the student whose logits are scored in this stage, with its own head or with the head of an objective;
            `answerer` and `student` share their weights.
    """

    config: TrialConfig
    store: Store
    rows: NDArray[np.int64]  # positions of the training samples in the store
    student: Student
    objectives: nn.ModuleDict
    teachers: Mapping[str, FittedTeacher]
    device: torch.device
    weight_2K: Tensor | None = None  # class weights of the task loss; None: equal
    step: Callable[[StepInputs], dict[str, Tensor]] | None = None  # takes the steps of this stage once it is under way

    def __post_init__(self) -> None:
        self.stages = self.config.staged()
        both = (*self.student.parameters(), *self.objectives.parameters())
        self.samples = TrainingSamples(self.config, self.store, self.rows, self.device)
        self._trainable = [parameter for parameter in both if parameter.requires_grad]  # other parameters stay frozen
        self.enter(0)

    def enter(self, index: int) -> torch.optim.Optimizer:
        """Begins a stage: selects its modules and its head, and returns its new optimiser."""
        self.index, self.stage = index, self.stages[index]
        trained = {id(parameter) for module in self._trained_modules() for parameter in module.parameters()}
        for parameter in self._trainable:
            parameter.requires_grad_(id(parameter) in trained)
            parameter.grad = None
        config = self.config.optimizer
        self.optimizer = optimizer_for(self.student, self.objectives, config.lr, config.weight_decay, fused=True)
        self.weights = {name: torch.ones((), device=self.device) for name in self.stage.objectives}
        if self.step is not None:
            self.step = None
            gc.collect()  # a cycle of references keeps the recorded steps of the stage before, and their memory
        label, _, head = self.stage.answer.partition(".")
        has_own_head = self.stage.answer == STUDENT
        self.answerer = self.student if has_own_head else self.student.answering(self.objective(label).head(head))
        return self.optimizer

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Sets the weights of the loss terms of this stage, in the tensors that recorded steps read."""
        for name, weight in weights.items():
            self.weights[name].fill_(weight)

    def wake(self) -> None:
        """Turns dropout on in the modules that learn, and off elsewhere; a validation turns it off everywhere."""
        for root in (self.student, self.objectives):
            root.eval()
        for module in self._trained_modules():
            module.train()

    def objective(self, label: str) -> Objective:
        return cast(Objective, self.objectives[label])

    def purpose(self, name: str, epoch: int) -> tuple[object, ...]:
        """Returns the key from which the seed of random draws is derived.

        Each stage has its own keys. The first stage has the same keys as a training without stages.
        """
        return (name, epoch, self.index) if self.index else (name, epoch)

    def _trained_modules(self) -> list[nn.Module]:
        return [part_of(path, self.student, self.objectives) for path in self.stage.train]


def addresses(config: TrialConfig, store: Store, outputs: Mapping[str, FittedTeacher], cache: Path) -> list[Path]:
    """Returns the cache files of all stages except the last, in the order of the stages.

    The name of a file is a content hash of everything that determines its stage, and of nothing that follows. So trials
    that differ only in a later stage share the files of the earlier stages.
    """
    if len(config.stages) < 2:
        return []
    active, weights, paths = config.active_objectives(), weights_of(config.vit), []
    pretrained = weights and content_hash([weights])  # a file may be replaced by another one of the same name
    for count in range(1, len(config.stages)):
        stages = config.stages[:count]
        objectives = {label: active[label] for label in concerned(stages)}
        teachers = [objective.teacher for objective in objectives.values() if objective.teacher]
        until = config.model_copy(
            update={
                "stages": stages,
                "objectives": objectives,
                "teachers": {name: config.teachers[name] for name in teachers},
                "epochs": 1,
                "evaluation": EvaluationConfig(),
            }
        )
        teacher_addresses = [outputs[name].address for name in teachers]
        identity = [VERSION, until.fingerprint(), teacher_addresses, pretrained, store.sample_ids.tolist()]
        paths.append(cache / STAGES / f"{store.fingerprint}-{fingerprint(identity)}.pt")
    return paths


def keep(
    path: Path,
    stages: Sequence[StageConfig],
    student: nn.Module,
    objectives: nn.ModuleDict,
    shared: SharedCache | None = None,
) -> None:
    """Saves the modules of a training atomically, in their state after the given stages, and publishes the file in the
    shared cache, if there is one.

    Raises:
        DivergedError: the last step left weights that are not finite.
    """
    state = {STUDENT: student.state_dict()} | {label: objectives[label].state_dict() for label in concerned(stages)}
    content = {ADDRESS: path.stem, **state}
    values: list[Tensor] = [value for part in state.values() for value in part.values() if value.is_floating_point()]
    if not all(bool(value.isfinite().all()) for value in values):
        raise DivergedError(
            f"stage {stages[-1].name!r} ended with weights that are not finite: "
            "lower optimizer.lr, or set optimizer.clip_norm"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")  # two trials may save the same stage
    torch.save(content, partial)
    os.replace(partial, path)
    if shared:
        shared.publish(f"{STAGES}/{path.name}")


def recall(
    paths: Sequence[Path], student: nn.Module, objectives: nn.ModuleDict, shared: SharedCache | None = None
) -> int:
    """Loads the modules in their state after the latest stage that has a file in the cache, or in the shared cache.
    Returns the number of finished stages, which is 0 if there is a file for none of them.

    Raises:
        ConfigError: the file of the latest stage is damaged, or holds another stage.
    """
    for index in reversed(range(len(paths))):
        path = (shared and shared.fetch(f"{STAGES}/{paths[index].name}")) or paths[index]
        if not path.exists():
            continue
        with reading(path, "this finished stage", "the stage is trained again"):
            require_whole_archive(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            if (address := state.pop(ADDRESS, path.stem)) != path.stem:
                raise DamagedError(f"it belongs to {address}")
            student.load_state_dict(state.pop(STUDENT))
            for label, values in state.items():
                objectives[label].load_state_dict(values)
        return index + 1
    return 0


@contextmanager
def reading(path: Path, what: str, then: str) -> Iterator[None]:
    """Context manager in which a saved file is loaded; any error becomes a ConfigError that names the file.

    Args:
        what: what the file should hold.
        then: what happens once the user has deleted it.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError.at(str(path), f"cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises errors of many types for damaged files
        why = str(error) if isinstance(error, DamagedError) else type(error).__name__
        raise ConfigError.at(str(path), f"does not hold {what} ({why}); delete the file, and {then}") from error
