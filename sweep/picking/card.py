"""Writes the model card of a picked trial: what the student is, its data, how it was trained and chosen, its scores
beside those of maps that have not looked at the image, and what it is not good for. It names no patient and no file of
the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmpkd.config import TrialConfig
from mmpkd.export.student_file import Card
from sweep.picking.candidates import Candidates
from sweep.picking.words import BASELINES, Pick, reasons, without_lead
from sweep.reports.console import sampled, with_error
from sweep.space.search_config import SCORES


def model_card(trials: Candidates, picked: Pick, config: TrialConfig, student: Card | None) -> str:
    """Returns the model card in Markdown.

    Args:
        student: the card in the student's file, or None if there is no student yet.
    """
    trial = picked.trial
    parts = [
        f"# Student of trial {trial.number} of the sweep {trials.sweep.folder.name}",
        _what_it_is(trials, picked, config, student),
        "## Data",
        _data(trials, picked, config, student),
        "## How it was trained and chosen",
        _items([*_protocol(trials, picked, config), *reasons(trials, picked)]),
        "## Scores on the validation patients",
        _scores(trials, picked),
        "## Limits",
        _items(_limits(student)),
    ]
    return "\n\n".join(parts) + "\n"


def _items(lines: Iterable[str]) -> str:
    sentences = [line.removeprefix("warning: ").rstrip(".") for line in lines]
    capitalised = [text if text.startswith("val/") else text[0].upper() + text[1:] for text in sentences]
    return "\n".join(f"- {text}." for text in capitalised)


def _what_it_is(trials: Candidates, picked: Pick, config: TrialConfig, student: Card | None) -> str:
    names = config.active_teachers()
    teachers = ", ".join(f"{name} ({config.teachers[name].kind})" for name in names)
    taught = (
        f"It learned from labels and from the outputs of these teachers: {teachers}."
        if names
        else ("It learned from labels alone, without a teacher.")
    )
    lines = [
        f"An image classifier: the vision transformer `{config.student.model}` for squares of "
        f"{config.cohort.image_size} pixels, of arm {picked.trial.arm}. {taught} It reads the image and nothing else."
    ]
    if student is not None:
        answers = "; ".join(f"{task.name} ({task.kind}): {', '.join(task.labels)}" for task in student.tasks)
        lines.append(f"It returns calibrated probabilities for {answers}. Its saliency map is `{student.map}`.")
    return " ".join(lines)


def _data(trials: Candidates, picked: Pick, config: TrialConfig, student: Card | None) -> str:
    plan, cohort = trials.sweep.plan, config.cohort
    lines = [f"reader `{cohort.reader}`; the prepared cohort has the fingerprint `{plan.get('store', 'unknown')}`"]
    if plan.get("samples"):
        lines.append(f"{plan['samples']} images in all parts together")
    seeds = picked.trial.metrics.get("seeds", 1)
    folds = f"; the scores are means over {seeds:.0f} seeds, each with its fold" if seeds > 1 else ""
    lines.append(f"split by patient: fold {cohort.fold} validates, the test part is sealed, the others train{folds}")
    rarer = picked.trial.metrics.get("val/auroc_rarer_class")
    if rarer is not None:
        lines.append(f"the label with the fewest has {rarer:.0f} validation patients of its rarer class")
    if student is not None and student.credentialed:
        lines.append(
            "the data are credentialed: share neither this folder nor pictures without the leave of their owner"
        )
    return _items(lines)


def _protocol(trials: Candidates, picked: Pick, config: TrialConfig) -> list[str]:
    states = [record.state for record in trials.records]
    counts = f"{states.count('complete')} complete, {states.count('pruned')} pruned, {states.count('failed')} failed"
    settings = sampled(picked.trial) or "nothing was sampled"
    return [
        f"{config.epochs} epochs with seed {config.seed}; sampled settings: {settings}",
        f"fingerprint of the configuration `{config.fingerprint()}`",
        f"one of {len(trials.records)} trials ({counts})",
        "temperatures and thresholds of the probabilities are fitted on the validation patients",
    ]


def _scores(trials: Candidates, picked: Pick) -> str:
    """Returns a table of the goals and of further scores, and a sentence for each that is not above its baselines."""
    metrics = picked.trial.metrics
    scores = [score for score in dict.fromkeys([*trials.goals, *SCORES]) if score in metrics]
    suffixes = [name for name in BASELINES if any(f"{score}_{name}" in metrics for score in scores)]
    head = ["score", "± standard error", *(BASELINES[name] for name in suffixes)]
    rows = []
    for score in scores:
        baselines = [metrics.get(f"{score}_{name}") for name in suffixes]
        cells = ["" if value is None else f"{value:.3f}" for value in baselines]
        rows.append([f"`{score}`", with_error(picked.trial, score), *cells])
    over = "patients and seeds" if metrics.get("seeds", 1) > 1 else "patients"
    note = f"Standard errors are over {over}. The other columns are maps that have not looked at the image."
    table = "\n".join(_row(row) for row in [head, ["---"] * len(head), *rows])
    below = [f"**{line}.**" for line in without_lead(picked.trial, scores)]
    return "\n\n".join([table, note if suffixes else note.partition(" The")[0], *below])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _limits(student: Card | None) -> list[str]:
    limits = [
        "the scores are of the patients by whom the trial was chosen and calibrated; score it on others with "
        "`python -m mmpkd.evaluate` before anything is concluded",
        "it is made for images of the same kind, bit depth and orientation as in training, from similar machines",
        "where it looks is no proof of what it uses",
        "it is research software, and no medical device",
    ]
    if student is None:
        limits.insert(0, "this folder has no student yet; it is trained from config.yaml beside this card")
    return limits
