"""The model card of an exported student in Markdown: what it is, data, protocol, scores beside image-blind baselines,
limits. It states what the student's file knows, and says what the file does not know."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmpkd.export.origin import CALIBRATED, Origin
from mmpkd.export.student_file import Card, Exported
from mmpkd.export.usage import image_notes
from mmpkd.scoring.baselines import BASELINES
from mmpkd.scoring.stats import is_all_equal, logit_interval

# By reader: the published data set and its licence or terms. Where no text of the publisher was at hand to check them,
# the entry says so.
DATA: Mapping[str, str] = {
    "breast_lesions_usg": "BrEaST (Breast-Lesions-USG), TCIA, doi 10.7937/9WKK-Q141; licence CC BY 4.0",
    "cbis_ddsm": "CBIS-DDSM, TCIA, doi 10.7937/K9/TCIA.2016.7O02S9CY; licence CC BY 3.0",
    "mimic_cxr": (
        "MIMIC-CXR-JPG, PhysioNet, doi 10.13026/jsn5-t979; credentialed access, under the licence and data use "
        "agreement as published by PhysioNet for your version; check them"
    ),
    "chexlocalize": (
        "CheXlocalize, on images of CheXpert, Stanford AIMI, doi 10.1038/s42256-022-00536-x; terms as published by "
        "Stanford AIMI; check them"
    ),
    "derm7pt": "Derm7pt, http://derm.cs.sfu.ca; terms of use of its publishers",
    "radpath": "CPM-RadPath 2020, MICCAI challenge; terms of use of the challenge",
    "synthetic": "generated images; no licence is needed",
    "synthetic_vqa": "generated images; no licence is needed",
    "med_grit": "on request from the authors of BiRD, images of SAM-Med2D; research use only",
}
UNKNOWN_DATA = "a table of the user's own; the file does not know its licence"
SCORES = {
    "val/auroc": "AUROC",
    "val/auroc_patient": "AUROC by patient",
    "val/ap": "average precision",
    "val/balanced_accuracy": "balanced accuracy (at a probability of 0.5, or of the likeliest class)",
    "val/brier": "Brier score before calibration (lower is better)",
    CALIBRATED["brier"]: "Brier score (lower is better)",
    "val/ece": "calibration error before calibration (lower is better)",
    CALIBRATED["ece"]: "calibration error (lower is better)",
    "val/pointing": "pointing: the maximum of the map lies in the ROI",
    "val/mass": "mass: share of the map in the ROI",
    "val/pixel_ap": "pixel AP of the map",
}
NO_INTERVAL = (
    "`none`: no interval is computed for this score, or all resamplings of the patients give the same value. "
    "`unknown`: the patients are too few for an interval."
)
BASELINE_NAMES = {
    "chance": "uniform map",
    "content": "uniform map on the image",
    "centre": "map of the centre",
    "prior": "mean ROI of the training images",
}
assert BASELINE_NAMES.keys() == set(BASELINES)


def model_card(exported: Exported) -> str:
    """Returns the sections of the card, without a title."""
    card, origin = exported.card, exported.origin
    return "\n\n".join(
        [
            f"{_what_it_is(card)}\n\n{image_notes(card)}",
            f"## Data\n\n{_data(card, origin)}",
            f"## Protocol\n\n{_protocol(card, origin)}",
            f"## Scores\n\n{_scores(origin)}",
            f"## Limits\n\n{_limits(origin)}",
        ]
    )


def _what_it_is(card: Card) -> str:
    tasks = "\n".join(f"- `{task.name}` ({task.kind}): {', '.join(task.labels)}" for task in card.tasks)
    return f"A vision transformer (`{card.model['model']}`) that classifies an image and reads nothing else:\n\n{tasks}"


def _data(card: Card, origin: Origin | None) -> str:
    if origin is None:
        lines = ["The student's file is of an earlier version, and does not state its data set."]
    else:
        lines = [f"Data set: {DATA.get(origin.reader, UNKNOWN_DATA)}."]
        lines += [
            f"Part `{part}`: {origin.images[part]} images of {origin.patients[part]} patients."
            for part in origin.images
        ]
    lines.append(f"Fingerprint of the prepared cohort: `{card.cohort}`.")
    if card.credentialed:
        lines.append("**Access to the data is restricted. Their terms may forbid that this student is shared.**")
    return "\n".join(f"- {line}" for line in lines)


def _protocol(card: Card, origin: Origin | None) -> str:
    lines = [
        f"Patients were split: fold {card.fold} was the validation part, and the test part was not read.",
        "Temperatures and decision thresholds were fitted on the validation patients.",
        f"Fingerprint of the training's configuration: `{card.trial}`.",
    ]
    if origin is not None:
        teachers = ", ".join(origin.teachers) or "none"
        objectives = ", ".join(origin.objectives) or "none"
        lines.insert(0, f"{origin.epochs} epochs, seed {origin.seed}.")
        lines.insert(1, f"Kinds of teachers: {teachers}. Objectives besides the labels: {objectives}.")
    return "\n".join(f"- {line}" for line in lines)


def _scores(origin: Origin | None) -> str:
    if origin is None:
        return "The student's file is of an earlier version, and does not state its scores."
    shown = [name for name in SCORES if math.isfinite(origin.scores.get(name, math.nan))]
    are_calibrated = CALIBRATED["brier"] in shown
    shown = [name for name in shown if not (are_calibrated and name in ("val/brier", "val/ece"))]
    suffixes = [suffix for suffix in BASELINES if any(f"{name}_{suffix}" in origin.scores for name in shown)]
    header = ["score", "value", "95 % interval", *(BASELINE_NAMES[suffix] for suffix in suffixes)]
    rows = [header, ["---"] * len(header)]
    for name in shown:
        value, error = origin.scores[name], origin.scores.get(f"{name}_se", math.nan)
        interval = logit_interval(value, error)
        between = "unknown" if math.isnan(interval.low) else f"{interval.low:.3f} to {interval.high:.3f}"
        if f"{name}_se" not in origin.scores or is_all_equal(value, error):
            between = "none"
        baselines = [origin.scores.get(f"{name}_{suffix}") for suffix in suffixes]
        cells = ["" if baseline is None else f"{baseline:.3f}" for baseline in baselines]
        rows.append([SCORES[name], f"{value:.3f}", between, *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    calibration = "This file, of an earlier version, states no Brier score and calibration error after calibration."
    if are_calibrated:
        calibration = (
            "Brier score and calibration error are of the calibrated probabilities, which the student gives; their "
            "temperatures were fitted on these same patients."
        )
    notes = [
        f"On the {origin.patients['val']} validation patients, after the last epoch. Intervals are over patients, for "
        f"this student alone. {NO_INTERVAL} An AUROC of 0.5 is chance. {calibration}"
    ]
    if suffixes:
        notes.append(
            "The columns to the right of the interval are maps that never see the image: a student whose map is not "
            "above them has not learned where to look."
        )
    return f"{' '.join(notes)}\n\n{table}"


def _limits(origin: Origin | None) -> str:
    lines = [
        "The scores are of the patients on whom it was chosen and calibrated. On other patients they are lower as a "
        "rule: score it with `python -m mmpkd.evaluate` on data of your own first.",
        "It was trained on images of one kind. It gives a probability for any image, also for one of another kind.",
        "The map shows where the student looks, which need not be why it decides.",
        "It is research software and no medical device.",
    ]
    if origin is not None and origin.pretrained:
        lines.append("Its training began from pretrained weights, whose licence applies as well.")
    return "\n".join(f"- {line}" for line in lines)
