"""Which sections of the reports a text teacher reads, and whether it can learn from them."""

from __future__ import annotations

from collections import Counter

from mmpkd.cohort.facts import Facts
from mmpkd.near_names import near
from mmpkd.teachers.teacher import TeacherParams
from mmpkd.types import Mistake

MIN_TEXT_SHARE = 0.05  # share of samples that must have text; a teacher cannot learn from fewer


class SectionsParams(TeacherParams):
    sections: tuple[str, ...] | None = None  # all sections that are not near-label by default
    near_label: tuple[str, ...] = ()  # sections that the labels were read from; each must be named

    @property
    def near_label_inputs(self) -> tuple[str, ...]:
        return self.near_label


def chosen_sections(params: SectionsParams, facts: Facts) -> list[str]:
    """Returns the names of the report sections that a teacher reads.

    First come the sections that `sections` names; by default, these are all sections that are not near-label. The named
    near-label sections follow.
    """
    names = params.sections
    if names is None:
        names = tuple(name for name, section in facts.sections.items() if not section.near_label)
    return [*names, *params.near_label]


def check_sections(params: SectionsParams, facts: Facts) -> list[Mistake]:
    """Returns the mistakes in a teacher's choice of report sections, each under the path `sections` or `near_label`."""
    sections = facts.sections
    if not sections:
        remedy = "set cohort.params.text of the reader table, or cohort.params.reports of mimic_cxr"
        return [Mistake("sections", f"the cohort has no report text ({remedy})")]
    mistakes = []
    for path, names in (("sections", params.sections or ()), ("near_label", params.near_label)):
        for name in names:
            if name not in sections:
                mistakes.append(Mistake(path, f"the cohort has no section {name!r}{near(name, sections)}"))
            elif sections[name].near_label and path == "sections":
                remedy = "to teach from it all the same, list it under `near_label:` instead"
                mistakes.append(Mistake(path, f"the labels were read from section {name!r}; {remedy}"))
            elif not sections[name].near_label and path == "near_label":
                mistakes.append(Mistake(path, f"section {name!r} is not near-label; list it under `sections:`"))
    counts = Counter((*(params.sections or ()), *params.near_label))
    mistakes += [Mistake("sections", f"section {name!r} is listed twice") for name, n in counts.items() if n > 1]
    if not mistakes:
        chosen = chosen_sections(params, facts)
        listed, share = ", ".join(chosen), sum(sections[name].share for name in chosen)
        if not chosen:
            problem = f"every section is near-label ({', '.join(sections)}): name some under `near_label:`"
            mistakes.append(Mistake("sections", problem))
        elif share < MIN_TEXT_SHARE:
            remedy = f"wanted {MIN_TEXT_SHARE:.0%} or more: name other sections, or leave this teacher out"
            problem = f"{listed}: {share:.1%} of the training samples have any text there; {remedy}"
            mistakes.append(Mistake("sections", problem))
        else:
            labels = set.intersection(*(set(sections[name].lost) for name in chosen))
            if labels:  # the mere existence of such a report tells the label
                problem = f"no training sample with text there is {' or '.join(sorted(labels))}, though others are"
                remedy = "a teacher needs both sides: name other sections, or leave this teacher out"
                mistakes.append(Mistake("sections", f"{listed}: {problem}; {remedy}"))
    return mistakes
