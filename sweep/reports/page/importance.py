"""How much each sampled parameter of an arm matters to each goal, as Optuna's evaluator estimates it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from sweep.types import Record

MIN_TRIALS: Final = 8  # complete trials of an arm; with fewer, the estimates are noise


def importances(records: Sequence[Record], arm: str, goal: str) -> dict[str, float]:
    """Returns the importance of each parameter that all complete trials of an arm have, by its name in
    `Record.sampled`, highest first; they sum to 1.

    It is Optuna's mean decrease of impurity in a random forest. Its default, the functional ANOVA, takes 2.6 s instead
    of 0.1 s for 300 trials with ten parameters, for each arm and goal. The result is empty if fewer than `MIN_TRIALS`
    trials are complete, or if nothing varies.
    """
    import optuna  # half a second that a report without importances does not need

    complete = [record for record in records if record.arm == arm and record.state == "complete"]
    complete = [record for record in complete if math.isfinite(record.metrics[goal])]
    if len(complete) < MIN_TRIALS or len({record.metrics[goal] for record in complete}) < 2:
        return {}
    shared = [name for name in complete[0].sampled if all(name in record.sampled for record in complete)]
    values = {name: [record.sampled[name] for record in complete] for name in shared}
    distributions = {name: each for name in shared if (each := _distribution(values[name])) is not None}
    if not distributions:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study would be a line on the console
    study = optuna.create_study(direction="maximize", storage=optuna.storages.InMemoryStorage())
    for index, record in enumerate(complete):
        params = {name: _plain(values[name][index], distributions[name]) for name in distributions}
        trial = optuna.trial.create_trial(params=params, distributions=distributions, value=record.metrics[goal])
        study.add_trial(trial)
    evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _distribution(values: Sequence[Any]) -> Any:
    """Returns the distribution of a parameter as Optuna wants it, which spans the values; None if they are equal."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if len(set(map(str, values))) < 2:
        return None
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))
        return FloatDistribution(low, high, log=low > 0 and high > 20 * low)
    return CategoricalDistribution(sorted(set(map(str, values))))


def _plain(value: Any, distribution: Any) -> Any:
    return str(value) if hasattr(distribution, "choices") else float(value)
