"""The answers in words, as the page, the table, MLflow and the terminal print them."""

from __future__ import annotations

from typing import Final

import numpy as np

from sweep.space.search_config import SCORES
from sweep.verdict.answer import Answer, Verdict, interval, needed
from sweep.verdict.power import USUAL_POWER
from sweep.verdict.protocol import Protocol, tested_name

# What students do that are better or worse, by what the cohort must have for the score.
VERBS: Final = {
    "ROIs": ("look more at the right place", "look more at the wrong place"),
    "questions": ("answer better", "answer worse"),
    "questions about places": ("point better", "point worse"),
}


def sentence(answer: Answer, verdict: Verdict, protocol: Protocol) -> str:
    """Returns the answer to a primary question in one sentence."""
    goal, arm, reference = answer.key
    means = f"{verdict.scores[arm][goal].mean:.3f} against {verdict.scores[reference][goal].mean:.3f} of {reference}"
    each = answer.contrast
    numbers = f"{means}: {each.difference:+.3f}" if np.isfinite(each.difference) else "not all students have a score"
    score = tested_name(goal)
    if not each.reason:
        p = answer.decision.adjusted_p
        numbers += f", {interval(each)}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} (Holm)"
    better, worse = VERBS.get(SCORES.get(goal, ""), ("classify better", "classify worse"))
    if answer.outcome in ("better", "worse"):
        verb = better if answer.outcome == "better" else worse
        return f"With {arm}, the students {verb} ({score} {numbers})."
    if answer.outcome == "unexplained":
        return f"{score} is higher with {arm}, but that the teacher causes it is not claimed ({numbers})."
    if answer.outcome == "cannot tell":
        return f"Whether {arm} changes {score} cannot be told ({numbers})."
    return f"No difference of {score} is shown between {arm} and {reference} ({numbers})."


def subject(protocol: Protocol, verdict: Verdict) -> str:
    """Returns on whom the answers rest, in words."""
    tested, unseen = f"{verdict.patients.all} test patients", "that neither search nor choice has seen"
    if protocol.folds:
        tested = f"{verdict.patients.all} patients, each tested by students that were trained without the patient,"
    if protocol.space:
        unseen = "and whose settings were searched and chosen without the patient"
    return f"{tested} {unseen}"


def matters(protocol: Protocol) -> str:
    """Returns the declared differences in words."""
    return " and of ".join(f"{protocol.smallest(goal):g} of {tested_name(goal)}" for goal in protocol.goals())


def what_would_tell(answer: Answer, protocol: Protocol) -> list[str]:
    """Returns a sentence on how many patients would show the declared difference, where none is claimed, and where more
    are needed than were tested.
    """
    if answer.outcome not in ("cannot tell", "no difference shown") or answer.design is None:
        return []
    if (patients := needed(answer, protocol)) is None or patients <= answer.design.patients:
        return []
    smallest = protocol.smallest(answer.key.goal)
    return [f"About {patients} such patients would show a difference of {smallest:g} in {USUAL_POWER:.0%} of tests."]
