"""The verdict as JSON: every number of it, the protocol, the students and the ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sweep.types import Record
from sweep.verdict.answer import Verdict, needed
from sweep.verdict.inference import Contrast
from sweep.verdict.opening.openings import Opening, as_json
from sweep.verdict.protocol import Protocol, tested_name
from sweep.verdict.results.wording import sentence
from sweep.verdict.training.choice import Choice

FORMAT = 2  # 1 had scores on the tested part under names of validation, and `p` and `adjusted_p`


@dataclass(frozen=True)
class External:
    """The verdict on a cohort that no student has seen.

    Attributes:
        name: its reader and its fingerprint.
        is_declared: whether it stands in the frozen protocol.
        notes: how its scores differ from those on the students' own cohort, as sentences.
        openings: the ledger of this cohort.
    """

    name: str
    is_declared: bool
    verdict: Verdict
    notes: Sequence[str]
    openings: Sequence[Opening]

    def lines(self) -> list[str]:
        """Returns which cohort it is, and what a reader must know of it, as sentences."""
        patients = self.verdict.patients
        declared = "stands in the frozen protocol" if self.is_declared else "was added after the protocol was frozen"
        return [
            f"Another cohort, {self.name}: {patients.all} patients, {patients.rarer} of the rarer class and "
            f"{patients.with_roi} with a region. No student has seen it.",
            f"It {declared}. Its p-values are adjusted among themselves.",
            *self.notes,
        ]


@dataclass(frozen=True)
class Circumstances:
    """How a verdict came about.

    Attributes:
        frozen: when the protocol was frozen, as ISO 8601.
        choices: what was chosen in the sweep; or, where the search was repeated, in each fold.
        trained: the trials whose students were tested.
        openings: the ledger of the cohort.
        command: the command line.
        versions: versions of Python and of the main libraries, and the commit of the code.
        notes: what a reader must know of the tested patients or of their openings, as sentences.
        external: the verdict on an external cohort, if there is one.
    """

    frozen: str
    choices: Sequence[Choice]
    trained: Sequence[Record]
    openings: Sequence[Opening]
    command: str
    versions: Mapping[str, str]
    notes: Sequence[str] = ()
    external: External | None = None


def content_of(protocol: Protocol, verdict: Verdict, circumstances: Circumstances) -> dict[str, Any]:
    """Returns the content of verdict.json. Values that cannot be determined are null."""
    content = {
        "format": FORMAT,
        "sweep": protocol.sweep,
        "protocol": protocol.model_dump(mode="json") | {"hash": protocol.hash, "frozen": circumstances.frozen},
        **_of_verdict(protocol, verdict),
        "notes": list(circumstances.notes),
        "external": _of_external(protocol, circumstances.external),
        "validation": validation_scores(protocol, circumstances.trained),
        **_of_choices(protocol, circumstances.choices),
        "ledger": as_json(circumstances.openings),
        "command": circumstances.command,
        "versions": dict(circumstances.versions),
    }
    return dict(_finite(content))


def _of_choices(protocol: Protocol, choices: Sequence[Choice]) -> dict[str, Any]:
    """Returns the finalists and what was chosen; with a search in each fold, as a list over the folds."""
    contents = [
        {"finalists": [asdict(result) for result in each.results], "chosen": dict(each.chosen)} for each in choices
    ]
    return {"searches": contents} if protocol.space else contents[0]


def _of_external(protocol: Protocol, external: External | None) -> dict[str, Any] | None:
    if external is None:
        return None
    return {
        "cohort": external.name,
        "in_protocol": external.is_declared,
        "notes": list(external.notes),
        **_of_verdict(protocol, external.verdict),
        "ledger": as_json(external.openings),
    }


def _of_verdict(protocol: Protocol, verdict: Verdict) -> dict[str, Any]:
    """Returns the answers on one cohort, with everything that they rest on."""
    return {
        "answers": [
            {
                "goal": answer.key.goal,
                "score": tested_name(answer.key.goal),
                "arm": answer.key.treated,
                "reference": answer.key.reference,
                "outcome": answer.outcome,
                "sentence": sentence(answer, verdict, protocol),
                "reasons": list(answer.reasons),
                "smallest_difference": protocol.smallest(answer.key.goal),
                **_numbers(answer.contrast),
                "p_holm": answer.decision.adjusted_p,
                "power": answer.power,
                "patients_needed": needed(answer, protocol),
            }
            for answer in verdict.answers
        ],
        "exploratory": [
            {"score": tested_name(key.goal), **key._asdict(), **_numbers(contrast)}
            for key, contrast in verdict.exploratory.items()
        ],
        "patients": asdict(verdict.patients),
        "scores": {
            arm: {tested_name(name): each.value_K.tolist() for name, each in of_arm.items()}
            for arm, of_arm in verdict.scores.items()
        },
    }


def _numbers(contrast: Contrast) -> dict[str, Any]:
    """Returns the numbers of a contrast. Its p-value is that of a single test."""
    return {"p_unadjusted" if key == "p" else key: value for key, value in asdict(contrast).items()}


def validation_scores(protocol: Protocol, records: Sequence[Record]) -> dict[str, dict[str, list[float]]]:
    """Returns the validation scores of the tested students by arm and score, in the order of the seeds."""
    scores: dict[str, dict[str, list[float]]] = {}
    for record in sorted(records, key=lambda record: record.turn):
        if record.state == "complete":
            for goal in protocol.goals():
                scores.setdefault(record.arm, {}).setdefault(goal, []).append(record.metrics[goal])
    return scores


def _finite(content: Any) -> Any:
    """Replaces numbers that are not finite by None, which JSON writes as null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def dumped(content: Mapping[str, Any]) -> bytes:
    """Returns the bytes of verdict.json."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
