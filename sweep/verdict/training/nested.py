"""Tests on the cohort of the sweep itself by cross-validation: each fold of its patients is sealed in turn, and the
whole search is repeated on the others, so that no search, no choice and no training has seen the sealed fold.

The sweep has seen all these patients but its test part. So its configurations are not used here, only its space. The
cheap form, with settings from another cohort, is `opening/folds.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from mmpkd.config import CohortConfig
from mmpkd.types import ConfigError
from sweep.options import RunOptions
from sweep.picking.candidates import Candidates
from sweep.plan.plan import Plan
from sweep.space.space import Space
from sweep.transfer.addresses import Place
from sweep.verdict.finalists import NEW, NoVerdictError, finalists_of
from sweep.verdict.opening.folds import Folds, sealed_in_turn, stores_of
from sweep.verdict.opening.scores import SealedPart
from sweep.verdict.proposal import CHOOSE_OFFSET, SEARCH_OFFSET
from sweep.verdict.protocol import Protocol, Wanted
from sweep.verdict.training import phases
from sweep.verdict.training.choice import Choice, choose
from sweep.verdict.training.phases import Phase
from sweep.verdict.training.sweeps import Sweeps, planned_sweep, write_search_space

# Keys of a search that come from earlier results on the same patients, or that say when the sweep was to stop.
NOT_REPEATED: Final = ("warm_start", "points", "budget_device_hours", "deadline", "keep")


@dataclass(frozen=True)
class OwnFolds(Folds):
    """The cohort of the sweep, prepared once for each of its folds, which is the sealed part then.

    Attributes:
        trials: those of the sweep. Their configurations are not used.
        overrides: keys of the command line that the sweeps of the folds take over.
    """

    trials: Candidates
    overrides: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the tests, as sentences."""
        count, sweep = len(self.stores), self.trials.sweep.folder.name
        return [
            f"The patients of {self.name} are tested in {count} folds. For each fold, the search, the choice and the "
            "training saw the patients of the other folds only.",
            f"The sweep {sweep} has searched the same cohort before. Its configurations are not used, only its space. "
            "If this space was narrowed after results on these patients were known, no fold can undo that.",
            "Parts that the data set or the sweep had (train, val, test) are not kept: all patients are dealt anew, "
            "so those of the test part train in other folds, and are opened with the rest.",
        ]

    def of(self, protocol: Protocol, wanted: Wanted, is_frozen: bool) -> Protocol:
        """Returns a proposed protocol with a search inside each fold in the place of the finalists, or a frozen one as
        it is.

        Raises:
            ConfigError: the space cannot be searched in the folds, or a frozen protocol names another cohort.
        """
        changed = super().of(protocol, wanted, is_frozen)
        if is_frozen:
            return changed
        arms = (protocol.reference, *protocol.arms)
        space = searched_again(self.trials.space, arms)
        changed = changed.model_copy(
            update={
                "finalists": {},
                "space": space,
                "finalists_in_fold": max(map(len, protocol.finalists.values())),
                "trials": max(int(space["search"]["trials"] * _least_share(space, arms)), 1),
            }
        )
        planned = self._planned(changed)
        controls = phases.controls_of({arm: planned.configs[arm] for arm in protocol.arms})
        return changed.model_copy(update={"controls": controls})

    def expected(self, protocol: Protocol) -> Protocol:
        """Returns a protocol with the finalists of the sweep. Their errors say what is expected of those in the folds.

        Raises:
            ConfigError: an arm of the sweep has too few complete trials.
        """
        arms, most = (protocol.reference, *protocol.arms), protocol.finalists_in_fold
        fewest, chosen = finalists_of(self.trials.records, arms, protocol.goal, None, most)
        return protocol.model_copy(update={"finalists": chosen, "trials": fewest})

    def _planned(self, protocol: Protocol) -> Plan:
        """Plans the search in the first fold, in which everything is as in the others but the patients."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.trials.space.name}.yaml"
            write_search_space(self._space(protocol, 0), Place("", str(file)))
            return planned_sweep(str(file), self.overrides)[1]

    def _space(self, protocol: Protocol, fold: int) -> dict[str, Any]:
        """Returns the space that is searched in a fold. Each fold has a seed of its own, so that the luck of the draw
        is not the same in all.
        """
        cohort = sealed_in_turn(self.config, len(self.stores))[fold]
        seed = protocol.choose_seeds[0] - CHOOSE_OFFSET + SEARCH_OFFSET + fold
        return {**protocol.space, "cohort": cohort.model_dump(mode="json"), "seed": seed}

    def choices(self, sweeps: Sweeps, protocol: Protocol) -> list[Choice]:
        """Searches and chooses in each fold, or continues.

        Raises:
            StoppedError: some trainings are left.
            NoVerdictError: too many trainings of a fold have failed.
            UserError: something is damaged.
        """
        return [self._choice(sweeps, protocol, fold) for fold in range(len(self.stores))]

    def _choice(self, sweeps: Sweeps, protocol: Protocol, fold: int) -> Choice:
        store, arms = self.stores[fold], (protocol.reference, *protocol.arms)
        trials = sweeps.search(f"fold{fold}-search", self._space(protocol, fold), store.fingerprint)
        try:
            fewest, chosen = finalists_of(trials.records, arms, protocol.goal, None, protocol.finalists_in_fold)
        except ConfigError as error:
            (mistake,) = error.mistakes
            problem = f"fold {fold}: {mistake.problem.partition('; continue')[0]}"
            raise NoVerdictError(f"{problem}; continue the sweep with more trials, and {NEW}") from None
        of_fold = protocol.model_copy(update={"finalists": chosen, "trials": fewest})
        return choose(sweeps, of_fold, trials, SealedPart(store, 0), f"fold{fold}-choose")

    def trainings(self, choices: Sequence[Choice], goals: Sequence[str]) -> list[Phase]:
        """Returns the trainings of each fold: what was chosen in it, and the controls that all folds have."""
        own = [
            phases.training(each.protocol, each.trials, each.chosen, self.tasks, f"fold{fold}", goals)
            for fold, each in enumerate(choices)
        ]
        labels = [label for label in own[0].configs if all(label in each.configs for each in own)]
        return [replace(each, configs={label: each.configs[label] for label in labels}) for each in own]


def own_folds(count: int, trials: Candidates, own: SealedPart, options: RunOptions) -> OwnFolds:
    """Prepares the cohort of a sweep for each of its folds. No score is read.

    Raises:
        UserError: it cannot be divided into so many folds.
    """
    config: CohortConfig = trials.cohort.model_copy(update={"fold": 0})
    stores = stores_of(config, count, options)
    cost = len(stores[0].rows("train")) / len(own.train_rows)
    return OwnFolds(config, stores, (), cost, trials, options.overrides)


def searched_again(space: Space, arms: Sequence[str]) -> dict[str, Any]:
    """Returns a space for a search inside a fold, without its cohort and its seed: the same arms with as many trials,
    by the same rules. What a search learnt on these patients is left out, and so are arms that are not compared.
    """
    raw: dict[str, Any] = json.loads(json.dumps(dict(space.raw), default=str))
    shares = {arm: space.shares[arm] for arm in arms}
    total = sum(shares.values())
    search = {key: value for key, value in raw["search"].items() if key not in NOT_REPEATED}
    search |= {"trials": round(space.search.trials * total)}
    if space.search.shares:
        search["shares"] = {arm: share / total for arm, share in shares.items()}
    of_arms = {**{arm: {} for arm in arms}, **(raw.get("arms") or {})}
    kept = {arm: content if arm in arms else False for arm, content in of_arms.items()}
    return {key: value for key, value in raw.items() if key not in ("cohort", "seed")} | {
        "arms": kept,
        "search": search,
    }


def _least_share(space: Mapping[str, Any], arms: Sequence[str]) -> float:
    return min((space["search"].get("shares") or {}).values(), default=1 / len(arms))


def left_out(protocol: Protocol, trainings: Sequence[Phase]) -> list[str]:
    """Returns a sentence for each control that is not trained."""
    return [
        f"The control {control} is left out: what was chosen in some fold teaches no softened labels."
        for control in protocol.controls
        if control not in trainings[0].configs
    ]
