"""Proposes the protocol of a new confirmation, and checks that a frozen one still belongs to its sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mmpkd.cohort.store import Store
from mmpkd.near_names import near
from mmpkd.scoring.stats import SMALLEST_ERROR
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.picking.candidates import Candidates
from sweep.selection import best_first
from sweep.space.search_config import SCORES
from sweep.storage.records import candidates
from sweep.verdict import finalists, phases
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.inference import overlap
from sweep.verdict.power import CORRELATION, MIN_SEEDS, Design, usual_seeds
from sweep.verdict.protocol import UNKNOWN, Protocol, Wanted, read_protocol, refuse_changes

REFERENCE: Final = "none"
DIFFERENCE: Final = 0.05  # the smallest difference that matters, unless the user states another
# Distances between the seeds of the search, of the choice and of the training, and between confirmations.
CHOOSE_OFFSET, TRAIN_OFFSET, TURN_OFFSET = 1000, 2000, 10_000


def propose(trials: Candidates, wanted: Wanted, folder: ConfirmationFolder, store: Store) -> Protocol:
    """Returns the protocol of a new confirmation.

    Raises:
        ConfigError: the sweep cannot be confirmed so.
    """
    mistakes: list[Mistake] = []
    goals = trials.sweep.goals
    plain = [goal for goal in goals if SCORES[goal] != "ROIs"]
    of_rois = [goal for goal in goals if SCORES[goal] == "ROIs"]
    goal = wanted.goal or (plain[0] if plain else "")
    localisation = wanted.localisation or (of_rois[0] if of_rois else "none")
    if not goal:
        problem = "all goals of the sweep are scores of ROIs, by which nothing may be chosen"
        mistakes.append(Mistake("goal", f"{problem}; name a score of classification, such as goal=val/auroc"))
    elif goal not in trials.goals:
        mistakes.append(Mistake("goal", f"the sweep has no score {goal!r}{near(goal, trials.goals)}"))
    elif SCORES.get(goal) == "ROIs":
        problem = (
            f"{goal} is a score of ROIs, and finalists chosen by it would be supervised by the ROIs that judge them"
        )
        mistakes.append(Mistake("goal", f"{problem}; write localisation={goal}"))
    if localisation != "none" and (localisation not in trials.goals or SCORES.get(localisation) != "ROIs"):
        known = [name for name in trials.goals if SCORES.get(name) == "ROIs"]
        mistakes.append(
            Mistake("localisation", f"the sweep has no score of ROIs {localisation!r}{near(localisation, known)}")
        )
    arms = compared_arms(trials, wanted.arms, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    phases.refuse_reserved(arms)
    fewest, chosen = finalists.finalists_of(trials.records, [REFERENCE, *arms], goal, wanted.finalists)
    configs = {arm: [trials.config_of(trials.trial(number)) for number in chosen[arm]] for arm in arms}
    patients = len(np.unique(store.patient_N[store.split_N == "test"]))
    if not patients:
        raise ConfigError.at("cohort", "it has no test part, so nothing is left that the search has not seen")
    seeds = wanted.seeds or usual_seeds(patients)
    base = trials.space.seed + TURN_OFFSET * (folder.turn - 1)
    return Protocol(
        sweep=trials.sweep.folder.name,
        sweep_id=trials.sweep.plan.get("sweep", ""),
        cohort=store.fingerprint,
        goal=goal,
        localisation=None if localisation == "none" else localisation,
        reference=REFERENCE,
        arms=tuple(arms),
        difference=wanted.difference or DIFFERENCE,
        trials=fewest,
        finalists=chosen,
        choose_seeds=_seeds(base + CHOOSE_OFFSET, wanted.choose_seeds or MIN_SEEDS),
        seeds=_seeds(base + TRAIN_OFFSET, seeds),
        controls=phases.controls_of(configs),
        test_patients=patients,
        after=_hash_before(folder),
    )


def _hash_before(folder: ConfirmationFolder) -> str:
    """Returns the hash of the protocol of the confirmation before one, which is empty for the first."""
    if folder.turn == 1:
        return ""
    try:
        earlier = read_protocol(replace(folder, turn=folder.turn - 1))
    except UserError:  # it was edited, which is why a new one begins
        return UNKNOWN
    return earlier.hash if earlier else UNKNOWN


def compared_arms(trials: Candidates, wanted: Sequence[str] | None, mistakes: list[Mistake]) -> list[str]:
    """Returns the arms that are compared with the reference: those with a teacher, without references and controls."""
    able = candidates(trials.shown)
    if not any(record.arm == REFERENCE for record in able):
        problem = f"the sweep has no complete trial of the arm {REFERENCE}, with which arms are compared"
        mistakes.append(Mistake("arms", f"{problem}; run a sweep with this arm"))
    known = [
        arm
        for arm in trials.space.arms
        if arm != REFERENCE and any(record.arm == arm and not record.control for record in able)
    ]
    for arm in wanted or ():
        if arm not in known:
            problem = f"no arm {arm!r} with complete trials to compare with {REFERENCE}{near(arm, known)}"
            mistakes.append(Mistake("arms", f"{problem}; there are: {', '.join(known) or 'none'}"))
    set_aside = {record.arm for record in able if record.control} | {
        record.arm for record in trials.shown if record.reference
    }
    failed = [arm for arm in trials.space.arms if arm != REFERENCE and arm not in known and arm not in set_aside]
    if known and failed and not wanted:
        problem = f"no complete trial of {', '.join(failed)}, which the sweep was to compare with {REFERENCE}"
        mistakes.append(Mistake("arms", f"{problem}; continue the sweep, or leave it out with arms={','.join(known)}"))
    if not known and not wanted:
        mistakes.append(Mistake("arms", f"the sweep has no arm beside {REFERENCE} with complete trials"))
    return list(wanted or known)


def _seeds(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def frozen(trials: Candidates, wanted: Wanted, folder: ConfirmationFolder, store: Store) -> Protocol | None:
    """Returns the frozen protocol of a confirmation that was begun, or None.

    Raises:
        UserError: the command line states another one, or the sweep or its cohort are others now.
    """
    if (protocol := read_protocol(folder)) is None:
        return None
    refuse_changes(protocol, wanted.stated(), folder)
    new = "begin a new confirmation with new=true"
    if protocol.sweep_id != trials.sweep.plan.get("sweep", ""):
        raise UserError(f"{folder.protocol} belongs to another sweep of the name {protocol.sweep}; {new}")
    if protocol.cohort != store.fingerprint:
        problem = f"{folder.protocol} was frozen for the prepared cohort {protocol.cohort}, which is now"
        raise UserError(f"{problem} {store.fingerprint}; put the data back, or {new}")
    for number in (number for numbers in protocol.finalists.values() for number in numbers):
        try:
            trials.trial(number)
        except ConfigError as error:
            (mistake,) = error.mistakes
            problem = f"trial {number} is a finalist of {folder.protocol}, but cannot be trained again"
            raise UserError(f"{problem}: {mistake.problem.partition(';')[0]}; {new}") from None
    return protocol


def expected_design(protocol: Protocol, trials: Candidates, store: Store, goal: str, spread: float) -> Design | None:
    """Returns what is expected of the comparison of two arms on the test part, before anything has run.

    The error over patients is that of the best validation score of the reference, scaled to the number of test
    patients. Nothing of the test part is read but the number of its patients.

    Args:
        spread: assumed standard deviation of a score over seeds.

    Returns:
        The design, or None if no trial of the reference has a standard error.
    """
    scored = [record for record in trials.records if record.arm == protocol.reference and record.state == "complete"]
    known = [record for record in scored if record.metrics.get(f"{goal}_se", 0.0) > SMALLEST_ERROR]
    if not known:
        return None
    best = best_first(known, goal)[0]
    validation = len(np.unique(store.patient_N[store.rows("val", trials.cohort.fold)]))
    share = protocol.test_patients / validation
    counted = protocol.test_patients
    if goal != protocol.localisation and (rarer := best.metrics.get("val/auroc_rarer_class")):
        counted = max(round(rarer * share), 2)
    variance = 2 * (1 - CORRELATION) * best.metrics[f"{goal}_se"] ** 2 / share
    variance *= overlap(protocol.folds) if protocol.folds else 1
    return Design(protocol.test_patients, counted, variance, len(protocol.seeds), (spread**2, spread**2))
