"""Proposes the protocol of a new confirmation, and checks that a frozen one still belongs to its sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mmpkd.cohort.store import Store
from mmpkd.near_names import near
from mmpkd.scoring.stats import SMALLEST_ERROR
from mmpkd.types import ConfigError, Mistake, UserError
from sweep.picking.candidates import Candidates
from sweep.space.search_config import SCORES, are_of_answers, is_of_places
from sweep.storage.records import candidates
from sweep.verdict import finalists
from sweep.verdict.folder import ConfirmationFolder
from sweep.verdict.inference import SearchLuck, SeedScores, overlap
from sweep.verdict.opening.patients import Patients
from sweep.verdict.power import MIN_SEEDS, Design, first_step, usual_seeds
from sweep.verdict.protocol import UNKNOWN, Protocol, Wanted, read_protocol, refuse_changes
from sweep.verdict.training import phases

REFERENCE: Final = "none"
# The smallest difference that matters, unless the user states another. A score of ROIs is a share of images or of an
# area, whose errors are larger than those of an AUROC.
DIFFERENCE: Final = 0.05
LOCALISATION_DIFFERENCE: Final = 0.1
# Distances between the seeds of the search, of the choice, of the training and of searches in folds, and between
# confirmations.
CHOOSE_OFFSET, TRAIN_OFFSET, SEARCH_OFFSET, TURN_OFFSET = 1000, 2000, 3000, 10_000


def propose(trials: Candidates, wanted: Wanted, folder: ConfirmationFolder, store: Store) -> Protocol:
    """Returns the protocol of a new confirmation.

    Raises:
        ConfigError: the sweep cannot be confirmed so.
        UserError: its cohort is another one now.
    """
    refuse_other_cohort(trials, store)
    mistakes: list[Mistake] = []
    goals = trials.sweep.goals
    # Students that point learn the boxes, so that a score of boxes may choose where there is no other.
    able = sorted((goal for goal in goals if SCORES[goal] != "ROIs"), key=is_of_places)
    goal = wanted.goal or (able[0] if able else "")
    of_places = [each for each in goals if is_of_places(each) and each != goal]
    localisation = wanted.localisation or (of_places[0] if of_places else "none")
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
    known = [name for name in trials.goals if is_of_places(name) and name != goal]
    if localisation not in ("none", *known):
        problem = f"the sweep has no score of {'boxes' if are_of_answers(goals) else 'ROIs'} {localisation!r}"
        mistakes.append(Mistake("localisation", f"{problem}{near(localisation, known)}"))
    if localisation == "none" and wanted.localisation_difference:
        mistakes.append(Mistake("localisation_difference", "no score of localisation is compared; leave it out"))
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
        localisation_difference=(
            None if localisation == "none" else wanted.localisation_difference or LOCALISATION_DIFFERENCE
        ),
        trials=fewest,
        finalists=chosen,
        choose_seeds=_seeds(base + CHOOSE_OFFSET, wanted.choose_seeds or MIN_SEEDS),
        seeds=_seeds(base + TRAIN_OFFSET, seeds),
        controls=phases.controls_of(configs),
        test_patients=patients,
        after=_hash_before(folder),
    )


def refuse_unfit_for_answers(options: Mapping[str, str], store: Store) -> None:
    """Checks that students that answer questions are tested on the test part of their own cohort only.

    Args:
        options: of the command line.

    Raises:
        ConfigError: another cohort or folds are wanted.
    """
    problems = {
        "folds": "students that answer questions are tested on the sealed test part only; leave it out",
        "cohort": "students that answer questions are tested on their own cohort only; leave it out",
        "external": "students that answer questions are tested on their own cohort only; leave it out, and let "
        "mmpkd.evaluate score a student on the other one",
    }
    if store.facts.questions is not None and (given := [key for key in problems if options[key]]):
        raise ConfigError([Mistake(key, problems[key]) for key in given])


def refuse_other_cohort(trials: Candidates, store: Store) -> None:
    """Checks that a cohort is the one that the sweep has searched. One image more or one label corrected deals patients
    anew, so that patients of training and validation would be in the test part.

    Raises:
        UserError: it is another one.
    """
    searched = trials.sweep.plan.get("store") or store.fingerprint
    if searched != store.fingerprint:
        folder, root = trials.sweep.folder, trials.cohort.root
        problem = f"{folder} has searched the prepared cohort {searched}, which is now {store.fingerprint}"
        where = f" in {root}" if root else ""
        cause = f"the files of the cohort{where} or its reader have changed, and with them the parts"
        remedy = "put the old files back, give their folder as cohort.root=DIR, or run a new sweep on the new ones"
        raise UserError(f"{problem}: {cause}; {remedy}")


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
    if protocol.sweep != (name := trials.sweep.folder.name):  # its trainings and openings have the name of the other
        problem = f"{folder.protocol} belongs to the sweep {protocol.sweep}, of which {name} is a copy or a new name"
        raise UserError(f"{problem}; confirm {protocol.sweep}, give the sweep that name again, or {new}")
    if protocol.cohort != store.fingerprint:
        problem = f"{folder.protocol} was frozen for the prepared cohort {protocol.cohort}, which is now"
        raise UserError(f"{problem} {store.fingerprint}; put the data back as they were when the sweep began")
    for number in (number for numbers in protocol.finalists.values() for number in numbers):
        try:
            trials.trial(number)
        except ConfigError as error:
            (mistake,) = error.mistakes
            problem = f"trial {number} is a finalist of {folder.protocol}, but cannot be trained again"
            raise UserError(f"{problem}: {mistake.problem.partition(';')[0]}; {new}") from None
    return protocol


def expected_design(
    protocol: Protocol, trials: Candidates, validated: Patients, spread: float, goal: str, arm: str
) -> Design | None:
    """Returns what is expected of the comparison of an arm with the reference on the test part, before anything has
    run.

    The errors over patients are those of the finalists in the sweep, scaled to the number of test patients. Nothing of
    the test part is read but the number of its patients.

    Args:
        validated: the validation patients of the sweep.
        spread: assumed standard deviation of a score over seeds.

    Returns:
        The design, or None if no finalist of an arm has a standard error.
    """
    share = protocol.test_patients / validated.all
    errors, of_trials = [], []
    for each in (arm, protocol.reference):
        ranked = finalists.searched(trials.records, each, protocol)
        of_finalists = [record.metrics for record in ranked if record.number in protocol.finalists[each]]
        squares = [metrics.get(f"{goal}_se", 0.0) ** 2 for metrics in of_finalists]
        squares = [square for square in squares if square > SMALLEST_ERROR**2]
        if not squares:
            return None
        errors.append(float(np.mean(squares)) ** 0.5)
        values = np.array([record.metrics.get(goal, np.nan) for record in ranked])
        of_trials.append(values[np.isfinite(values)])
    counted = max(round((validated.deciding(goal) or validated.all) * share), 2)
    primaries = len(protocol.arms) * len(protocol.goals())
    design = Design.expected(
        protocol.test_patients,
        counted,
        (errors[0], errors[1]),
        share,
        len(protocol.seeds),
        spread,
        (of_trials[0], of_trials[1]),
        is_ranked=goal == protocol.goal,
        level=first_step(primaries),
    )
    design = design.widened(_overlap(protocol))
    if not protocol.space:
        return design
    treated, reference = (finalists.averaged([each] * protocol.folds) for each in design.searches)
    return replace(design, searches=(treated, reference))


def _overlap(protocol: Protocol) -> float:
    """Returns by what factor folds make the patients' part larger."""
    return overlap(protocol.folds) if protocol.folds else 1.0


def design_after_choice(
    protocol: Protocol,
    scores: Mapping[str, Mapping[str, SeedScores]],
    luck: Mapping[str, SearchLuck],
    patients: Patients,
    goal: str,
    arm: str,
) -> Design | None:
    """Returns what is expected of the comparison of an arm with the reference on the test part, after the choice.

    Args:
        scores: scores of the finalists' students on validation patients, by finalist and score.
        luck: what the search adds, by arm.
        patients: the validation patients.

    Returns:
        The design, or None if an error is unknown.
    """
    treated, reference = (
        [scores[label][goal] for label in finalists.labels_of(each, protocol) if label in scores]
        for each in (arm, protocol.reference)
    )
    counted = patients.deciding(goal)
    searches = luck[arm], luck[protocol.reference]
    level = first_step(len(protocol.arms) * len(protocol.goals()))
    design = Design.measured(
        treated, reference, searches, patients.all, counted, len(protocol.seeds), level
    ).with_patients(protocol.test_patients)
    design = design.widened(_overlap(protocol))
    return design if np.isfinite(design.variance) and design.variance > 0 else None
