"""The model card of an exported student that answers, in Markdown: what it is, data, protocol, scores beside those of
answers that see no image, limits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mmpkd.export.model_card import DATA, UNKNOWN_DATA
from mmpkd.scoring.stats import logit_interval
from mmpkd.vlm.exported import limits_of_sharing
from mmpkd.vlm.scores.yardsticks import GOALS
from mmpkd.vlm.student import VlmStudent

LIMITS = (
    "The scores are of the patients on whom it was chosen. On other patients they are lower as a rule: score it with "
    "`python -m mmpkd.evaluate` on questions of your own first.",
    "It answers any question about any image, also where it has learnt neither, and an answer that reads well may be "
    "wrong.",
    "It is research software and no medical device.",
)


def answer_card(student: VlmStudent) -> str:
    """Returns the model card of a student that answers."""
    card, origin, config = student.card, student.origin, student.config
    kind = "grey" if card.channels == 1 else "RGB"
    model = [
        f"A vision-language model of type `{config.model}`: an image and a question in, an answer in words and boxes "
        "out.",
        f"It sees {kind} images of {card.image_size} x {card.image_size} pixels: the longest side is scaled, and the "
        "remainder is padded evenly with black.",
    ]
    data = [
        f"{DATA.get(origin.reader, UNKNOWN_DATA)} (reader `{origin.reader}`, fingerprint `{card.cohort}`)",
        f"Training: {origin.images['train']} images of {origin.patients['train']} patients; validation: "
        f"{origin.images['val']} images of {origin.patients['val']} patients.",
    ]
    data += [f"**{limit}**" for limit in limits_of_sharing(card.credentialed, student.vlm.processor.tokens)]
    ideas = ", ".join(origin.objectives) or "none"
    protocol = [
        f"{origin.epochs} epochs, seed {origin.seed}. Learnt from a teacher: {ideas}.",
        f"Patients were split: fold {card.fold} was the validation part, and the test part was not read.",
        f"Fingerprint of the training's configuration: `{card.trial}`.",
    ]
    limits = list(LIMITS)
    if origin.pretrained:
        limits.append("Its training began from pretrained weights, whose licence applies as well.")
    parts = [("Model", model), ("Data", data), ("Protocol", protocol), ("Limits", limits)]
    sections = [f"## {title}\n\n{_items(lines)}" for title, lines in parts]
    sections.insert(3, f"## Scores\n\n{_scores(student)}")
    return "\n\n".join(sections)


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _scores(student: VlmStudent) -> str:
    """Returns a table of the goals with 95 % intervals, beside their yardsticks."""
    scores = student.origin.scores
    blind = {goal: name for name, goal in GOALS.items()}
    rows = [["score", "value", "95 % interval", "without the image"], ["---"] * 4]
    for goal in ("answer", "recall50"):
        if (value := scores.get(f"val/{goal}")) is None:
            continue
        interval = logit_interval(value, scores.get(f"val/{goal}_se", math.nan))
        between = "none" if math.isnan(interval.low) else f"{interval.low:.3f} to {interval.high:.3f}"
        yardstick = scores.get(f"val/{blind[goal]}")
        rows.append([goal, f"{value:.3f}", between, "" if yardstick is None else f"{yardstick:.3f}"])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    note = (
        f"On the {student.origin.patients['val']} validation patients, after the last epoch. Intervals are over "
        "patients, for this student alone. The last column is of the most frequent training answers and of the mean "
        "training box, which see no image."
    )
    return f"{note}\n\n{table}"
