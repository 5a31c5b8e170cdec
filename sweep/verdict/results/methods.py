"""The paragraph on methods that a paper can quote, with what the CLAIM checklist asks of it (Mongan et al. 2020,
Checklist for Artificial Intelligence in Medical Imaging, Radiology: AI 2(2), items on data partitions, ground truth,
training, evaluation and statistics)."""

from __future__ import annotations

from typing import Final

from mmpkd.scoring.replicates import REPLICATES
from sweep.space.search_config import is_of_places
from sweep.verdict.answer import Verdict
from sweep.verdict.inference import overlap
from sweep.verdict.opening.openings import SHOWN_DIGITS
from sweep.verdict.protocol import Protocol, tested_name
from sweep.verdict.results.record import Circumstances
from sweep.verdict.training.phases import SHUFFLED, SMOOTHED

OF_ANSWERS: Final = (
    "All scores of answers are means over modalities without weights: of test/answer, over tasks as well, of the "
    "answers that contain the true one where it has at most three words, and of ROUGE-L elsewhere; of test/recall50, "
    "of the true boxes that a predicted box meets with an intersection over union above 0.5."
)


def methods(protocol: Protocol, verdict: Verdict, circumstances: Circumstances) -> str:
    """Returns the paragraph."""
    openings, versions, external = len(circumstances.openings), circumstances.versions, circumstances.external
    patients, reference = verdict.patients, protocol.reference
    controls, trained = [], [control for control in protocol.controls if control in verdict.scores]
    if any(control.endswith(SHUFFLED) for control in trained):
        whom = "patients" if protocol.of_answers else "patients of the same labels"
        controls.append(f"the same training with the teacher's outputs exchanged between {whom}")
    if any(control.endswith(SMOOTHED) for control in trained):
        controls.append("label smoothing of the entropy of the teacher's predictions, without a teacher")
    seen, taught = "the image only", " that sees a privileged modality"
    if protocol.of_answers:
        seen, taught = "an image and a question", ""
    sentences = [
        f"Students that see {seen} were trained with and without a teacher{taught} ({', '.join(protocol.arms)} against "
        f"{reference}).",
        _searched(protocol),
        f"The chosen configurations were trained on {len(protocol.seeds)} further seeds"
        + (f", together with controls: {'; and '.join(controls)}." if controls else "."),
        f"The protocol was frozen on {circumstances.frozen} (SHA-256 {protocol.hash[:SHOWN_DIGITS]}), before "
        "any of these trainings.",
        f"{_tested(protocol)} ({patients.all} patients, {patients.in_words(protocol.goals())}) "
        + (
            "was opened once."
            if openings == 1
            else f"has been opened {openings} times by confirmations, this one included."
        ),
        "The score of an arm is the mean over its seeds. The variance of a difference is the sum of its bootstrap "
        f"variance over patients ({REPLICATES:,} replicates, shared by all arms), the variances of means over seeds, "
        "and what the search adds, which the finalists show; intervals are Student's t with Satterthwaite's degrees "
        "of freedom, and p-values of the primary contrasts were adjusted by Holm's method.",
    ]
    if protocol.folds:
        sentences.append(
            "In the cross-validation the predictions of all folds were scored together, and an AUROC counts pairs of "
            "patients of one fold. Because the folds share training patients, the variance over patients was "
            f"multiplied by {overlap(protocol.folds):.3g} (Nadeau and Bengio 2003)."
        )
    if protocol.of_answers:
        sentences.append(OF_ANSWERS)
    for goal in filter(is_of_places, protocol.goals()):
        blind = "maps that ignore the image, above all the mean region of interest of the training patients"
        blind = "the mean box of the training answers" if protocol.of_answers else blind
        sentences.append(
            f"A gain in {tested_name(goal)} is claimed only if the arm also exceeds its shuffled control and {blind}."
        )
    if external is not None:
        declared = "declared in the protocol" if external.is_declared else "added after the protocol was frozen"
        sentences.append(
            f"The same students were scored on another cohort ({external.name}, {external.verdict.patients.all} "
            f"patients), {declared}, with the same contrasts as a family of its own."
        )
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name != "commit")
    sentences.append(f"Software: {libraries}; code {versions.get('commit') or 'of an installed package'}.")
    return " ".join(sentences)


def _searched(protocol: Protocol) -> str:
    """Returns how configurations were found, as a sentence."""
    finalists = f"the best by {protocol.goal} on validation among its"
    chosen = f"were trained on {len(protocol.choose_seeds)} fresh seeds, and one of each arm was chosen by its mean"
    if protocol.space:
        return (
            f"Inside each fold, all arms were searched anew with equal budgets ({protocol.trials} configurations of "
            f"each, on the patients of the other folds); up to {protocol.finalists_in_fold} finalists of each arm, "
            f"{finalists} complete trials, {chosen}."
        )
    count = len(next(iter(protocol.finalists.values())))
    return (
        f"All arms were searched with equal budgets; {count} finalists of each arm, {finalists} first "
        f"{protocol.trials} complete trials, {chosen}."
    )


def _tested(protocol: Protocol) -> str:
    """Returns the subject of a sentence on what was opened, after a sentence on who had not read it."""
    if protocol.space:
        return (
            f"The students were tested by nested cross-validation with {protocol.folds} folds that are disjoint by "
            "patient: one fold is tested, another one validates, and the others train. Search, choice and training did "
            f"not read the fold that was tested. An earlier search ({protocol.sweep}) of the same cohort gave its "
            "space and no configuration. The cohort"
        )
    if not protocol.folds:
        return "Parts are disjoint by patient. The test part was read neither by the search nor by the choice. It"
    return (
        f"The students were tested on another cohort by cross-validation with {protocol.folds} folds that are disjoint "
        "by patient: one fold is tested, another one validates, and the others train. This cohort was read neither by "
        "the search nor by the choice. It"
    )
