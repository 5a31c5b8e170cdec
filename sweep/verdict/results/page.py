"""Writes verdict.html: the answer first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Final

from mmpkd.config import TrialConfig
from sweep.arm_styles import arm_styles
from sweep.reports.page.sections import table
from sweep.reports.page.style import PAGE, contents, sections
from sweep.storage.records import IMAGE_BLIND
from sweep.verdict.answer import Key, Verdict, interval
from sweep.verdict.inference import Contrast
from sweep.verdict.protocol import Protocol, tested_name
from sweep.verdict.results.figures import Row, rows_figure
from sweep.verdict.results.methods import methods
from sweep.verdict.results.record import Circumstances, External, validation_scores
from sweep.verdict.results.wording import matters, sentence, subject, what_would_tell

INTERVALS: Final = "Intervals cover 95 %, over patients, seeds and the luck of the search."
ERRORS: Final = "standard errors: patients, seeds, search"
CAUTION: Final = (
    "All of this is exploratory: it explains the answers above, and claims nothing. Intervals cover 95 %, over "
    "patients and seeds. An arm and its control share a configuration, so their difference has no luck of the search."
)

COUNTED: Final = (
    "All modalities count equally, so those with few patients limit what is known: for the error of a score, the "
    "patients count as the stated number of patients of a single modality."
)

# Short names of what ignores the image, for the labels of a figure.
BLIND: Final = {
    "chance": "chance",
    "content": "padding avoided",
    "centre": "centre",
    "prior": "mean training ROI",
    "frequent": "most frequent answers",
    "mean_box": "mean training box",
}


def page_of(protocol: Protocol, verdict: Verdict, circumstances: Circumstances, pictures: str) -> bytes:
    """Returns the page.

    Args:
        pictures: pictures of test images under the students as HTML, or why there are none.
    """
    paragraph = methods(protocol, verdict, circumstances)
    goals = protocol.goals()
    notes = "".join(f'<p class="note">{escape(each)}</p>' for each in circumstances.notes)
    parts = {
        "The answer": f"<p>{escape(_rests_on(protocol, verdict))}</p>{_answers(protocol, verdict)}{notes}",
        "Differences": _differences(protocol, verdict, goals, primary=True),
        "Students": _students(protocol, verdict, goals, protocol.part),
        "Controls": _differences(protocol, verdict, goals, primary=False),
        "Another cohort": _external(protocol, circumstances.external) if circumstances.external else "",
        "Validation and test": _optimism(protocol, verdict, circumstances),
        "What the students answer" if protocol.of_answers else "Where the students look": pictures,
        "Methods, to quote": f"<p>{escape(paragraph)}</p>",
        "Protocol": _protocol(protocol, circumstances),
    }
    name = escape(f"{protocol.sweep}: the verdict")
    return PAGE.format(name=name, body=f"{contents(parts)}\n{sections(parts)}").encode()


def _external(protocol: Protocol, external: External) -> str:
    """Returns the section of the external cohort, with the same figures as the test part has."""
    verdict = external.verdict
    goals = [goal for goal in protocol.goals() if goal in verdict.scores[protocol.reference]]
    parts = [
        f"<p>{escape(' '.join(external.lines()))}</p>",
        _answers(protocol, verdict),
        _differences(protocol, verdict, goals, primary=True),
        _students(protocol, verdict, goals, "the other cohort"),
        _differences(protocol, verdict, goals, primary=False),
    ]
    return "\n".join(parts)


def _rests_on(protocol: Protocol, verdict: Verdict) -> str:
    """Returns on whom the answers rest, and which differences matter, as sentences."""
    return (
        f"On {subject(protocol, verdict)}: {verdict.patients.in_words(protocol.goals())}. Scores are means over "
        f"{len(protocol.seeds)} seeds. A difference of {matters(protocol)} was declared to matter."
        + (f" {COUNTED}" if protocol.of_answers else "")
    )


def _answers(protocol: Protocol, verdict: Verdict) -> str:
    items = []
    for answer in verdict.answers:
        lines = [sentence(answer, verdict, protocol), *answer.reasons, *what_would_tell(answer, protocol)]
        items.append(f"<li><strong>{escape(lines[0])}</strong> {escape(' '.join(lines[1:]))}</li>")
    return f'<ul class="answer">{"".join(items)}</ul>'


def in_words(key: Key, protocol: Protocol) -> str:
    """Returns a contrast as 'tabular minus none', or 'tabular minus mean training ROI'."""
    other = key.reference if key.reference == protocol.reference else BLIND.get(key.reference, key.reference)
    return f"{key.treated} minus {other}"


def _differences(protocol: Protocol, verdict: Verdict, goals: Sequence[str], primary: bool) -> str:
    """Returns a figure for each goal and a table: of the differences that answer, or of those that explain them."""
    answers = {answer.key: answer.contrast for answer in verdict.answers}
    contrasts = answers if primary else dict(verdict.exploratory)
    if not contrasts:
        return ""
    figures = "".join(_intervals(protocol, contrasts, goal) for goal in goals)
    note = f'<p class="note">{escape(INTERVALS if primary else CAUTION)}</p>'
    return f'<div class="charts">{figures}</div>{note}{_table(protocol, verdict, contrasts)}'


def _intervals(protocol: Protocol, contrasts: Mapping[Key, Contrast], goal: str) -> str:
    styles = arm_styles([protocol.reference, *protocol.arms, *protocol.controls])
    rows = [
        Row(
            in_words(key, protocol),
            [each.difference],
            None if each.reason else (each.low, each.high),
            styles[key.treated].colour,
            styles[key.treated].marker,
            f"{in_words(key, protocol)}: {each.difference:+.3f}, {interval(each)}",
        )
        for key, each in contrasts.items()
        if key.goal == goal
    ]
    return (
        f"<figure>{rows_figure(rows, f'difference of {tested_name(goal)}', [(0.0, 'no difference')])}</figure>"
        if rows
        else ""
    )


def _table(protocol: Protocol, verdict: Verdict, contrasts: Mapping[Key, Contrast]) -> str:
    adjusted = {answer.key: answer.decision.adjusted_p for answer in verdict.answers}
    lines = [
        [
            "difference of",
            "score",
            "difference",
            "95 % interval",
            "p",
            "p (Holm)",
            ERRORS,
        ]
    ]
    for key, each in contrasts.items():
        parts = (each.patient_variance, sum(each.seed_variance), sum(each.search_variance))
        lines.append(
            [
                in_words(key, protocol),
                tested_name(key.goal),
                f"{each.difference:+.3f}",
                "not known" if each.reason else f"{each.low:+.3f} to {each.high:+.3f}",
                "-" if each.reason else p_value(each.p),
                p_value(adjusted[key]) if key in adjusted and not each.reason else "-",
                ", ".join(f"{max(part, 0.0) ** 0.5:.3f}" if part == part else "?" for part in parts),
            ]
        )
    return table(lines[0], lines[1:])


def p_value(p: float) -> str:
    """Returns a p-value as it is printed."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _students(protocol: Protocol, verdict: Verdict, goals: Sequence[str], part: str) -> str:
    figures = "".join(_points(protocol, verdict, goal, part) for goal in goals)
    return f'<div class="charts">{figures}</div>'


def _points(protocol: Protocol, verdict: Verdict, goal: str, part: str) -> str:
    arms = [
        arm for arm in (protocol.reference, *protocol.arms, *protocol.controls) if goal in verdict.scores.get(arm, {})
    ]
    styles = arm_styles([protocol.reference, *protocol.arms, *protocol.controls])
    rows = [
        Row(
            arm,
            (of_arm := verdict.scores[arm][goal]).value_K.tolist(),
            None,
            styles[arm].colour,
            styles[arm].marker,
            f"{arm}: mean {of_arm.mean:.3f} of {of_arm.seeds} seeds",
        )
        for arm in arms
    ]
    levels = [
        (float(verdict.scores[protocol.reference][name].value_K[0]), f"reached {words}")
        for ending, words in IMAGE_BLIND.items()
        if (name := f"{goal}_{ending}") in verdict.scores[protocol.reference]
    ]
    lines = [f"{value:.3f} {words}" for value, words in levels]
    note = f"<figcaption>Dashed: {escape('; '.join(lines))}.</figcaption>" if lines else ""
    return f"<figure>{rows_figure(rows, f'{tested_name(goal)} on {part}, one point a seed', levels)}{note}</figure>"


def _optimism(protocol: Protocol, verdict: Verdict, circumstances: Circumstances) -> str:
    goal, validation = protocol.goal, validation_scores(protocol, circumstances.trained)
    lines = [["arm", "trial", "in the search", "on seeds of the choice", "on further seeds", "test"]]
    for arm in (protocol.reference, *protocol.arms):
        numbers = [each.chosen[arm] for each in circumstances.choices]
        in_search = [each.trials.trial(each.chosen[arm]).metrics[goal] for each in circumstances.choices]
        means = [in_search, [each.result(arm).mean for each in circumstances.choices], validation[arm][goal]]
        cells = [f"{fmean(values):.3f}" for values in means]
        lines.append([arm, ", ".join(map(str, numbers)), *cells, f"{verdict.scores[arm][goal].mean:.3f}"])
    note = (
        f"Means of {goal.removeprefix('val/')}. The first three are on validation patients. The score in the search is "
        "too high by the luck of the best of many; the last column is on patients whom no choice has seen."
    )
    if len({TrialConfig.model_validate_json(record.config).cohort.fold for record in circumstances.trained}) > 1:
        note += " With each further seed another fold of the patients validates, so seeds differ by their patients too."
    if protocol.space:
        note += (
            " Each fold has a search of its own, and a trial in it that was chosen. Means are over the folds as well."
        )
    elif protocol.folds:
        note += " The last two columns are on the cohort of the folds, the others on that of the search."
    return f'{table(lines[0], lines[1:])}<p class="note">{escape(note)}</p>'


def _protocol(protocol: Protocol, circumstances: Circumstances) -> str:
    shown = protocol.model_dump(mode="json")
    items = {"hash (SHA-256)": protocol.hash, "frozen": circumstances.frozen, "command": circumstances.command}
    items |= {key.replace("_", " "): _plain(value) for key, value in shown.items() if value not in (None, "", {})}
    items |= {"versions": ", ".join(f"{name} {version}" for name, version in circumstances.versions.items() if version)}
    external = circumstances.external
    for part, openings in (
        (protocol.part, circumstances.openings),
        ("the other cohort", external.openings if external else []),
    ):
        for count, opening in enumerate(openings, start=1):
            items[f"opening {count} of {part}"] = str(opening)
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in items.items())
    return f"<dl>{rows}</dl>"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(each)}" for key, each in value.items() if each is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
