"""Writes the model card of a picked trial: what the student's file states of itself, and how the trial was chosen among
the others of its sweep. It names no patient and no file of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmpkd.config import TrialConfig
from mmpkd.export import answer_card, model_card
from mmpkd.export.model_card import BASELINE_NAMES
from mmpkd.export.student_file import Exported
from mmpkd.vlm.student import VlmStudent
from sweep.picking.candidates import Candidates
from sweep.picking.words import Pick, reasons, without_lead
from sweep.reports.console import sampled, with_error


def card_of(trials: Candidates, picked: Pick, config: TrialConfig, student: Exported | VlmStudent | None) -> str:
    """Returns the model card in Markdown.

    Args:
        student: the student, or None if it is not trained yet.
    """
    # A student's file states the scores of this student, and those of earlier versions state none.
    are_stated = student is not None and student.origin is not None and "seeds" not in picked.trial.metrics
    waiting = "There is no student yet. It is trained from the configuration beside this card."
    parts = [
        f"# Student of trial {picked.trial.number} of the sweep {trials.sweep.folder.name}",
        _of_itself(student) if student else waiting,
        "## Choice",
        _items([*_sweep_in_words(trials, picked, config), *reasons(trials, picked)]),
        *([] if are_stated else [_scores(trials, picked)]),
        *(f"**{line}.**" for line in without_lead(picked.trial, trials.goals)),
    ]
    return "\n\n".join(parts) + "\n"


def _of_itself(student: Exported | VlmStudent) -> str:
    return answer_card.answer_card(student) if isinstance(student, VlmStudent) else model_card.model_card(student)


def _items(lines: Iterable[str]) -> str:
    sentences = [line.removeprefix("warning: ").rstrip(".") for line in lines]
    capitalised = [text if text.startswith("val/") else text[0].upper() + text[1:] for text in sentences]
    return "\n".join(f"- {text}." for text in capitalised)


def _sweep_in_words(trials: Candidates, picked: Pick, config: TrialConfig) -> list[str]:
    states = [record.state for record in trials.records]
    counts = f"{states.count('complete')} complete, {states.count('pruned')} pruned, {states.count('failed')} failed"
    return [
        f"one of {len(trials.records)} trials ({counts}) on the cohort `{trials.sweep.plan.get('store', 'unknown')}`",
        f"settings that were sampled for it: {sampled(picked.trial) or 'none'}",
        f"fingerprint of the configuration: `{config.fingerprint()}`",
    ]


def _scores(trials: Candidates, picked: Pick) -> str:
    """Returns a table of the scores as they were compared, beside those of maps that never see the image."""
    metrics = picked.trial.metrics
    scores = [score for score in trials.goals if score in metrics]
    suffixes = [suffix for suffix in BASELINE_NAMES if any(f"{score}_{suffix}" in metrics for score in scores)]
    rows = [["score", "± standard error", *(BASELINE_NAMES[suffix] for suffix in suffixes)]]
    rows.append(["---"] * len(rows[0]))
    for score in scores:
        baselines = [metrics.get(f"{score}_{suffix}") for suffix in suffixes]
        cells = ["" if value is None else f"{value:.3f}" for value in baselines]
        rows.append([f"`{score}`", with_error(picked.trial, score), *cells])
    seeds = metrics.get("seeds", 1)
    over = f"means over {seeds:.0f} seeds, with errors over patients and seeds" if seeds > 1 else "errors over patients"
    return f"The scores by which the trials were compared ({over}):\n\n" + "\n".join(map(_row, rows))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
