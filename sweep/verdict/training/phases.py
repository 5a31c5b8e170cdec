"""The trainings of a confirmation, as sweeps of fixed configurations: every arm has a single configuration, which
runs on every seed. They run through the same driver as every sweep, with its budget, its records and its restarts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import yaml
from scipy.optimize import brentq

from mmpkd.config import STUDENT, TASK, CohortConfig, StageConfig, TrialConfig
from mmpkd.types import ConfigError, Task, UserError
from sweep.picking.candidates import Candidates
from sweep.space.space import SHARED
from sweep.storage.layout import SweepFolder
from sweep.transfer.addresses import Place
from sweep.types import Record
from sweep.verdict.finalists import label_of
from sweep.verdict.protocol import Protocol

CHOOSE, TRAIN = "choose", "train"  # names of the phases
SHUFFLED, SMOOTHED = "shuffled", "smoothed"  # endings of the names of controls, after the arm's
MOVE: Final = "move it away, and run the same command again"
SOFTENED: Final = ("logits", "dkd", "dist")  # objectives that teach softened labels
# What a phase takes over from the search, because it says how trials run and not which.
RESOURCES: Final = ("trials_per_device", "cpus", "gpus", "at_a_time", "max_failures")


@dataclass(frozen=True)
class Phase:
    """A sweep of fixed configurations.

    Attributes:
        configs: the configuration of each arm. Its seed is the first of `seeds`.
        seeds: consecutive seeds, on each of which every configuration runs.
        goals: the goals of the sweep; none for those of the search.
    """

    name: str
    configs: Mapping[str, TrialConfig]
    seeds: Sequence[int]
    goals: Sequence[str] = ()

    def on(self, cohort: CohortConfig, name: str, goals: Sequence[str]) -> Phase:
        """Returns the phase with the same configurations on another cohort."""
        configs = {label: config.model_copy(update={"cohort": cohort}) for label, config in self.configs.items()}
        return Phase(name, configs, self.seeds, goals)

    @property
    def trainings(self) -> int:
        return len(self.configs) * len(self.seeds)


def choosing(protocol: Protocol, trials: Candidates, name: str = CHOOSE) -> tuple[Phase, dict[str, tuple[str, int]]]:
    """Returns the phase in which the finalists run, and the arm and the number in the sweep that each of its arms
    stands for.
    """
    configs, arm_of = {}, {}
    for arm, numbers in protocol.finalists.items():
        for number in numbers:
            label = label_of(arm, number)
            configs[label], arm_of[label] = trials.config_of(trials.trial(number)), (arm, number)
    return Phase(name, configs, protocol.choose_seeds), arm_of


def training(
    protocol: Protocol,
    trials: Candidates,
    chosen: Mapping[str, int],
    tasks: Sequence[Task],
    name: str = TRAIN,
    goals: Sequence[str] = (),
) -> Phase:
    """Returns the phase whose students are tested: the chosen configuration of each arm, and the controls.

    Args:
        chosen: the number of the trial of each arm.
        tasks: the tasks of the cohort.
        goals: see `Phase`.
    """
    records = {arm: trials.trial(number) for arm, number in chosen.items()}
    configs = {arm: trials.config_of(record) for arm, record in records.items()}
    for control, arm in protocol.controls.items():
        if control == f"{arm}-{SHUFFLED}":
            if _can_be_shuffled(configs[arm]):
                configs[control] = shuffled(configs[arm])
        elif _teaches_softened(configs[arm]) and (entropy := _teachers_entropy(configs[arm], records[arm])) is not None:
            # A finalist may teach softened labels, or have a teacher that can be shuffled, and the chosen one not.
            configs[control] = smoothed(configs[arm], entropy, tasks)
    return Phase(name, configs, protocol.seeds, goals)


def controls_of(arms: Mapping[str, Sequence[TrialConfig]]) -> dict[str, str]:
    """Returns the arm that each control belongs to, by the name of the control.

    Every arm with a teacher has the shuffled control: the same training with the teacher's outputs for other patients.
    An arm whose finalists may teach softened labels also has label smoothing. A teacher that corrects answers has no
    control, because it is given the truth.
    """
    controls = {}
    for arm, configs in arms.items():
        if any(map(_can_be_shuffled, configs)):
            controls[f"{arm}-{SHUFFLED}"] = arm
        if any(_teaches_softened(config) for config in configs):
            controls[f"{arm}-{SMOOTHED}"] = arm
    return controls


def _can_be_shuffled(config: TrialConfig) -> bool:
    parts = config.distillation
    return bool(config.active_teachers()) or (parts.needs_teacher and not parts.corrections.rounds)


def _teaches_softened(config: TrialConfig) -> bool:
    return any(objective.kind in SOFTENED for objective in config.active_objectives().values())


def shuffled(config: TrialConfig) -> TrialConfig:
    """Returns the configuration with the outputs of all teachers shuffled between patients: of the same labels or, of
    students that answer, between any.
    """
    teachers = {name: teacher.model_copy(update={"control": "shuffled"}) for name, teacher in config.teachers.items()}
    distillation = config.distillation
    if distillation.teacher is not None:
        teacher = distillation.teacher.model_copy(update={"control": "shuffled"})
        distillation = distillation.model_copy(update={"teacher": teacher})
    return config.model_copy(update={"teachers": teachers, "distillation": distillation})


def _teachers_entropy(config: TrialConfig, record: Record) -> float | None:
    """Returns the mean entropy of the predictions of a trial's teachers in nats, or None if it is not recorded."""
    entropies = [record.metrics.get(f"teacher/{name}/entropy", np.nan) for name in config.active_teachers()]
    mean = float(np.mean(entropies)) if entropies else np.nan
    return mean if np.isfinite(mean) else None


def smoothed(config: TrialConfig, entropy: float, tasks: Sequence[Task]) -> TrialConfig:
    """Returns the configuration without teachers, with label smoothing of this mean entropy. What softened labels gain
    merely because they are softer, label smoothing gains as well.
    """
    optimizer = config.optimizer.model_copy(update={"label_smoothing": smoothing_of(entropy, tasks)})
    stages = _without_teachers(config.stages)
    return config.model_copy(update={"teachers": {}, "objectives": {}, "stages": stages, "optimizer": optimizer})


def _without_teachers(stages: Sequence[StageConfig]) -> tuple[StageConfig, ...]:
    """Returns the stages with the labels as their only term, so that the control trains the same parts of the student;
    none, if a stage is nothing without a teacher.
    """
    parts = [tuple(path for path in stage.train if path.partition(".")[0] == STUDENT) for stage in stages]
    if not all(parts) or not all(TASK in stage.objectives for stage in stages):
        return ()
    return tuple(
        stage.model_copy(update={"train": train, "objectives": (TASK,), "answer": STUDENT})
        for stage, train in zip(stages, parts, strict=True)
    )


def smoothing_of(entropy: float, tasks: Sequence[Task]) -> float:
    """Returns the label smoothing whose targets have this mean entropy over the tasks, in nats, rounded to 4 digits.

    The target of a sigmoid is 1 - s / 2 or s / 2, that of C exclusive classes is s / C for each class and 1 - s more
    for the right one (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """
    classes = [task.num_logits if task.kind == "multiclass" else 2 for task in tasks]

    def excess(smoothing: float) -> float:
        return float(np.mean([_entropy(smoothing, count) for count in classes])) - entropy

    most = 1 - 1e-6
    return round(brentq(excess, 0.0, most), 4) if entropy > 0 and excess(most) > 0 else (0.0 if entropy <= 0 else most)


def _entropy(smoothing: float, classes: int) -> float:
    target_C = np.full(classes, smoothing / classes)
    target_C[0] += 1 - smoothing
    known_C = target_C[target_C > 0]
    return float(-(known_C * np.log(known_C)).sum())


def write_space(phase: Phase, trials: Candidates, file: Place) -> None:
    """Writes the search space of a phase."""
    search, goals = trials.space.search, phase.goals or trials.sweep.goals
    example = next(iter(phase.configs.values())).model_dump(mode="json")
    shared = {key: value for key, value in example.items() if key in SHARED}
    content: dict[str, Any] = {
        **shared,
        "seed": phase.seeds[0],
        "arms": {
            **({} if "none" in phase.configs else {"none": False}),
            **{
                label: {key: value for key, value in config.model_dump(mode="json").items() if key not in SHARED}
                for label, config in phase.configs.items()
            },
        },
        "search": {
            "maximize": list(goals),
            "select": goals[0],
            "trials": len(phase.configs),
            "repeats": len(phase.seeds),
            "sampler": "random",
            "early_stopping": False,
            "keep": "all",
            **{key: value for key in RESOURCES if (value := getattr(search, key)) is not None},
        },
    }
    header = f"# Written by sweep.confirm: phase {phase.name}, {phase.trainings} trainings of fixed configurations.\n"
    file.write_bytes((header + yaml.safe_dump(content, sort_keys=False)).encode())


def refuse_reserved(arms: Sequence[str]) -> None:
    """Checks that no arm has the name of a control.

    Raises:
        ConfigError: an arm has such a name.
    """
    if names := [arm for arm in arms if arm.endswith((f"-{SHUFFLED}", f"-{SMOOTHED}"))]:
        problem = f"{', '.join(names)}: confirm makes controls of these names itself; leave the arm out with arms=..."
        raise ConfigError.at("arms", problem)


def require_own(phase: Phase, records: Sequence[Record], folder: SweepFolder) -> None:
    """Checks that a folder holds no other trials than those of a phase. An earlier confirmation may have left it.

    Raises:
        UserError: a trial has another configuration.
    """
    search = folder.read_space().get("search") or {}
    if records and (search.get("trials"), search.get("repeats")) != (len(phase.configs), len(phase.seeds)):
        raise UserError(f"{folder} holds trainings of another confirmation; {MOVE}")
    for record in records:
        wanted = phase.configs.get(record.arm)
        config = TrialConfig.model_validate_json(record.config)
        changes = {"seed": config.seed, "cohort": config.cohort}  # which the runs of a configuration change
        is_own = wanted is not None and config.seed in phase.seeds
        if not (is_own and wanted and wanted.model_copy(update=changes).fingerprint() == config.fingerprint()):
            problem = f"{folder} holds trainings of another confirmation (trial {record.number} of arm {record.arm})"
            raise UserError(f"{problem}; {MOVE}")
