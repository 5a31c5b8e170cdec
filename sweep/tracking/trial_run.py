"""Describes a trial for its run in the tracking server: a name that says what the trial is, its parameters and tags.

The description is made when the trial starts, and is part of the event that the spool keeps.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from mmpkd.config import IMAGE, TrialConfig
from mmpkd.teachers import resolve
from sweep.space.draw import Drawn, value_at
from sweep.types import shuffled_teacher_of

BRANCH: Final = "branch"  # the parameter with the label of a `one_of` that stands directly in an arm
SHORT_NAMES: Final = {"temperature": "T", "weight": "w", "weight_decay": "wd"}
MAX_NAME: Final = 100  # characters


def params_of(drawn: Drawn, config: TrialConfig) -> dict[str, Any]:
    """Returns the parameters of a trial by their path in the TrialConfig: settings that people compare although every
    trial may have the same, and each drawn value once.

    The value of a `one_of` is the label of its branch, and that of a `maybe` is 'absent' or 'present', unless a drawn
    value stands at the same path. The labels of a `one_of` inside the branch of another are joined by a dot.
    """
    params: dict[str, Any] = {
        "epochs": config.epochs,
        "seed": config.seed,
        "student.model": config.student.model,
        "cohort.image_size": config.cohort.image_size,
    }
    labels: dict[str, Any] = {}
    for name, place in drawn.places.items():
        value, resolved = drawn.values[name], value_at(drawn.config, place)
        path = place or BRANCH
        if resolved is not None and not isinstance(resolved, dict):
            params[path] = json.dumps(resolved) if isinstance(resolved, list) else resolved
        elif labels.get(path, "present") == "present":
            labels[path] = value
        elif value != "present":
            labels[path] = f"{labels[path]}.{value}"
    return labels | params


def tags_of(config: TrialConfig, repeat_of: int | None) -> dict[str, str]:
    """Returns the tags that a trial has from its start.

    - `reference` is 'yes' if the student reads another image at test, so that the trial cannot be chosen.
    - `control` names the teachers with shuffled outputs.
    - `near_label` names the columns and report sections that nearly state the label, if a teacher reads any.
    - `repeat_of` is the number of the earlier trial with the same configuration, if this trial runs it on a further
      seed.
    """
    teachers = {name: resolve(config.teachers[name]) for name in config.active_teachers()}
    controls = [name for name, teacher in teachers.items() if teacher.control]
    controls += shuffled_teacher_of(config.distillation)
    columns = {column for teacher in teachers.values() for column in teacher.near_label_inputs}
    tags = {
        "reference": "" if config.student.reads == (IMAGE,) else "yes",
        "control": ", ".join(controls),
        "near_label": ", ".join(sorted(columns)),
        "repeat_of": "" if repeat_of is None else str(repeat_of),
    }
    return {name: value for name, value in tags.items() if value}


def run_name(number: int, arm: str, drawn: Drawn, repeat_of: int | None = None, turn: int = 0) -> str:
    """Returns the name of a trial's run, such as '12 tabular logits T=5.6 w=14': its number, its arm, and what was
    drawn for that arm. Of an arm that draws nothing of its own, it shows what was drawn for all arms.

    Args:
        repeat_of: the first trial of the configuration, if this trial runs it on a further seed.
        turn: the number of this further seed, counted from 1.
    """
    own = {
        name: place
        for name, place in drawn.places.items()
        if f"{drawn.origins.get(place, '')}.".startswith(f"arms.{arm}.")
    }
    shown = {name: (place, drawn.values[name]) for name, place in (own or drawn.places).items()}
    words = [
        f"no {_last_steps(place, 1)}" if value == "absent" else value
        for place, value in shown.values()
        if isinstance(value, str) and value != "present"
    ]
    numbers = {place: value for place, value in shown.values() if not isinstance(value, str)}
    endings = Counter(_last_steps(place, 1) for place in numbers)
    pairs = [
        (_last_steps(place, 1 if endings[_last_steps(place, 1)] == 1 else 2), _as_text(value))
        for place, value in numbers.items()
    ]
    settings = [f"{name}={value}" for name, value in sorted(pairs, key=lambda pair: pair[0].casefold())]
    text = " ".join([str(number), arm, *words, *settings])
    ending = "" if repeat_of is None else f", seed {turn + 1} of trial {repeat_of}"
    limit = MAX_NAME - len(ending)
    return (text if len(text) <= limit else f"{text[: limit - 1]}…") + ending


def _last_steps(path: str, count: int) -> str:
    steps = [step for step in path.split(".") if step != "params"][-count:]
    return ".".join([*steps[:-1], SHORT_NAMES.get(steps[-1], steps[-1])]) if steps else BRANCH


def _as_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
