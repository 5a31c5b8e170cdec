"""Which sections of the reports a text teacher reads, and what is wrong with reading them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mmpkd.cohort.facts import Facts
from mmpkd.near_names import near
from mmpkd.types import Mistake

if TYPE_CHECKING:
    from mmpkd.teachers.text import TextParams

LEAST = 0.05  # share of samples that must have text: with fewer there is nothing to teach from


def chosen_sections(params: TextParams, facts: Facts) -> list[str]:
    """The sections that a teacher reads: those named, or all that are not near-label."""
    named = params.sections
    if named is None:
        named = tuple(name for name, section in facts.sections.items() if not section.near_label)
    return [*named, *params.near_label]


def check_sections(params: TextParams, facts: Facts) -> list[Mistake]:
    """What is wrong with teaching from these sections, under the path `sections` or `near_label`."""
    known = facts.sections
    if not known:
        mend = "cohort.params.text of the reader table and cohort.params.reports of mimic_cxr say where it lies"
        return [Mistake("sections", f"the cohort has no report text ({mend})")]
    mistakes = []
    for path, names in (("sections", params.sections or ()), ("near_label", params.near_label)):
        for name in names:
            if name not in known:
                mistakes.append(Mistake(path, f"no section {name!r}{near(name, known)}"))
            elif known[name].near_label and path == "sections":
                mend = "to teach from it all the same, list it under `near_label:` instead"
                mistakes.append(Mistake(path, f"the labels were read from section {name!r}; {mend}"))
            elif not known[name].near_label and path == "near_label":
                mistakes.append(Mistake(path, f"section {name!r} is not near-label; list it under `sections:`"))
    counts = Counter((*(params.sections or ()), *params.near_label))
    mistakes += [Mistake("sections", f"section {name!r} is listed twice") for name, n in counts.items() if n > 1]
    if not mistakes:
        chosen = chosen_sections(params, facts)
        listed, share = ", ".join(chosen), sum(known[name].share for name in chosen)
        if not chosen:
            mistakes.append(Mistake("sections", f"every section is near-label ({', '.join(known)}): name some"))
        elif share < LEAST:
            wanted = f"wanted {LEAST:.0%} or more: name other sections, or leave this teacher out"
            mistakes.append(
                Mistake("sections", f"{listed}: {share:.1%} of the training samples have any text there; {wanted}")
            )
        else:
            lost = set.intersection(*(set(known[name].lost) for name in chosen))
            if lost:  # such a report tells that it was written, and no more
                told = f"no training sample with text there is {' or '.join(sorted(lost))}, though others are"
                mend = "a teacher needs both sides: name other sections, or leave this teacher out"
                mistakes.append(Mistake("sections", f"{listed}: {told}; {mend}"))
    return mistakes
