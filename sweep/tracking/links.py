"""Links to the pages of MLflow that show a sweep, and the saved views behind them.

MLflow (3.17) opens an experiment on a page for chat models unless the link holds `workflowType=machine_learning`. No
tag of the experiment and no option of the server changes that, but the description of the experiment stands on each of
its pages and may hold links.

Only a saved view chooses which columns the table of runs shows. The front-end keeps a saved view as a tag of the
experiment: the tag is named `mlflow.sharedViewState.` and the key of the view, and its value is JSON with a name, a
time and the state of the table as JSON text. A link names the view by its key. If the link also holds a filter or an
order, the front-end ignores the view.

The description of a sweep names trials before it is known which server gets it, because it is kept in the spool. A link
to `trial:7` stands for the run of trial 7 there, and `trial:7/config.yaml` for an artifact of this run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode, urlsplit

VIEW_TAG: Final = "mlflow.sharedViewState."
# MLflow 3.17 does not read this tag; its front-end can be built to read it, and then opens the experiment on its runs.
KIND: Final[Mapping[str, str]] = {"mlflow.experimentKind": "custom_model_development"}
MACHINE_LEARNING: Final[Mapping[str, str]] = {"workflowType": "machine_learning"}
CONFIG: Final = "config.yaml"  # the artifact of a trial with which mmpkd.train repeats the training
TRIAL_LINK: Final = re.compile(r"\[([^\[\]]*)\]\(trial:(\d+)(/[^()]+)?\)")
LOCAL_SERVER: Final = "http://127.0.0.1:5000"  # where `mlflow ui` serves by default
TAG_WIDTHS: Final = {"arm": 80, "outcome": 80, "front": 60, "best": 120, "reference": 80, "control": 80}
NAME_COLUMN, DATE_COLUMN = "attributes.`Run Name`", "runDateAndNestInfo"  # the columns that are always shown
# Pixels. In a window of 1440 pixels, in which MLflow (3.17) opens its assistant, the table has 820, of which 80 are for
# selecting runs. So the column of the date shows the sign of the status alone.
NAME_WIDTH, DATE_WIDTH, SCORE_WIDTH, METRIC_WIDTH = 200, 55, 105, 95
OPENING: Final = "A sweep of hyperparameters."  # begins the description of an experiment


@dataclass(frozen=True)
class View:
    """A saved view of the table of runs.

    Attributes:
        key: names the view in links and in the tag of the experiment.
        name: what people read in the list of views.
        filter: the filter of the table.
        goals: the goals in the order of their columns. The runs are sorted by the first, best first.
    """

    key: str
    name: str
    filter: str
    goals: tuple[str, ...]

    def tag(self, milliseconds: int) -> str:
        """Returns the value of the experiment's tag. `milliseconds` is when the view was made, since 1970."""
        scores = {f"tags.`{goal}`": SCORE_WIDTH for goal in self.goals}
        tags = {f"tags.`{tag}`": width for tag, width in TAG_WIDTHS.items()}
        columns = {**scores, **tags, **{f"metrics.`{goal}`": METRIC_WIDTH for goal in self.goals}}
        state = {
            "searchFilter": self.filter,
            "orderByKey": f"metrics.`{self.goals[0]}`",
            "orderByAsc": False,
            "selectedColumns": list(columns),
            "columnOrder": [NAME_COLUMN, DATE_COLUMN, *columns],
            "columnWidths": {NAME_COLUMN: NAME_WIDTH, DATE_COLUMN: DATE_WIDTH, **columns},
        }
        view = {"name": self.name, "createdAt": milliseconds, "updatedAt": milliseconds, "state": json.dumps(state)}
        return json.dumps(view)


def views_of(sweep_run: str, goals: Sequence[str]) -> list[View]:
    """Returns the saved views of a sweep: all trials by each goal, and the trials on the Pareto front.

    Args:
        sweep_run: MLflow's id of the sweep's own run, whose nested runs are the trials.
        goals: the scores that the sweep maximises.
    """
    trials = f"tags.`mlflow.parentRunId` = '{sweep_run}'"

    def view(name: str, goal: str, condition: str) -> View:
        key = re.sub(r"[^\w]+", "-", f"{sweep_run[:8]}-{name}", flags=re.ASCII)
        return View(key, name, condition, (goal, *(other for other in goals if other != goal)))

    by_goal = [view(f"trials by {goal}", goal, trials) for goal in goals]
    return [*by_goal, *(view("Pareto front", goal, f"{trials} AND tags.front = 'yes'") for goal in goals[:1])]


def experiment_tags(sweep_run: str, goals: Sequence[str], milliseconds: int) -> dict[str, str]:
    """Returns the tags of the experiment: its kind, and the sweep's saved views."""
    return {**KIND, **{f"{VIEW_TAG}{view.key}": view.tag(milliseconds) for view in views_of(sweep_run, goals)}}


def pages_of(experiment: str, sweep_run: str, goals: Sequence[str], server: str = "") -> dict[str, str]:
    """Returns the links to the pages of a sweep by what a page shows: each saved view, and the sweep's own run.

    Args:
        experiment: MLflow's id of the experiment.
        server: the address of the server. Without it, a link leads from one page of MLflow to another.
    """
    runs = f"{server}#/experiments/{experiment}/runs"
    pages = {
        view.name: f"{runs}?{urlencode({'viewStateShareKey': view.key, **MACHINE_LEARNING})}"
        for view in views_of(sweep_run, goals)
    }
    return {**pages, "the sweep itself": f"{runs}/{sweep_run}?{urlencode(MACHINE_LEARNING)}"}


def experiment_description(pages: Mapping[str, str]) -> str:
    """Returns the description of the experiment, in Markdown. It begins with `OPENING`."""
    return f"{OPENING} {as_markdown(pages)}"


def trial_link(text: str, number: int, artifact: str = "") -> str:
    """Returns a link, in Markdown, to the run of a trial on the server that will get the text, or to an artifact of the
    run.
    """
    return f"[{text}](trial:{number}{f'/{artifact}' if artifact else ''})"


def with_addresses(text: str, experiment: str, run_of: Callable[[int], str | None]) -> str:
    """Returns a text whose links to trials have the addresses of MLflow's pages.

    Args:
        text: Markdown with links of `trial_link`. A link to a trial without a run becomes plain text.
        experiment: MLflow's id of the experiment.
        run_of: returns MLflow's id of a trial's run, or None if there is none.
    """

    def address(link: re.Match[str]) -> str:
        words, number, artifact = link[1], int(link[2]), link[3]
        if (run := run_of(number)) is None:
            return words
        page = f"#/experiments/{experiment}/runs/{run}{f'/artifacts{artifact}' if artifact else ''}"
        return f"[{words}]({page}?{urlencode(MACHINE_LEARNING)})"

    return TRIAL_LINK.sub(address, text)


def as_markdown(pages: Mapping[str, str]) -> str:
    """Returns the links as one line of Markdown."""
    return "Open " + " · ".join(f"[{name}]({link})" for name, link in pages.items())


def as_lines(pages: Mapping[str, str]) -> list[str]:
    """Returns one line for each link, for a terminal."""
    width = max(map(len, pages), default=0)
    return [f"  {name.ljust(width)}  {link}" for name, link in pages.items()]


def server_of(address: str) -> str:
    """Returns where a browser finds MLflow's pages: at the address of a server, without a password, or else where
    `mlflow ui` serves a database by default.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return f"{LOCAL_SERVER}/"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/"
