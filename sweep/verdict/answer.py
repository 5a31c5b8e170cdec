"""What a confirmation says: claims about the primary scores, and everything else as exploratory.

A claim needs more than a small p-value. A localisation claim also needs the arm to beat its shuffled control and every
map or box that ignores the image, because a teacher that knows only where lesions usually are would help as well. A
verdict that could not have found the difference that matters says 'cannot tell', not 'no difference'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from mmpkd.scoring.replicates import Scored
from mmpkd.scoring.stats import holm
from sweep.space.search_config import are_of_answers, is_of_places
from sweep.storage.records import IMAGE_BLIND
from sweep.verdict.inference import FIXED, LEVEL, NAN, Contrast, SearchLuck, SeedScores, contrast, overlap
from sweep.verdict.opening.patients import Patients
from sweep.verdict.power import Design, first_step, patients_needed, power, too_little_power
from sweep.verdict.protocol import Protocol
from sweep.verdict.training.phases import SHUFFLED, SMOOTHED

# `unexplained`: a gain in localisation that a control or a map that ignores the image may have as well.
Outcome = Literal["better", "worse", "unexplained", "no difference shown", "cannot tell"]


class Key(NamedTuple):
    """Names a contrast: the score, and the two sides."""

    goal: str
    treated: str
    reference: str


@dataclass(frozen=True)
class Decision:
    """Whether a primary contrast is a claim.

    Attributes:
        adjusted_p: Holm's adjusted p-value; NaN if the contrast has no p-value.
        claimed: whether a difference is claimed.
    """

    adjusted_p: float
    claimed: bool


def decide(primaries: Mapping[Any, Contrast], level: float = LEVEL) -> dict[Any, Decision]:
    """Decides which primary contrasts are claims. The probability of any false claim is at most 1 - level.

    A contrast without a p-value is no claim. It still counts as a member of the family, whose size was declared before.
    """
    p_values = np.array([each.p for each in primaries.values()])
    adjusted = holm(np.where(np.isnan(p_values), 1.0, p_values))
    return {
        key: Decision(NAN if np.isnan(p) else adjusted_p, bool(adjusted_p < 1 - level))
        for key, p, adjusted_p in zip(primaries, p_values.tolist(), adjusted.tolist(), strict=True)
    }


@dataclass(frozen=True)
class Answer:
    """The verdict on one primary contrast.

    Attributes:
        outcome: what may be said.
        decision: Holm's adjusted p-value.
        reasons: why a difference is not claimed, or what limits the claim, as sentences.
        power: the probability that the declared difference would have been claimed, if it were the only one; NaN if
            it is not known.
        design: what power is computed from; None if it is not known.
    """

    key: Key
    contrast: Contrast
    decision: Decision
    outcome: Outcome
    reasons: tuple[str, ...]
    power: float
    design: Design | None


@dataclass(frozen=True)
class Verdict:
    """Everything that a confirmation says of one cohort.

    Attributes:
        scores: scores of all students by arm and score, in the order of the seeds.
        answers: the primary contrasts, in the order of the protocol.
        exploratory: all other contrasts.
    """

    patients: Patients
    scores: Mapping[str, Mapping[str, SeedScores]]
    answers: Sequence[Answer]
    exploratory: Mapping[Key, Contrast]

    def of(self, key: Key) -> Contrast | None:
        """Returns a contrast, primary or exploratory."""
        primary = {answer.key: answer.contrast for answer in self.answers}
        return primary.get(key) or self.exploratory.get(key)


def by_arm(scored: Mapping[str, Sequence[Mapping[str, Scored]]]) -> dict[str, dict[str, SeedScores]]:
    """Returns the scores of the students of each arm, by the name of the score."""
    return {
        arm: {
            name: SeedScores(
                np.array([scores[name].value for scores in students]),
                np.stack([scores[name].replicate_R for scores in students], axis=1),
            )
            for name in students[0]
        }
        for arm, students in scored.items()
    }


def judge(
    protocol: Protocol,
    scores: Mapping[str, Mapping[str, SeedScores]],
    patients: Patients,
    luck: Mapping[str, Mapping[str, SearchLuck]],
) -> Verdict:
    """Returns the verdict on the scores of one cohort.

    Args:
        luck: what the search adds to the variance of each arm's score, by score and arm.
    """
    reference = protocol.reference

    def compare(goal: str, treated: str, other: str, same_configuration: bool = False) -> Contrast:
        of_search = [luck.get(goal, {}).get(arm, FIXED) for arm in (treated, other)]
        searches = (FIXED, FIXED) if same_configuration else (of_search[0], of_search[1])
        number = patients.deciding(goal)
        return contrast(scores[treated][goal], scores[other][goal], number, searches)

    primaries = {
        Key(goal, arm, reference): compare(goal, arm, reference)
        for goal in protocol.goals()
        for arm in protocol.arms
        if goal in scores[arm]
    }
    exploratory: dict[Key, Contrast] = {}
    for goal in protocol.goals():
        for control, arm in protocol.controls.items():
            if control in scores and goal in scores[control]:
                exploratory[Key(goal, arm, control)] = compare(goal, arm, control, same_configuration=True)
                exploratory[Key(goal, control, reference)] = compare(goal, control, reference)
    for goal in protocol.goals():
        for arm in (reference, *protocol.arms):
            for name in IMAGE_BLIND:
                if (blind := f"{goal}_{name}") in scores[arm]:
                    number, of_arm = patients.deciding(goal), scores[arm]
                    exploratory[Key(goal, arm, name)] = contrast(of_arm[goal], of_arm[blind], number)
    decisions = decide(primaries)
    answers = []
    for key, each in primaries.items():
        sides = scores[key.treated][key.goal], scores[key.reference][key.goal]
        answer = _answer(key, each, sides, decisions[key], protocol, patients, exploratory, len(primaries))
        below = _below_chance(key, exploratory)
        answers.append(replace(answer, reasons=(*answer.reasons, *below)))
    return Verdict(patients, scores, answers, exploratory)


def _answer(
    key: Key,
    of_key: Contrast,
    sides: tuple[SeedScores, SeedScores],
    decision: Decision,
    protocol: Protocol,
    patients: Patients,
    exploratory: Mapping[Key, Contrast],
    primaries: int,
) -> Answer:
    """Decides what may be said of one of several primary contrasts, without `_below_chance`.

    Args:
        sides: the scores that were compared.
    """
    reasons = [patients.too_few(key.goal)]
    chance = float("nan")
    if of_key.reason:
        return Answer(
            key, of_key, decision, "cannot tell", tuple(filter(None, [*reasons, of_key.reason])), chance, None
        )
    treated, reference = map(SearchLuck, of_key.search_variance, of_key.search_degrees)
    factor = overlap(protocol.folds) if protocol.folds else 1.0
    design = Design.measured(
        sides[:1],
        sides[1:],
        (treated, reference),
        patients.all,
        patients.deciding(key.goal),
        len(protocol.seeds),
        first_step(primaries),
        factor,
    )
    chance = power(protocol.smallest(key.goal), design)
    if reasons := [reason for reason in reasons if reason]:
        return Answer(key, of_key, decision, "cannot tell", tuple(reasons), chance, design)
    if not decision.claimed:
        weak = too_little_power(protocol.smallest(key.goal), design)
        if weak:
            return Answer(key, of_key, decision, "cannot tell", (weak,), chance, design)
        learnt = tuple(_not_shown_to_learn(key, protocol.reference, exploratory))
        return Answer(key, of_key, decision, "no difference shown", learnt, chance, design)
    if of_key.difference < 0:
        return Answer(key, of_key, decision, "worse", (), chance, design)
    doubts = _doubts(key, exploratory)
    is_refused = is_of_places(key.goal) and any(is_required for _, is_required in doubts)
    lines = tuple(line for line, _ in doubts)
    return Answer(key, of_key, decision, "unexplained" if is_refused else "better", lines, chance, design)


def _below_chance(key: Key, exploratory: Mapping[Key, Contrast]) -> list[str]:
    """Returns a sentence if the students of an arm look at the wrong place, whatever the reference does."""
    below = exploratory.get(Key(key.goal, key.treated, "chance"))
    if below is None or not below.high < 0:
        return []
    return [f"Its students look at the wrong place: below chance ({below.difference:+.3f}, {interval(below)})."]


def _not_shown_to_learn(key: Key, reference: str, exploratory: Mapping[Key, Contrast]) -> list[str]:
    """Returns a sentence if neither the arm nor the reference is shown to exceed something that ignores the image.
    Equal scores then say little of the teacher.
    """
    shared = [
        words
        for name, words in IMAGE_BLIND.items()
        if all(
            (against := exploratory.get(Key(key.goal, arm, name))) is not None and not against.low > 0
            for arm in (key.treated, reference)
        )
    ]
    if not shared:
        return []
    what = f"Neither is shown to exceed what {_blind(key.goal)} {' or '.join(shared)} without looking at the image"
    return [f"{what}, so that equal scores say little of the teacher."]


def _blind(goal: str) -> str:
    return "answers reach" if are_of_answers([goal]) else "a map reaches"


def _doubts(key: Key, exploratory: Mapping[Key, Contrast]) -> list[tuple[str, bool]]:
    """Returns why a gain may have another cause than what the teacher knows of each patient, as sentences, and whether
    a claim of localisation requires that there is no such doubt.
    """
    doubts = []
    for ending, words in (
        (SHUFFLED, "the same training with a teacher whose outputs belong to other patients"),
        (SMOOTHED, "label smoothing of the same entropy without a teacher"),
    ):
        against = exploratory.get(Key(key.goal, key.treated, f"{key.treated}-{ending}"))
        if against is not None and not against.low > 0:
            line = (
                f"It is not shown to exceed {words} ({against.difference:+.3f}, {interval(against)}), so the gain may "
                "not come from what the teacher knows of each patient."
            )
            doubts.append((line, ending == SHUFFLED))
        if against is None and ending == SHUFFLED:
            doubts.append(("It has no shuffled control, so the cause of a gain is not known.", True))
    for name, words in IMAGE_BLIND.items():
        against = exploratory.get(Key(key.goal, key.treated, name))
        if against is not None and not against.low > 0:
            line = (
                f"It is not shown to exceed what {_blind(key.goal)} {words} without looking at the image "
                f"({against.difference:+.3f}, {interval(against)})."
            )
            doubts.append((line, True))
    return doubts


def interval(of: Contrast) -> str:
    """Returns the 95 % interval of a difference in words."""
    return "no interval" if of.reason else f"95 % interval {of.low:+.3f} to {of.high:+.3f}"


def needed(answer: Answer, protocol: Protocol) -> int | None:
    """Returns how many test patients would give the usual power for the declared difference, if any number does."""
    return None if answer.design is None else patients_needed(protocol.smallest(answer.key.goal), answer.design)
