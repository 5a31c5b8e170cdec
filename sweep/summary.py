"""Summarises a sweep for its run in the tracking server: what it shows of its arms, its best trials, its origin.

A sweep compares the best of many trials on patients by whom they were chosen. The summary says what that shows and what
it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sweep.provenance import code_commit, library_versions, user_name
from sweep.reports.choosing import choices_in_words
from sweep.reports.console import cells, image_blind_scores, resolution, sampled, with_error, without_complete
from sweep.reports.page.answer import BASELINE, CAUTION, best_of_arm, sentences
from sweep.reports.results import Snapshot, planned_error
from sweep.reports.teachers import teacher_warnings
from sweep.storage.events import DEVICE_HOURS, SweepBegan, SweepSummarized
from sweep.storage.layout import BEST
from sweep.storage.records import IMAGE_BLIND, best_of, front_of, image_blind_scores_of, picked
from sweep.tracking.links import CONFIG, trial_link
from sweep.types import Record

if TYPE_CHECKING:
    from sweep.options import RunOptions
    from sweep.plan.plan import Plan  # needs torch, which the process of `interim.py` does not load

MAX_SETTINGS: Final = 160  # characters of the settings of a trial in the table


def beginning(sweep_id: str, options: RunOptions, planned: Plan, store: str) -> SweepBegan:
    """Returns the event with which a driver begins. It says who runs which code on which data.

    Args:
        store: the fingerprint of the prepared cohort.
    """
    assert planned.example is not None
    images = planned.facts.num_samples if planned.facts else None
    return SweepBegan(
        sweep_id,
        list(options.words),
        options.cluster,
        goals=list(planned.goals),
        user=user_name(),
        commit=code_commit(),
        data={"name": planned.example.cohort.reader, "fingerprint": store, "images": images},
    )


def summarize(snapshot: Snapshot, shown: Sequence[Record]) -> SweepSummarized:
    """Returns the summary of a sweep. Its description begins with the answer, because MLflow (3.17) shows 150 pixels of
    a description, about seven lines, and hides the others behind a button.

    Args:
        shown: the configurations that may be compared, with means over seeds (see `results.Results`).
    """
    goals, arms = snapshot.goals, list(snapshot.arms)
    metrics: dict[str, float] = {}
    for goal in goals:
        for name in ("", *arms):
            best = best_of([record for record in shown if name in ("", record.arm)], goal)
            if best is not None:
                metrics["/".join(filter(None, ["best", goal, name]))] = best.metrics[goal]
    metrics[DEVICE_HOURS] = sum(arm.device_hours for arm in snapshot.totals)
    paragraphs = [
        _best_scores(shown, arms, goals) or "No trial is complete.",
        _progress(snapshot),
        *_answer(shown, arms, goals),
        _table_of_best(snapshot, shown),
        *_bullets("How it was made", _origin(snapshot)),
        f"```\n{snapshot.command}\n```",
        *_bullets("What limits this", _notes(snapshot, shown)),  # last, because MLflow cuts a long text
    ]
    description = "\n\n".join(filter(None, paragraphs))
    return SweepSummarized(len(snapshot.records), description, metrics, marks_of(snapshot, shown))


def marks_of(snapshot: Snapshot, shown: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Returns the tags that trials have because of their place among the others, by the number of the trial: `front` is
    'yes' on the Pareto front, and `best` names the goals in which the trial is the best, and best.yaml.
    """
    marks: dict[str, dict[str, str]] = {}
    for record in front_of(shown, snapshot.goals):
        marks.setdefault(str(record.number), {})["front"] = "yes"
    for name, best in _best_trials(snapshot, shown):
        if best is not None:
            tags = marks.setdefault(str(best.number), {})
            tags["best"] = ", ".join(filter(None, [tags.get("best"), name]))
    return marks


def _best_trials(snapshot: Snapshot, shown: Sequence[Record]) -> list[tuple[str, Record | None]]:
    """Returns the best trial by each goal, and the trial of best.yaml, each with the name of what it is best in."""
    return [(goal, best_of(shown, goal)) for goal in snapshot.goals] + [(BEST, picked(shown, snapshot.select))]


def _best_scores(shown: Sequence[Record], arms: Sequence[str], goals: Sequence[str]) -> str:
    """Returns a line for each goal: the best trial and its configuration, the best trial without a teacher, and what a
    map reaches that ignores the image.
    """
    lines = []
    for goal in goals:
        if (best := best_of(shown, goal)) is None:
            continue
        links = trial_link(f"trial {best.number}", best.number), trial_link(CONFIG, best.number, CONFIG)
        parts = [f"{with_error(best, goal)} by {links[0]} of {best.arm} ({links[1]})"]
        baseline = best_of_arm(shown, BASELINE, goal)
        if baseline is not None and baseline is not best and BASELINE in arms:
            number = baseline.number
            parts.append(f"{with_error(baseline, goal)} by {BASELINE} ({trial_link(f'trial {number}', number)})")
        if scores := image_blind_scores_of(best, goal):
            name = max(scores, key=lambda name: scores[name])
            parts.append(f"{scores[name]:.3f} without the image, {IMAGE_BLIND[name]}")
        lines.append(f"- **{goal}**: {'; '.join(parts)}")
    return "\n".join(lines)


def _progress(snapshot: Snapshot) -> str:
    states = Counter(record.state for record in snapshot.records)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none has ended"
    hours = sum(arm.device_hours for arm in snapshot.totals)
    to_go = f", {snapshot.remaining} to go" if snapshot.remaining else ""
    return f"{len(snapshot.records)} trials have ended ({counts}{to_go}) in {hours:.3g} device-hours."


def _answer(shown: Sequence[Record], arms: Sequence[str], goals: Sequence[str]) -> list[str]:
    """Returns what the sweep shows of each arm and goal, as far as a sweep can show it."""
    lines = [f"- **{goal}**: {line}" for goal, line in sentences(shown, arms, goals)]
    return ["\n".join(lines), CAUTION] if lines else []


def _table_of_best(snapshot: Snapshot, shown: Sequence[Record]) -> str:
    """Returns a Markdown table of the best trial by each goal, the trial of best.yaml and the best of each arm."""
    goals = snapshot.goals
    named = [(name if name == BEST else f"best {name}", best) for name, best in _best_trials(snapshot, shown)]
    for arm in snapshot.arms:
        named.append((f"best of {arm}", best_of([record for record in shown if record.arm == arm], snapshot.select)))
    rows: dict[int, tuple[list[str], Record]] = {}
    for name, best in named:
        if best is not None:
            rows.setdefault(best.number, ([], best))[0].append(name)
    if not rows:
        return ""
    lines = [["", "trial", "arm", *goals, "teacher, on validation", "configuration", "drawn"]]
    for names, record in rows.values():
        number, arm, *scores = cells(record, goals)
        config = trial_link(CONFIG, record.number, CONFIG)
        lines.append([", ".join(names), trial_link(number, record.number), arm, *scores, config, _settings(record)])
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    return "\n".join([table[0], "|" + "---|" * len(lines[0]), *table[1:]])


def _settings(record: Record) -> str:
    text = sampled(record)
    return text if len(text) <= MAX_SETTINGS else f"{text[: MAX_SETTINGS - 1]}…"


def _notes(snapshot: Snapshot, shown: Sequence[Record]) -> list[str]:
    goals, arms = snapshot.goals, list(snapshot.arms)
    return [
        *image_blind_scores(shown, goals),
        *choices_in_words(shown, goals),
        *teacher_warnings(shown, arms),
        *without_complete(shown, arms),
        *resolution(shown, goals, planned_error(snapshot.folder)),
    ]


def _origin(snapshot: Snapshot) -> list[str]:
    plan, reader, commit = snapshot.folder.read_plan(), snapshot.cohort.reader, code_commit()
    images = f", {plan['samples']} images" if plan.get("samples") else ""
    data = f"data set {reader}, prepared with fingerprint {plan.get('store', 'unknown')}{images}"
    versions = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    return [data, *([f"code at commit {commit}"] if commit else []), versions]


def _bullets(title: str, lines: Sequence[str]) -> list[str]:
    return [f"### {title}", "\n".join(f"- {line.rstrip('.')}." for line in lines)] if lines else []
