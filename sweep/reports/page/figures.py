"""The charts of the report: the front, learning curves, the effect of each parameter, parallel coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sweep.arm_styles import ArmStyle
from sweep.reports.console import as_text, sampled, shortest
from sweep.reports.page.charts import GREY, Axis, Chart, legend, parallel
from sweep.selection import error_of
from sweep.storage.records import IMAGE_BLIND, best_of, compared_metric, front_of, image_blind_scores_of
from sweep.types import Record

MIN_POINTS: Final = 8  # complete trials of an arm from which the effect of a parameter can be seen at all
# These limits keep the page of thousands of trials below 2 MB, of which pictures may take 0.4 MB.
MAX_CURVES: Final = 100  # in a chart; more would hide one another
FRONT_POINTS: Final = 1000  # complete trials in the chart of two goals, besides those on the front
PARALLEL_LINES: Final = 1200  # in all parallel coordinates of a page
EFFECT_CHARTS: Final = 60  # about how many charts of effects a page has
EFFECT_POINTS: Final = 2000  # in all of them
MAX_BARS: Final = 100  # trials in a chart that all have error bars; in a fuller chart they would hide the points
BLIND_DASHES: Final = {
    **{"chance": "dot", "content": "dashdot", "centre": "dash", "prior": "solid"},
    **{"frequent": "dot", "mean_box": "dash"},
}
LAST_DASH: Final = "longdash"
LAST_COUNTS: Final = (
    "The scores of a trial are those of its last epoch. A higher score of an earlier epoch does not count: choosing "
    "the epoch by its score would add luck."
)

Styles = Mapping[str, ArmStyle]


def front_figures(records: Sequence[Record], goals: Sequence[str], styles: Styles) -> str:
    """Returns a chart of each pair of goals. If there is a single goal, it is plotted against the number of the trial.

    The values of complete trials are those by which trials are compared, which may be estimates. Pruned trials are grey
    and have the scores of their last epoch.
    """
    complete = [record for record in records if record.state == "complete"]
    pairs: list[tuple[str | None, str]] = list(itertools.combinations(goals, 2)) or [(None, goals[0])]
    charts = "".join(f"<figure>{_front(records, complete, x, y, goals, styles)}</figure>" for x, y in pairs)
    entries = _arm_entries(styles) + _pruned_entry(records) + [("large, outlined: on the front", "#000", "", "circle")]
    few = f'<p class="note">About {FRONT_POINTS} trials, at equal distances, and all on the front.</p>'
    note = few if len(complete) > FRONT_POINTS else ""
    return f'{legend(entries + _blind_entries(complete, goals))}{note}<div class="charts">{charts}</div>'


def _front(
    records: Sequence[Record],
    complete: Sequence[Record],
    x_goal: str | None,
    y_goal: str,
    goals: Sequence[str],
    styles: Styles,
) -> str:
    metrics = {goal: compared_metric(complete, goal) for goal in goals}
    titles = {goal: goal if metric == goal else f"{goal}, as compared" for goal, metric in metrics.items()}
    front = front_of(complete, goals)
    on_front = {record.number for record in front}
    pruned = [
        record for record in records if record.state == "pruned" and all(goal in record.metrics for goal in goals)
    ]

    def score(record: Record, goal: str) -> float:
        return record.metrics.get(metrics[goal], record.metrics[goal])  # a reference may have no estimate

    def x_of(record: Record) -> float:
        return score(record, x_goal) if x_goal else record.number

    blind = {goal: _blind(complete, goal) for goal in goals}
    shown = [*complete, *pruned]
    x_axis = Axis(
        titles[x_goal] if x_goal else "trial", [*map(x_of, shown), *(blind[x_goal].values() if x_goal else ())]
    )
    y_axis = Axis(titles[y_goal], [*(score(record, y_goal) for record in shown), *blind[y_goal].values()])
    chart = Chart(x_axis, y_axis)
    for along, goal in (("x", x_goal), ("y", y_goal)):
        for name, value in blind[goal].items() if goal else ():
            chart.level(value, along, BLIND_DASHES[name], f"{goal} {value:.3f} {IMAGE_BLIND[name]}")
    for record in _evenly(pruned, FRONT_POINTS // 4):
        text = f"trial {record.number}, {record.arm}, pruned after {record.epochs} epochs"
        chart.point(x_of(record), score(record, y_goal), "#c4c4c4", _marker(styles, record.arm), text, (0, 0), False)
    if x_goal and len(goals) == 2:
        ends = sorted((x_of(record), score(record, y_goal)) for record in front)
        corners = _staircase(ends)
        chart.line([x for x, _ in corners], [y for _, y in corners], "#999", "dot", "front", 1.2)
    for record in [*_evenly([each for each in complete if each.number not in on_front], FRONT_POINTS), *front]:
        is_on_front = record.number in on_front
        text, errors = f"trial {record.number}, {record.arm}: {_scores(record, goals)}", (0.0, 0.0)
        if is_on_front or len(complete) <= MAX_BARS:
            text = f"{text}\n{sampled(record)}"
            errors = (error_of(record, x_goal) or 0.0 if x_goal else 0.0, error_of(record, y_goal) or 0.0)
        style = styles[record.arm]
        chart.point(x_of(record), score(record, y_goal), style.colour, style.marker, text, errors, is_on_front)
    return chart.svg()


def _staircase(ends: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the border of what the front dominates. The ends are ordered by x, and y falls from one to the next."""
    corners = list(ends[:1])
    for (x, _), (next_x, next_y) in itertools.pairwise(ends):
        corners += [(x, next_y), (next_x, next_y)]
    return corners


def curve_figures(epochs: pd.DataFrame, records: Sequence[Record], goals: Sequence[str], styles: Styles) -> str:
    """Returns a chart of each goal against the epoch, with a line for each trial and a vertical line at the last epoch,
    which counts. Pruned trials are grey.
    """
    pruned = {record.number for record in records if record.state == "pruned"}
    complete = [record for record in records if record.state == "complete"]
    last = sorted({record.epochs for record in complete})
    charts = []
    for goal in goals:
        by_trial = epochs.groupby(["arm", "number"], sort=False)
        groups = [(str(rows["arm"].iloc[0]), int(rows["number"].iloc[0]), rows) for _, rows in by_trial]
        groups.sort(key=lambda group: _highest(group[2][goal]))  # the best are painted last, on top
        groups = groups[-MAX_CURVES:]
        groups.sort(key=lambda group: group[1] not in pruned)
        blind = _blind(complete, goal)
        values = [*itertools.chain.from_iterable(rows[goal].tolist() for _, _, rows in groups), *blind.values()]
        numbers = [*itertools.chain.from_iterable(rows["epoch"].tolist() for _, _, rows in groups)]
        chart = Chart(Axis("epoch", numbers), Axis(goal, values))
        for name, value in blind.items():
            chart.level(value, "y", BLIND_DASHES[name], f"{goal} {value:.3f} {IMAGE_BLIND[name]}")
        for epoch in last:
            chart.level(epoch, "x", LAST_DASH, f"epoch {epoch} is the last, and its scores count")
        for arm, number, rows in groups:
            style = styles.get(arm)
            colour = GREY if number in pruned or style is None else style.colour
            dash = style.dash if style else "solid"
            text = f"trial {number}, {arm}{', pruned' if number in pruned else ''}"
            width = 0.8 if number in pruned else 1.6
            chart.line(rows["epoch"].tolist(), rows[goal].tolist(), colour, dash, text, width)
        charts.append(f"<figure>{chart.svg()}</figure>")
    entries = [(arm, style.colour, style.dash, "") for arm, style in styles.items()]
    entries += [("pruned", GREY, "solid", "")] if pruned else []
    entries += [(f"epoch {epoch}, the last, whose scores count", "#555", LAST_DASH, "") for epoch in last]
    limit = len(epochs.groupby(["arm", "number"])) > MAX_CURVES
    shown = f" Shown are the {MAX_CURVES} trials with the highest scores." if limit else ""
    note = f'<p class="note">{LAST_COUNTS}{shown}</p>'
    return f'{legend(entries + _blind_entries(complete, goals))}{note}<div class="charts">{"".join(charts)}</div>'


def _highest(values: pd.Series) -> float:
    highest = float(values.max())
    return highest if math.isfinite(highest) else -math.inf


def effect_figures(
    records: Sequence[Record],
    arm: str,
    goals: Sequence[str],
    style: ArmStyle,
    importance: Mapping[str, float],
    num_arms: int = 1,
) -> str:
    """Returns a chart of each goal against each sampled parameter of an arm that at least `MIN_POINTS` complete trials
    have. Empty if there is no such parameter.

    Args:
        importance: the importance of each parameter, by name. If there are many, those of highest importance have
            charts.
        num_arms: the number of arms among which the page shares its charts and points. Beyond its points, a chart
            shows every n-th trial.
    """
    of_arm = [record for record in records if record.arm == arm and record.state == "complete"]
    named = [name for name in _names(of_arm) if sum(name in record.sampled for record in of_arm) >= MIN_POINTS]
    short = shortest([name.partition("/")[2] for name in named])
    most = max(EFFECT_CHARTS // (num_arms * len(goals)), 1)
    names = sorted(named, key=lambda name: -importance.get(name, 0.0))[:most]
    limit = max(EFFECT_POINTS // max(num_arms * len(names) * len(goals), 1), MIN_POINTS)
    charts = []
    for name, goal in itertools.product(names, goals):
        with_name = _evenly([record for record in of_arm if name in record.sampled], limit)
        blind = _blind(of_arm, goal)
        values = [record.sampled[name] for record in with_name]
        if len(set(map(str, values))) < 2:
            continue
        y_axis = Axis(goal, [*(record.metrics[goal] for record in with_name), *blind.values()])
        chart = Chart(Axis(short[name.partition("/")[2]], values, is_parameter=True), y_axis)
        for kind, value in blind.items():
            chart.level(value, "y", BLIND_DASHES[kind], f"{goal} {value:.3f} {IMAGE_BLIND[kind]}")
        for record in with_name:
            error = (error_of(record, goal) or 0.0) if len(with_name) <= MAX_BARS else 0.0
            text = f"trial {record.number}: {as_text(record.sampled[name])}, {record.metrics[goal]:.3f}"
            at = record.sampled[name]
            chart.point(at, record.metrics[goal], style.colour, style.marker, text, (0.0, error), False)
        charts.append(f"<figure>{chart.svg()}</figure>")
    entries = _blind_entries(of_arm, goals)
    cuts = [f"The effects of {len(names)} of {len(named)} parameters."] if len(names) < len(named) else []
    cuts += [f"At most {limit} trials a chart, at equal distances."] if len(of_arm) > limit else []
    note = f'<p class="note">{" ".join(cuts)}</p>' if cuts else ""
    return (
        f'{note}{legend(entries) if entries else ""}<div class="charts small">{"".join(charts)}</div>' if charts else ""
    )


def parallel_figure(
    records: Sequence[Record], arm: str, goals: Sequence[str], style: ArmStyle, most: int = PARALLEL_LINES
) -> str:
    """Returns parallel coordinates of an arm: its parameters that all its complete trials have, and the goals. Pruned
    trials are grey. Empty if fewer than `MIN_POINTS` trials are complete.

    Args:
        most: about how many lines it may have. Beyond that, it shows every n-th trial and the best.
    """
    of_arm = [record for record in records if record.arm == arm]
    complete = [record for record in of_arm if record.state == "complete"]
    names = [name for name in _names(complete) if all(name in record.sampled for record in complete)]
    if len(complete) < MIN_POINTS or not names:
        return ""
    best = {record.number for goal in goals if (record := best_of(complete, goal))}
    pruned = [record for record in of_arm if record.state == "pruned" and {*names} <= {*record.sampled}]
    others = [record for record in complete if record.number not in best]
    shown = [*_evenly(pruned, most // 4), *_evenly(others, most), *(each for each in complete if each.number in best)]
    shown = [record for record in shown if _is_scored(record, goals)]
    shown.sort(key=lambda record: (record.state == "complete", record.number in best))
    short = shortest([name.partition("/")[2] for name in names])
    axes = [Axis(short[name.partition("/")[2]], [record.sampled[name] for record in shown], True) for name in names]
    axes += [Axis(goal, [record.metrics[goal] for record in shown]) for goal in goals]
    lines = []
    for record in shown:
        values: list[Any] = [record.sampled[name] for name in names] + [record.metrics[goal] for goal in goals]
        is_pruned, is_best = record.state == "pruned", record.number in best
        text = f"trial {record.number}{', pruned' if is_pruned else ''}: {_scores(record, goals)}"
        lines.append((values, "#c4c4c4" if is_pruned else style.colour, 3.0 if is_best else 1.0, text))
    note = "Thick: the best trial by each goal."
    note += " Grey: pruned trials, with the scores of their last epoch." if pruned else ""
    note += f" About {most} trials, at equal distances." if len(others) > most else ""
    return f'<p class="note">{note}</p><figure class="wide">{parallel(axes, lines)}</figure>'


def _is_scored(record: Record, goals: Sequence[str]) -> bool:
    return all(math.isfinite(record.metrics.get(goal, math.nan)) for goal in goals)


def _scores(record: Record, goals: Sequence[str]) -> str:
    return ", ".join(f"{goal} {record.metrics[goal]:.3f}" for goal in goals)


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.sampled))


def _evenly(records: Sequence[Record], limit: int) -> list[Record]:
    """Returns at most `limit` of the records, at equal distances."""
    step = max(math.ceil(len(records) / limit), 1)
    return list(records[::step])


def _marker(styles: Styles, arm: str) -> str:
    return styles[arm].marker if arm in styles else "circle"


def _arm_entries(styles: Styles) -> list[tuple[str, str, str, str]]:
    return [(arm, style.colour, "", style.marker) for arm, style in styles.items()]


def _pruned_entry(records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    return [("pruned", "#c4c4c4", "", "circle")] if any(record.state == "pruned" for record in records) else []


def _blind(complete: Sequence[Record], goal: str) -> dict[str, float]:
    best = best_of(complete, goal)
    return image_blind_scores_of(best, goal) if best else {}


def _blind_entries(complete: Sequence[Record], goals: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Returns the entries of a legend for the grey lines of maps that ignore the image. The page's first table has
    their scores.
    """
    return [
        (f"{goal} {IMAGE_BLIND[name]}", "#555", BLIND_DASHES[name], "")
        for goal in goals
        for name in _blind(complete, goal)
    ]
