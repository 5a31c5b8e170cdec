"""Estimates the mean scores by which trials are chosen, and how far the best scores are too high by luck.

The score of a trial is its mean plus noise: another seed, or other validation patients, would give another score. The
best of many scores therefore exceeds its mean.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from sweep.space.encoding import encode
from sweep.space.grammar import Node
from sweep.storage.records import best_of, candidates, compared_metric
from sweep.surrogate import Floats, fit
from sweep.types import Record

MIN_TRIALS: Final = 8  # complete trials of an arm from which a model is fitted
MIN_EXPLAINED: Final = 0.5  # share of the variance that a model has to predict, so that its estimates are used
REPETITIONS: Final = 4000  # of a choice under noise; its mean noise is then exact to 1 % of the noise


def with_estimates(records: Sequence[Record], arms: Mapping[str, Node], goals: Sequence[str]) -> list[Record]:
    """Returns the records with what a model of the settings says of each complete trial, added to its metrics.

    For each arm with at least `MIN_TRIALS` complete trials and each goal, a Gaussian process is fitted to the scores on
    this goal. It adds `<goal>_explained`, its leave-one-out R². If this is at least `MIN_EXPLAINED`, it also adds
    `<goal>_estimate`, the estimated mean of the trial, and `<goal>_estimate_error`, the root mean square of the
    differences between the scores of the arm and their leave-one-out predictions.

    Args:
        arms: the search space of each arm.
    """
    added: dict[int, dict[str, float]] = {}
    for arm, node in arms.items():
        of_arm = [record for record in records if record.arm == arm and record.state == "complete"]
        if len(of_arm) < MIN_TRIALS:
            continue
        x_ND = encode(node, arm, [record.sampled for record in of_arm])
        for goal in goals:
            y_N = np.array([record.metrics[goal] for record in of_arm])
            model = fit(x_ND, y_N)
            explained = model.explained()
            error = float(np.sqrt(np.mean((y_N - model.leave_one_out()[0]) ** 2)))
            for record, estimate in zip(of_arm, model.predict(x_ND)[0].tolist(), strict=True):
                metrics = added.setdefault(record.number, {})
                metrics[f"{goal}_explained"] = explained
                if explained >= MIN_EXPLAINED:
                    metrics |= {f"{goal}_estimate": estimate, f"{goal}_estimate_error": error}
    return [
        replace(record, metrics={**record.metrics, **added[record.number]}) if record.number in added else record
        for record in records
    ]


def optimism(records: Sequence[Record], goal: str) -> float:
    """Returns by how much the observed score of the best trial by a goal is expected to exceed its mean.

    If estimates are compared, it is the observed score of this trial minus its estimate. Otherwise the choice is
    repeated (a parametric bootstrap): noise is added to assumed means, the best trial is chosen, and the noise in its
    score is averaged over the repetitions. The assumed means are the scores, drawn towards their mean until their
    variance is that of the scores without the noise (Louis 1984).
    """
    if compared_metric(records, goal) != goal:
        best = best_of(records, goal)
        assert best is not None
        return best.metrics[goal] - best.metrics[f"{goal}_estimate"]
    means, noise_sds = [], []
    for scores, noise in _noisy_groups(candidates(records), goal):
        variance = float(scores.var(ddof=1)) if len(scores) > 1 else 0.0
        share_of_means = max(1 - noise / variance, 0.0) if variance else 1.0
        means.append(scores.mean() + share_of_means**0.5 * (scores - scores.mean()))
        noise_sds.append(np.full(len(scores), noise**0.5))
    mean_N, noise_sd_N = np.concatenate(means), np.concatenate(noise_sds)
    noise_RN = noise_sd_N * np.random.default_rng(0).standard_normal((REPETITIONS, len(mean_N)))
    best_R = (mean_N + noise_RN).argmax(axis=1)
    return float(noise_RN[np.arange(REPETITIONS), best_R].mean())


def _noisy_groups(compared: Sequence[Record], goal: str) -> Iterator[tuple[Floats, float]]:
    """Yields the scores of groups of trials, and the variance of the noise in them.

    With several seeds, all trials are one group, and the noise is the mean squared standard error over seeds. Otherwise
    each arm with a model is a group, and the noise is what the model does not explain. The other trials are one group,
    and their scores are taken for noise altogether.
    """
    if all(f"{goal}_seed_se" in record.metrics for record in compared):
        noise = statistics.fmean(record.metrics[f"{goal}_seed_se"] ** 2 for record in compared)
        yield np.array([record.metrics[goal] for record in compared]), noise
        return
    groups: dict[str, list[Record]] = {}
    for record in compared:
        groups.setdefault(record.arm if f"{goal}_explained" in record.metrics else "", []).append(record)
    for group in groups.values():
        scores = np.array([record.metrics[goal] for record in group])
        unexplained = 1 - max(group[0].metrics.get(f"{goal}_explained", 0.0), 0.0)
        yield scores, unexplained * float(scores.var(ddof=1)) if len(group) > 1 else 0.0


def choices_in_words(records: Sequence[Record], goals: Sequence[str]) -> list[str]:
    """Returns a line for each goal that states how far the best score is expected to be too high, and whether estimates
    or observed scores are compared.
    """
    compared, lines = candidates(records), []
    for goal in goals:
        best = best_of(records, goal)
        if best is None or len(compared) < 2:
            continue
        luck = optimism(records, goal)
        amount = f"{abs(luck):.3f} too {'high' if luck >= 0 else 'low'} by luck"
        subject = f"{goal} {best.metrics[goal]:.3f} of trial {best.number}"
        if compared_metric(records, goal) != goal:
            estimate, error = best.metrics[f"{goal}_estimate"], best.metrics[f"{goal}_estimate_error"]
            lines.append(
                f"{subject} is expected to be {amount}: a model of the settings estimates its mean at {estimate:.3f}, "
                f"the best of {len(compared)} (leave-one-out error {error:.3f}, "
                f"R² {best.metrics[f'{goal}_explained']:.2f})"
            )
        elif f"{goal}_seed_se" in best.metrics:
            lines.append(f"{subject}, the best mean over seeds of {len(compared)}, is expected to be {amount}")
        else:
            lines.append(
                f"{subject}, the best of {len(compared)}, is expected to be up to {amount}; observed scores are "
                f"compared, because no model predicts them well enough in {_arms_without_estimates(compared, goal)}"
            )
    return lines


def _arms_without_estimates(compared: Sequence[Record], goal: str) -> str:
    """Returns the arms in which the scores of a goal have no estimates, each with the reason."""
    arms = []
    for arm in dict.fromkeys(record.arm for record in compared):
        of_arm = [record for record in compared if record.arm == arm]
        explained = of_arm[0].metrics.get(f"{goal}_explained")
        if explained is None:
            arms.append(f"{arm} ({len(of_arm)} complete trials are too few)")
        elif explained < MIN_EXPLAINED:
            arms.append(f"{arm} (leave-one-out R² {explained:.2f})")
    return " and ".join(arms)


def with_estimate(record: Record, goal: str, shown: str) -> str:
    """Returns a score, as it is shown, with the estimate of its mean, if there is one: '0.912 ± 0.031, estimated 0.897
    ± 0.020'. The second error is the leave-one-out error of the model.
    """
    estimate, error = (record.metrics.get(f"{goal}_{name}") for name in ("estimate", "estimate_error"))
    return shown if estimate is None else f"{shown}, estimated {estimate:.3f} ± {error:.3f}"
