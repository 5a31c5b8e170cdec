"""The rule that chooses a trial of a sweep: the best by one goal, perhaps only among the trials that are nearly the
best by another.

A score is nearly the best if it is within a number of the best score, or within one standard error of it. The latter is
the one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984, Classification and Regression Trees, section
3.4.3): models within one standard error of the best cannot be told apart by this score, so another reason may decide
between them. There the reason is the size of a tree, here it is another goal. As there, the standard error is that of
the best model's score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, ValidationError, model_validator

from mmpkd.near_names import mistake_of, paths_of
from mmpkd.scoring.stats import SMALLEST_ERROR, is_all_equal
from mmpkd.types import ConfigError, Strict
from sweep.types import Record

ONE_ERROR: Final = "1se"
LEAST_SHOWN: Final = 0.0005  # a smaller standard error would be shown as 0.000
ROUNDING: Final = 1e-9  # scores that differ by less count as equal where they are compared with a limit


def _as_tolerance(value: object) -> object:
    """Checks a value of `within`, which may be a number in the form of a text.

    Raises:
        ValueError: it is neither `1se` nor a number of at least 0.
    """
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if value is None or value == ONE_ERROR:
        return value
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"wants {ONE_ERROR} or a number of at least 0, such as 0.01")
    return number


Tolerance = Annotated[
    float | Literal["1se"] | None,
    BeforeValidator(_as_tolerance, json_schema_input_type=float | Literal["1se"] | None),
]


class Selection(Strict):
    """A rule: the highest score by `maximize` among the trials whose score by `of` is within `within` of the best."""

    maximize: str
    within: Tolerance = None  # 1se: one standard error of the best score by `of`
    of: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.within is None) != (self.of is None):
            given, missing = ("within", "of") if self.of is None else ("of", "within")
            raise ValueError(f"{given} without {missing}: a limit is within={ONE_ERROR} of=GOAL, both or neither")
        if self.of == self.maximize:
            raise ValueError(f"of is the goal {self.of!r} itself, which then decides alone; name another goal")
        return self

    @property
    def goals(self) -> list[str]:
        """The goals that the rule reads."""
        return [self.maximize, *([self.of] if self.of else [])]

    def __str__(self) -> str:
        if self.of is None:
            return self.maximize
        limit = "one standard error" if self.within == ONE_ERROR else f"{self.within:g}"
        return f"{self.maximize} within {limit} of the best {self.of}"


def read_selection(content: Mapping[str, Any]) -> Selection:
    """Returns the rule that a mapping states.

    Raises:
        ConfigError: it has mistakes. One that concerns several keys has no path.
    """
    try:
        return Selection.model_validate(content)
    except ValidationError as error:
        raise ConfigError([mistake_of(details, "", paths_of(Selection)) for details in error.errors()]) from error


def _as_rule(value: object) -> object:
    """Returns a goal as it is, and a mapping as a Selection.

    Raises:
        ValueError: it is neither, or the mapping has mistakes.
    """
    if isinstance(value, str | Selection):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"wants a goal, or {{maximize: GOAL, within: {ONE_ERROR}, of: GOAL}}")
    try:
        return read_selection(value)
    except ConfigError as error:
        raise ValueError("; ".join(map(str, error.mistakes))) from None


# A goal alone stands for the rule that maximises it.
Select: TypeAlias = Annotated[str | Selection, BeforeValidator(_as_rule, json_schema_input_type=str | Selection)]


def rule_of(select: Any) -> Selection:
    """Returns the rule that a value of `search.select` states, as `SearchConfig` or the file of a space holds it."""
    rule = _as_rule(select)
    return rule if isinstance(rule, Selection) else Selection(maximize=str(rule))


@dataclass(frozen=True)
class Choice:
    """A trial that a rule has chosen, and the reasons.

    Attributes:
        trial: the chosen trial.
        eligible: the trials among which it is the best, best first. Without a limit these are all trials.
        best: the trial that is best by the goal of the limit; None without a limit.
        tolerance: how far below the value of `best` an eligible trial may lie. It is 0 if the rule is one standard
            error and the standard error is unknown.
    """

    trial: Record
    eligible: Sequence[Record]
    best: Record | None = None
    tolerance: float = 0.0


def choose(trials: Sequence[Record], rule: Selection, compared: Callable[[str], str]) -> Choice | None:
    """Returns the choice of a rule among trials, or None if there are none.

    Of several trials with equal scores the one with the lowest number is chosen, and no other goal decides: its score
    would then be the best of several scores, and too high by luck.

    Args:
        compared: returns the metric by which trials are compared in a goal, see `records.compared_metric`.
    """
    if not trials:
        return None
    by_maximize = compared(rule.maximize)
    if rule.of is None:
        ordered = best_first(trials, by_maximize)
        return Choice(ordered[0], ordered)
    by_of = compared(rule.of)
    best = best_first(trials, by_of)[0]
    error = error_of(best, rule.of) or 0.0
    tolerance = error if rule.within == ONE_ERROR else float(rule.within or 0.0)
    least = best.metrics[by_of] - tolerance - ROUNDING
    eligible = best_first([trial for trial in trials if trial.metrics[by_of] >= least], by_maximize)
    return Choice(eligible[0], eligible, best, tolerance)


def best_first(records: Iterable[Record], metric: str) -> list[Record]:
    """Returns the records ordered by one metric, best first. Records that are equal in this metric are ordered by
    number.
    """
    return sorted(records, key=lambda record: (-record.metrics[metric], record.number))


def error_of(record: Record, goal: str) -> float | None:
    """Returns the standard error of a score, or None if the patients allow no estimate.

    The error of a single run is over validation patients, that of a mean over seeds is over patients and seeds (see
    `records.error_of_mean`). A standard error of 0, up to rounding, means that every resampling of the patients gives
    the same score. The standard error is then unknown, not small.
    """
    error = record.metrics.get(f"{goal}_se", math.nan)
    return error if math.isfinite(error) and error > SMALLEST_ERROR else None


def score_in_words(score: float, error: float) -> str:
    """Returns a score and its standard error, such as '0.912 ± 0.031'.

    If the standard error is unknown, the text says '1.000 (all equal)', where every resampling of the patients gives
    this score, or else '0.750 ± ?'.
    """
    if math.isfinite(error) and error > SMALLEST_ERROR:
        return f"{score:.3f} ± {error:.3f}" if error >= LEAST_SHOWN else f"{score:.3f} ± <0.001"
    return f"{score:.3f} (all equal)" if is_all_equal(score, error) else f"{score:.3f} ± ?"
