"""Estimates the mean scores by which trials are chosen, and how far the best scores are too high by luck.

The score of a trial is its mean plus noise: another seed, or other validation patients, would give another score. The
best of many scores therefore exceeds its mean.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from sweep.reports.details import against_image_blind
from sweep.selection import Selection, rule_of
from sweep.space.encoding import encode
from sweep.space.grammar import Node
from sweep.space.search_config import SCORES
from sweep.storage.records import best_of, candidates, image_blind_scores_of
from sweep.surrogate import Floats, Surrogate, fit
from sweep.types import Record

MIN_TRIALS: Final = 8  # complete trials of an arm from which a model is fitted
MIN_EXPLAINED: Final = 0.5  # share of the variance that a model has to predict, so that its estimates are used
MIN_GROUP: Final = 3  # trials of an arm whose spread says how much noise is in them
REPETITIONS: Final = 2000  # of a choice under noise; the mean is then exact to about 2 % of the noise


def with_estimates(records: Sequence[Record], arms: Mapping[str, Node], goals: Sequence[str]) -> list[Record]:
    """Returns the records with what a model of the settings says of each complete trial, added to its metrics.

    For each arm with at least `MIN_TRIALS` complete trials and each goal, a Gaussian process is fitted to the scores on
    this goal. It adds `<goal>_explained`, its leave-one-out R². If this is at least `MIN_EXPLAINED`, it also adds

    - `<goal>_estimate`, the estimated mean of the trial;
    - `<goal>_estimate_error`, the root mean square of the differences between the scores of the arm and their
      leave-one-out predictions;
    - `<goal>_luck`, by how much the score of the trial with the best estimate of the arm is expected to exceed its
      mean.

    `<goal>_compared` is added if an arm has estimates. It is the estimate if all arms have estimates. If some arms have
    none, they keep their scores, and the estimates of any other arm are moved up by one amount, so that its best
    estimate becomes its best score: the best score of an arm exceeds its mean by luck, and estimates do not.

    Args:
        arms: the search space of each arm.
    """
    added: dict[int, dict[str, float]] = {record.number: {} for record in records}
    by_arm = {arm: [record for record in records if record.arm == arm and record.state == "complete"] for arm in arms}
    for arm, of_arm in by_arm.items():
        if len(of_arm) < MIN_TRIALS:
            continue
        x_ND = encode(arms[arm], arm, [record.sampled for record in of_arm])
        for goal in goals:
            y_N = np.array([record.metrics[goal] for record in of_arm])
            model = fit(x_ND, y_N)
            explained = model.explained()
            for record in of_arm:
                added[record.number][f"{goal}_explained"] = explained
            if explained < MIN_EXPLAINED:
                continue
            estimate_N, _ = model.predict(x_ND)
            error = float(np.sqrt(np.mean((y_N - model.leave_one_out()[0]) ** 2)))
            shared = {f"{goal}_estimate_error": error, f"{goal}_luck": _luck(model, estimate_N, error)}
            for record, estimate in zip(of_arm, estimate_N.tolist(), strict=True):
                added[record.number] |= {f"{goal}_estimate": estimate, **shared}
    extended = [replace(record, metrics={**record.metrics, **added[record.number]}) for record in records]
    for goal in goals:
        compared = _compared_values(candidates(extended), goal)
        extended = [
            replace(record, metrics={**record.metrics, f"{goal}_compared": compared[record.number]})
            if record.number in compared
            else record
            for record in extended
        ]
    return extended


def _luck(model: Surrogate, estimate_N: Floats, error: float) -> float:
    """Returns the expected noise in the score of the trial with the best estimate.

    The choice is repeated (a parametric bootstrap): noise with the leave-one-out error as its standard deviation is
    added to the estimates, the model smooths these scores with the same parameters, and the best trial is chosen.
    """
    noise_RN = error * np.random.default_rng(0).standard_normal((REPETITIONS, len(estimate_N)))
    return _noise_of_best(estimate_N, noise_RN, model.smooth)


def _noise_of_best(mean_N: Floats, noise_RN: Floats, smooth: Callable[[Floats], Floats] = np.asarray) -> float:
    """Returns the noise of the trial that is chosen, averaged over R repetitions. The chosen trial has the highest
    score after `smooth` was applied to the scores of a repetition. No score exceeds 1, so there is no noise above 1.
    """
    noise_RN = np.minimum(noise_RN, np.maximum(1 - mean_N, 0.0))
    scores_RN = smooth(mean_N + noise_RN)
    return float(noise_RN[np.arange(len(noise_RN)), scores_RN.argmax(axis=1)].mean())


def _compared_values(compared: Sequence[Record], goal: str) -> dict[int, float]:
    """Returns the values by which trials are compared, by number, or an empty mapping if no trial has an estimate."""
    estimate = f"{goal}_estimate"
    values: dict[int, float] = {}
    num_estimates = sum(estimate in record.metrics for record in compared)
    for arm in {record.arm for record in compared} if num_estimates else ():
        of_arm = [record for record in compared if record.arm == arm]
        metric = estimate if estimate in of_arm[0].metrics else goal
        shift = 0.0
        if num_estimates < len(compared):
            shift = max(record.metrics[goal] for record in of_arm) - max(record.metrics[metric] for record in of_arm)
        values |= {record.number: record.metrics[metric] + shift for record in of_arm}
    return values


def optimism(records: Sequence[Record], goal: str) -> float:
    """Returns by how much the observed score of the best trial by a goal is expected to exceed its mean.

    If the trial was chosen by its estimate, this is `<goal>_luck`. Otherwise the choice is repeated (a bootstrap):
    noise is added to assumed means, the best trial is chosen, and the noise in its score is averaged over the
    repetitions. The assumed means are the scores, drawn towards their mean until their variance is that of the scores
    without the noise (Louis 1984).
    """
    best = best_of(records, goal)
    if best is not None and f"{goal}_luck" in best.metrics:
        return best.metrics[f"{goal}_luck"]
    compared = candidates(records)
    rng = np.random.default_rng(0)
    if best is not None and f"{goal}_seed_se" in best.metrics:
        mean_N, variance = _means_over_seeds(compared, goal)
        noise_RN = variance**0.5 * rng.standard_normal((REPETITIONS, len(compared)))
    else:
        means: list[Floats] = []
        noises: list[Floats] = []
        # Groups that are too small to show their noise come last, and have noise of the others.
        for scores_N, share in sorted(_groups(compared, goal), key=lambda group: len(group[0]) < MIN_GROUP):
            means.append(_drawn_together(scores_N, share))
            if len(scores_N) < MIN_GROUP and noises:
                noises.append(rng.choice(np.concatenate(noises, axis=1).ravel(), (REPETITIONS, len(scores_N))))
                continue
            # The noise has the distribution of the scores, which is skewed where most scores are near 0 or 1.
            deviations_RN = np.tile(scores_N - scores_N.mean(), (REPETITIONS, 1))
            noises.append(share**0.5 * rng.permuted(deviations_RN, axis=1))
        mean_N, noise_RN = np.concatenate(means), np.concatenate(noises, axis=1)
    return _noise_of_best(mean_N, noise_RN)


def _means_over_seeds(compared: Sequence[Record], goal: str) -> tuple[Floats, float]:
    """Returns assumed means of configurations of which some ran on several seeds, and the variance of the noise in a
    mean over seeds.

    The others ran on one seed, because better means were known by then. They were in the choice too, and without them
    the first seeds of the chosen would seem to be no selection. Their scores hold the noise of a single seed, and are
    drawn further towards the mean of all.
    """
    over_seeds = [record.metrics for record in compared if f"{goal}_seed_se" in record.metrics]
    variance = statistics.fmean(metrics[f"{goal}_seed_se"] ** 2 for metrics in over_seeds)
    scores_N = np.array([record.metrics[goal] for record in compared])
    noise_N = variance * np.array([over_seeds[0]["seeds"] / record.metrics.get("seeds", 1.0) for record in compared])
    signal = max(float(scores_N.var(ddof=1) - noise_N.mean()), 0.0) if len(compared) > 1 else 0.0
    kept_N = (signal / (signal + noise_N)) ** 0.5 if signal else np.zeros(len(compared))
    mean_N: Floats = scores_N.mean() + kept_N * (scores_N - scores_N.mean())
    return mean_N, variance


def _drawn_together(scores_N: Floats, share: float) -> Floats:
    """Returns scores whose variance is smaller by a share, with the same mean and order."""
    mean_N: Floats = scores_N.mean() + (1 - share) ** 0.5 * (scores_N - scores_N.mean())
    return mean_N


def _groups(compared: Sequence[Record], goal: str) -> Iterator[tuple[Floats, float]]:
    """Yields the scores of groups of trials, and the share of their variance that counts as noise.

    Each arm is a group, because arms may differ in their means. Arms of fewer than `MIN_GROUP` trials are one group.
    The share is what the model of the arm does not explain, and 1 if there is no model.
    """
    sizes = Counter(record.arm for record in compared)
    groups: dict[str, list[Record]] = {}
    for record in compared:
        groups.setdefault(record.arm if sizes[record.arm] >= MIN_GROUP else "", []).append(record)
    for group in groups.values():
        unexplained = 1 - max(group[0].metrics.get(f"{goal}_explained", 0.0), 0.0)
        yield np.array([record.metrics[goal] for record in group]), unexplained


def choices_in_words(records: Sequence[Record], goals: Sequence[str]) -> list[str]:
    """Returns a line for each goal that states how far the best score is expected to be too high, and whether estimates
    or observed scores are compared. Where observed scores are compared, a last line gives the reasons.
    """
    compared, lines = candidates(records), []
    without_model: dict[str, list[str]] = {}  # goals by the arms in which their scores have no estimates
    for goal in goals:
        best = best_of(records, goal)
        if best is None or len(compared) < 2:
            continue
        amount = f"{max(optimism(records, goal), 0.0):.3f} too high by luck"  # below 0 where scores cannot exceed 1
        subject = f"{goal} {best.metrics[goal]:.3f} of trial {best.number}"
        if len({record.metrics[goal] for record in compared}) == 1:
            lines.append(f"{goal}: all {len(compared)} trials score {best.metrics[goal]:.3f}: no difference is seen")
            continue
        without = _arms_without_estimates(compared, goal)
        reason = f"because no model predicts them well enough in {without}"
        if f"{goal}_estimate" in best.metrics:
            estimate, error = best.metrics[f"{goal}_estimate"], best.metrics[f"{goal}_estimate_error"]
            number = str(len(compared))
            lines.append(
                f"{subject}: the estimate of its mean by a model of the settings, {estimate:.3f} (leave-one-out error "
                f"{error:.3f}, R² {best.metrics[f'{goal}_explained']:.2f}), is the best of "
                + (f"arm {best.arm}; arms are compared by their best observed scores, {reason}" if without else number)
                + f"; the score of a trial that is chosen in this way is on average {amount}"
            )
        elif f"{goal}_seed_se" in best.metrics:
            count = sum(f"{goal}_seed_se" in record.metrics for record in compared)
            lines.append(f"{subject}, the best of {count} means over seeds, is expected to be {amount}")
        else:
            lines.append(f"{subject}, the best of {len(compared)}, is expected to be up to {amount}")
            without_model.setdefault(without, []).append(goal)
    if without_model:
        reasons = "; ".join(f"{' and '.join(of_goals)} in {arms}" for arms, of_goals in without_model.items())
        lines.append(f"observed scores are compared, because no model predicts them well enough: {reasons}")
    return lines


def how_to_read(auroc_error: float | None) -> str:
    """Returns a sentence that tells the numbers apart that a summary states about the certainty of its scores.

    Args:
        auroc_error: standard error of AUROC that the plan states, or None.
    """
    text = "± is the standard error of one trial's score over validation patients; luck is what choosing the best adds"
    if auroc_error is not None:
        text += (
            f"; the plan's {auroc_error:.3f} is the standard error of an AUROC of 0.75 (near 1 it is smaller), "
            f"and AUROCs closer than twice that, {2 * auroc_error:.2f}, cannot be told apart"
        )
    return text


def image_blind_verdict(records: Sequence[Record], goals: Sequence[str]) -> list[str]:
    """Returns a line for each localisation goal: whether a trial beats the maps that ignore the image, and whether that
    may be luck.
    """
    compared = {record.number: record for record in candidates(records)}
    lines = []
    for goal in goals:
        blind_of = {number: image_blind_scores_of(record, goal) for number, record in compared.items()}
        luck = max(optimism(records, goal), 0.0) if len(compared) > 1 and any(blind_of.values()) else None
        score_of = {number: record.metrics[goal] for number, record in compared.items()}
        lines += against_image_blind(goal, score_of, blind_of, luck)
    return lines


def supervision(select: str | Selection) -> list[str]:
    """Returns a warning if the rule that chooses a trial reads scores of ROIs."""
    of_rois = [goal for goal in rule_of(select).goals if SCORES.get(goal) == "ROIs"]
    names, verb = " and ".join(of_rois), "reads" if len(of_rois) == 1 else "read"
    problem = f"{names} {verb} the ROIs, so choosing by it makes the localisation supervised by ROIs; report that"
    return [problem] if of_rois else []


def _arms_without_estimates(compared: Sequence[Record], goal: str) -> str:
    """Returns the arms in which the scores of a goal have no estimates, each with the reason."""
    arms = []
    for arm in dict.fromkeys(record.arm for record in compared):
        of_arm = [record for record in compared if record.arm == arm]
        explained = of_arm[0].metrics.get(f"{goal}_explained")
        if explained is None:
            arms.append(f"arm {arm} ({len(of_arm)} of the {MIN_TRIALS} complete trials that a model needs)")
        elif explained < MIN_EXPLAINED:
            arms.append(f"arm {arm} (leave-one-out R² {explained:.2f}, {MIN_EXPLAINED} is needed)")
    return " and ".join(arms)


def with_estimate(record: Record, goal: str, shown: str) -> str:
    """Returns a score, as it is shown, with the estimate of its mean, if there is one: '0.912 ± 0.031, estimated 0.897
    ± 0.020'. The second error is the leave-one-out error of the model.
    """
    estimate, error = (record.metrics.get(f"{goal}_{name}") for name in ("estimate", "estimate_error"))
    return shown if estimate is None else f"{shown}, estimated {estimate:.3f} ± {error:.3f}"
