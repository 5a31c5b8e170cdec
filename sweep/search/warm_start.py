"""Results that were not made in this space: an earlier one's of this sweep, or another sweep's (`warm_start`).

Another sweep's are known to this one's samplers only: they are no trials of it, and a configuration
that was run there may be run here. They are read once and kept in `warm.json`, so that the sweep
goes on alike though the other grows, or goes.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from mmpkd.config import EvaluationConfig, TrialConfig, validate
from mmpkd.near_names import near
from mmpkd.types import ConfigError
from sweep.search.choosers import Replay, Unfit
from sweep.search.samplers import Proposal
from sweep.space.draw import draw, leaf_name
from sweep.space.grammar import Choice, Range, spots
from sweep.space.space import SCORES, Space
from sweep.storage.events import read_json, read_plan, write_json
from sweep.storage.journal import damage_of, stored_studies
from sweep.storage.reader import sweeps_under
from sweep.types import Values

KEY: Final = "search.warm_start"
# NSGA-II breeds from numbered generations, and knows nothing of a trial that is in none.
FIRST_GENERATION: Final = {f"{NSGAIISampler.__name__}:generation": 0}


def study_name(arm: str, generation: int) -> str:
    return f"{arm} {generation}" if generation else arm


def arm_and_generation(study: str) -> tuple[str, int]:
    arm, _, generation = study.partition(" ")
    return arm, int(generation or 0)


def fitted(
    space: Space, arm: str, params: Mapping[str, Any], config: str, internal: Mapping[str, Any]
) -> Proposal | None:
    """A trial that was drawn from another space, as this one would draw it; None if it cannot.

    A leaf may be sampled now that was fixed then: what it was stands in the trial's configuration.
    """
    if arm not in space.arms:
        return None
    had, given = json.loads(config), {}
    for spot in spots(space.arms[arm]):
        if isinstance(spot.node, Range):
            given[leaf_name(arm, spot.path)] = at(had, spot.place)
        elif isinstance(spot.node, Choice):
            labels = (label for label, value in spot.node.values.items() if value == at(had, spot.place))
            given[leaf_name(arm, spot.path)] = next(labels, None)
    given |= params
    replay = Replay(given)
    try:
        drawn = draw(space.arms[arm], replay, arm)
        own = validate(TrialConfig, drawn.config)
    except (Unfit, ConfigError):
        return None
    chosen = {name: given[name] for name in replay.distributions}
    if any(drawn.values[name] != value for name, value in chosen.items() if not isinstance(value, str)):
        return None  # 2.7, of what is a whole number now
    return Proposal(arm, drawn, own, chosen, replay.distributions, internal)


def at(config: Any, place: str) -> Any:
    """What stands at a dotted path; None: nothing."""
    for step in place.split(".") if place else ():
        config = config.get(step) if isinstance(config, dict) else None
    return config


def warm_results(
    space: Space, goals: Sequence[str], folder: Path, storage: Path, store: str
) -> tuple[list[tuple[Proposal, Values]], str]:
    """What the samplers may know of another sweep, and a line that says how much it is.

    Args:
        folder: this sweep's.
        storage: folder of all sweeps.
        store: fingerprint of this sweep's prepared cohort.

    Raises:
        ConfigError: there is no such sweep, it is this one, it has no results, or has them of other data.
    """
    word = space.search.warm_start
    if word is None:
        return [], ""
    other = Path(word) if os.sep in word else storage / word
    path = folder / "warm.json"
    kept = read_json(path, f"and what {other.name} has come to by now is read anew")
    if kept.get("from") != word:
        _refuse(other, word, folder, storage)
        kept = {"from": word, "results": _results(other, store)}
        write_json(path, kept)
    known: list[tuple[Proposal, Values]] = []
    for arm, params, config, metrics in kept["results"]:
        if not _judged_alike(config, space):
            continue
        proposal = fitted(space, arm, params, config, FIRST_GENERATION)
        if proposal and all(math.isfinite(metrics.get(goal, math.nan)) for goal in goals):
            known.append((replace(proposal, foreign=True), tuple(metrics[goal] for goal in goals)))
    fitting = Counter(proposal.arm for proposal, _ in known)
    by_arm = ", ".join(f"{arm} {fitting[arm]}" for arm in space.arms)
    return (
        known,
        f"warm start: {len(known)} of {len(kept['results'])} results of {other.name} fit this space ({by_arm})",
    )


def _judged_alike(config: str, space: Space) -> bool:
    """Whether a configuration was trained as long, and scored in the same way, as this sweep's are."""
    theirs = TrialConfig.model_validate_json(config)
    ours = {name: space.raw.get(name) for name in ("epochs", "evaluation")}
    defaults = {name: TrialConfig.model_fields[name].default for name in ours}
    evaluation = EvaluationConfig.model_validate(ours["evaluation"] or defaults["evaluation"])
    return theirs.epochs == (ours["epochs"] or defaults["epochs"]) and theirs.evaluation == evaluation


def _refuse(other: Path, word: str, folder: Path, storage: Path) -> None:
    if other.resolve() == folder.resolve():
        raise ConfigError.at(KEY, f"{word!r} is this very sweep; name another, or start this one as another (name=...)")
    if not (other / "spool.jsonl").is_file():
        hint = near(word, [path.name for path in sweeps_under(storage) if path.name != folder.name])
        there = f"there is no sweep in {other}" if os.sep in word else f"no sweep {word!r} under {storage}{hint}"
        raise ConfigError.at(KEY, f"{there}; give a sweep's name, or its folder as a path")


def _results(other: Path, store: str) -> list[tuple[str, Mapping[str, Any], str, Mapping[str, float]]]:
    """Arm, parameters, configuration and scores of what was run to a result there. Nothing is written.

    A configuration that was run on several seeds has their means, one that was stopped early what its
    sampler was told of it.
    """
    said, journal = read_plan(other), other / "journal.log"
    if (damage := damage_of(journal)) is not None:
        raise ConfigError.at(KEY, f"{journal}: {damage}; mend that sweep first, by running its own command again")
    if said and said["store"] != store:
        told = f"{other.name} was run on another cohort (prepared as {said['store']}, this sweep's is {store})"
        raise ConfigError.at(KEY, f"{told}, so its results say nothing here")
    if said and not journal.exists():
        raise ConfigError.at(KEY, f"{journal} is missing, which holds that sweep's results; put a copy of it back")
    trials = list(_trials(journal, said.get("generation", 0))) if said else []
    runs: dict[int, list[Mapping[str, float]]] = {}
    for _, frozen in trials:
        own = frozen.user_attrs
        if frozen.state == TrialState.COMPLETE:
            runs.setdefault(own.get("repeat_of", own["number"]), []).append(own["ending"]["metrics"])
        elif frozen.state == TrialState.PRUNED and own["ending"]["learned"] is not None:
            runs[own["number"]] = [dict(zip(said["goals"], own["ending"]["learned"], strict=True))]
    if not runs:
        raise ConfigError.at(KEY, f"{other.name} has no finished results yet")
    return [
        (arm, frozen.params, frozen.user_attrs["config"], _means(runs[frozen.user_attrs["number"]]))
        for arm, frozen in trials
        if frozen.user_attrs["number"] in runs
    ]


def _trials(journal: Path, generation: int) -> Iterator[tuple[str, FrozenTrial]]:
    for study in stored_studies(journal):
        arm, its_generation = arm_and_generation(study.study_name)
        if its_generation == generation:
            for frozen in study.get_trials(deepcopy=False):
                yield arm, frozen


def _means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        score: statistics.fmean(run[score] for run in runs) for score in SCORES if all(score in run for run in runs)
    }
