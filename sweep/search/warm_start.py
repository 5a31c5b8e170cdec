"""Reads another sweep's results, from which this sweep's samplers learn before their first proposal (`warm_start`).

The other sweep's trials do not become trials of this sweep, and this sweep may run their configurations again. The
results are read once and kept in this sweep's folder, so that it does not matter if the other sweep later grows or is
deleted.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from optuna import Study
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from mmpkd.config import EvaluationConfig, TrialConfig
from mmpkd.near_names import near
from mmpkd.types import ConfigError
from sweep.search.proposals import Proposal, redraw
from sweep.space.search_config import SCORES
from sweep.space.space import Space
from sweep.storage.integrity import losses_for_reader
from sweep.storage.journal import arm_and_generation, find_damage, load_studies
from sweep.storage.layout import Storage, SweepFolder
from sweep.storage.losses import read_traces
from sweep.storage.reader import END_STATES, read_sweep
from sweep.transfer.addresses import place
from sweep.transfer.views import fetch, view_of
from sweep.types import Values

KEY: Final = "search.warm_start"
# NSGA-II breeds from numbered generations, and ignores a trial without a generation.
FIRST_GENERATION: Final = {f"{NSGAIISampler.__name__}:generation": 0}

Result: TypeAlias = tuple[str, Mapping[str, Any], str, Mapping[str, float]]  # arm, parameters, configuration, scores


def load_warm_start(
    space: Space, goals: Sequence[str], folder: SweepFolder, storage: Storage, store: str
) -> tuple[list[tuple[Proposal, Values]], str]:
    """Returns the trials of another sweep from which the samplers learn, and a line for the user that states their
    number.

    Args:
        folder: the folder of this sweep.
        storage: the folder of all sweeps.
        store: fingerprint of this sweep's prepared cohort.

    Raises:
        ConfigError: the other sweep does not exist, is this sweep itself, has no results, or was run on another cohort.
    """
    name = space.search.warm_start
    if name is None:
        return [], ""
    short_name = Path(name.partition("?")[0]).name
    kept = folder.read_warm_start(f"and today's results of {short_name} are read instead")
    if kept.get("from") != name:
        other = _other_sweep(name, storage)
        fetch(other, other.files)
        _check_other_sweep(other, name, folder, storage)
        kept = {"from": name, "results": _read_results(other, store)}
        folder.write_warm_start(kept)
    known: list[tuple[Proposal, Values]] = []
    for arm, params, config, metrics in kept["results"]:
        if not _is_comparable(config, space):
            continue
        proposal = redraw(space, arm, params, config, FIRST_GENERATION)
        if proposal and all(math.isfinite(metrics.get(goal, math.nan)) for goal in goals):
            known.append((replace(proposal, foreign=True), tuple(metrics[goal] for goal in goals)))
    counts = Counter(proposal.arm for proposal, _ in known)
    by_arm = ", ".join(f"{arm} {counts[arm]}" for arm in space.arms)
    total = len(kept["results"])
    return known, f"warm start: {len(known)} of {total} results of {short_name} fit this space ({by_arm})"


def _other_sweep(name: str, storage: Storage) -> SweepFolder:
    """Returns the folder of the sweep of this name, or at this path or address. A sweep in an object store is read in
    a temporary folder, because a driver may be running it on this machine.

    Raises:
        ConfigError: the address cannot be served.
    """
    if place(name, KEY).is_local:
        if os.sep in name:
            return SweepFolder(Path(name))
        return view_of(str(storage)).sweep(name) if storage.address else storage.sweep(name)
    address, question_mark, options = name.partition("?")
    parent, _, last = address.rpartition("/")
    return view_of(f"{parent}{question_mark}{options}", KEY).sweep(last)


def _is_comparable(config: str, space: Space) -> bool:
    """Returns whether a configuration was trained for the same number of epochs, and scored in the same way, as the
    trials of this sweep.
    """
    other = TrialConfig.model_validate_json(config)
    shared = {name: space.raw.get(name) for name in ("epochs", "evaluation")}
    defaults = {name: TrialConfig.model_fields[name].default for name in shared}
    evaluation = EvaluationConfig.model_validate(shared["evaluation"] or defaults["evaluation"])
    return other.epochs == (shared["epochs"] or defaults["epochs"]) and other.evaluation == evaluation


def _check_other_sweep(other: SweepFolder, name: str, folder: SweepFolder, storage: Storage) -> None:
    """Checks that the sweep named by `warm_start` can be read.

    Raises:
        ConfigError: the other sweep does not exist, or is this sweep itself.
    """
    if str(other) == str(folder) or other.path.resolve() == folder.path.resolve():
        raise ConfigError.at(KEY, f"{name!r} is this sweep itself; name another sweep, or give this one another name=")
    if not other.spool.is_file():
        hint = near(name, [sweep.name for sweep in storage.sweeps() if sweep.name != folder.name])
        problem = f"there is no sweep in {other}" if os.sep in name else f"no sweep {name!r} under {storage}{hint}"
        raise ConfigError.at(KEY, f"{problem}; give a sweep's name, or its folder as a path")


def _read_results(other: SweepFolder, store: str) -> list[Result]:
    """Reads the results of another sweep, and writes nothing in its folder.

    For a configuration that ran on several seeds the result is the mean over the seeds. For a trial that was stopped
    early the result is the values that the other sweep's sampler learned from the trial.
    """
    plan, journal, sweep = other.read_plan(), other.journal, read_sweep(other)
    known = {**sweep.trials, **sweep.left_behind}
    traces = read_traces(other, {number: trial.state in END_STATES for number, trial in known.items()})
    if (damage := find_damage(journal)) is not None:
        raise ConfigError.at(KEY, f"{journal}: {damage}; repair that sweep first: run its own command again")
    if plan and plan["store"] != store:
        problem = f"{other.name} was run on another cohort (prepared as {plan['store']}, this sweep's is {store})"
        raise ConfigError.at(KEY, f"{problem}; its results cannot be used here, so name a sweep of the same cohort")
    if plan and not journal.exists():
        raise ConfigError.at(KEY, f"{journal} is missing, and it holds that sweep's results; put a copy of it back")
    studies = load_studies(journal) if plan else []
    if plan and (lost := losses_for_reader(other, plan, studies, traces)):
        raise ConfigError.at(KEY, f"{journal} has lost trials: {'; '.join(lost)}; put the newest copy of it back")
    trials = list(_trials_of(studies, plan.get("generation", 0)))
    runs: dict[int, list[Mapping[str, float]]] = {}
    for _, frozen in trials:
        attributes = frozen.user_attrs
        if frozen.state == TrialState.COMPLETE:
            configuration = attributes.get("repeat_of", attributes["number"])
            runs.setdefault(configuration, []).append(attributes["ending"]["metrics"])
        elif frozen.state == TrialState.PRUNED and attributes["ending"]["learned"] is not None:
            learned = dict(zip(plan["goals"], attributes["ending"]["learned"], strict=True))
            runs[attributes["number"]] = [learned]
    if not runs:
        raise ConfigError.at(KEY, f"{other.name} has no finished results yet; wait for one, or name another sweep")
    return [
        (arm, frozen.params, frozen.user_attrs["config"], _mean_scores(runs[frozen.user_attrs["number"]]))
        for arm, frozen in trials
        if frozen.user_attrs["number"] in runs
    ]


def _trials_of(studies: Sequence[Study], generation: int) -> Iterator[tuple[str, FrozenTrial]]:
    """Yields each trial of one generation of studies, as a pair of its arm and the Optuna trial."""
    for study in studies:
        arm, study_generation = arm_and_generation(study.study_name)
        if study_generation == generation:
            for frozen in study.get_trials(deepcopy=False):
                yield arm, frozen


def _mean_scores(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each score over the runs of one configuration. A score is left out if one of the runs lacks
    it.
    """
    scores = [score for score in SCORES if all(score in run for run in runs)]
    return {score: statistics.fmean(run[score] for run in runs) for score in scores}
