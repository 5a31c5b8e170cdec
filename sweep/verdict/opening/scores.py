"""Scores the students of a confirmation on a part, and keeps the scores, so that no student is scored twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.store import Store
from mmpkd.config import EvaluationConfig, TrialConfig
from mmpkd.export.student_file import Exported, source_of
from mmpkd.machine.checksums import fingerprint
from mmpkd.scoring.answers import AnswerScorer
from mmpkd.scoring.replicates import REPLICATES, PartScorer, Scored
from mmpkd.types import Task, UserError
from mmpkd.vlm.config import VlmConfig
from mmpkd.vlm.student import VlmStudent
from sweep.picking.candidates import Candidates
from sweep.storage.layout import SweepFolder
from sweep.storage.whole_files import read_sealed
from sweep.students import read_answering_student, read_student
from sweep.transfer.addresses import Place
from sweep.types import Record
from sweep.verdict.answer import by_arm
from sweep.verdict.folder import ConfirmationFolder, write_sealed_at
from sweep.verdict.inference import SeedScores
from sweep.verdict.opening.ledger import TEST_PART
from sweep.verdict.opening.patients import Patients, patients_of
from sweep.verdict.protocol import Protocol
from sweep.verdict.training.phases import Phase

# A sweep with its trials, of each of which there is a student.
Trained: TypeAlias = tuple[SweepFolder, Sequence[Record]]
DIGITS: Final = 4  # of scores that are compared
ANEW: Final = "and the same command writes it anew"  # what follows if a file with scores is damaged


class Scorer(Interface):
    """Interface of what scores students on fixed patients."""

    def score(self, exported: Any) -> dict[str, Scored]:
        """Returns the goals of an exported student, and those of what ignores the image."""


@dataclass(frozen=True)
class SealedPart:
    """The sealed test part of the cohort of the search.

    Attributes:
        fold: the validation fold of this cohort.
    """

    store: Store
    fold: int
    part = TEST_PART
    notes: ClassVar[Sequence[str]] = ()
    cost = 1.0  # of a training, as a multiple of one of the search

    @property
    def source(self) -> str:
        return source_of(self.store.manifest)

    @property
    def stores(self) -> Sequence[Store]:
        """The prepared cohort of each part that is tested."""
        return [self.store]

    @property
    def tasks(self) -> Sequence[Task]:
        return self.store.facts.tasks

    @property
    def shown(self) -> tuple[Store, NDArray[np.int64]]:
        """The cohort, and the samples that may be drawn."""
        return self.store, self.store.rows("test")

    @property
    def train_rows(self) -> NDArray[np.int64]:
        return self.store.rows("train", self.fold)

    def choice_rows(self, seeds: int) -> NDArray[np.int64]:
        """Returns the samples on which configurations with so many seeds are validated, one fold after another."""
        folds = {self._fold_of(turn) for turn in range(seeds)}
        return np.sort(np.concatenate([self.store.rows("val", fold) for fold in sorted(folds)]))

    def _fold_of(self, turn: int) -> int:
        return (self.fold + turn) % self.store.num_folds

    def phases(self, training: Phase, goals: Sequence[str]) -> list[Phase]:
        return [training]

    def patients(self, goal: str) -> Patients:
        return patients_of(self.store, self.store.rows("test"), goal)

    def scores(
        self, folder: ConfirmationFolder, protocol: Protocol, trained: Sequence[Trained], evaluation: EvaluationConfig
    ) -> dict[str, dict[str, SeedScores]]:
        """Returns the scores by arm, in the order of the seeds."""
        scorer = scorer_on(self.store, self.store.rows("test"), evaluation, protocol.goals(), self.train_rows)
        return scores_of(folder, protocol, *trained[0], "test", lambda _: scorer)

    def of_choice(
        self,
        folder: ConfirmationFolder,
        protocol: Protocol,
        trained: Trained,
        evaluation: EvaluationConfig,
        phase: str,
    ) -> dict[str, dict[str, SeedScores]]:
        """Returns the scores of the finalists on validation patients, by the finalist, in the order of the seeds. A
        finalist that failed on a seed is left out.

        Where patients are divided into folds, each further seed of a configuration validates on the next fold (see
        `repeat_config`), and its student is scored there: it has learned from the patients of the others.
        """
        scorers: dict[int, Scorer] = {}

        def scorer_of(record: Record) -> Scorer:
            fold = self._fold_of(record.turn)
            if fold not in scorers:
                val, train = self.store.rows("val", fold), self.store.rows("train", fold)
                scorers[fold] = scorer_on(self.store, val, evaluation, protocol.goals(), train)
            return scorers[fold]

        part, seeds = f"{phase}-own-fold", len(protocol.choose_seeds)
        scores = scores_of(folder, protocol, *trained, part, scorer_of)
        return {label: of_label for label, of_label in scores.items() if of_label[protocol.goal].seeds == seeds}


def scorer_on(
    store: Store,
    rows: NDArray[np.int64],
    evaluation: EvaluationConfig,
    goals: Sequence[str],
    train_rows: NDArray[np.int64],
) -> Scorer:
    """Returns what scores the students of a cohort on some of its samples."""
    if store.facts.questions is not None:
        return AnswerScorer(store, rows, goals, train_rows, evaluation.batch_size)
    return PartScorer(store, rows, evaluation, goals, train_rows)


def evaluation_of(trials: Candidates) -> EvaluationConfig:
    """Returns how the students are scored, which is the same for all trials of a sweep."""
    return trials.config_of(trials.records[0]).evaluation


def scores_of(
    folder: ConfirmationFolder,
    protocol: Protocol,
    trained: SweepFolder,
    records: Sequence[Record],
    part: str,
    scorer_of: Callable[[Record], Scorer],
) -> dict[str, dict[str, SeedScores]]:
    """Returns the scores of the students on a part, by arm, in the order of their seeds.

    Args:
        trained: the sweep that trained the students.
        part: names the part in the files that keep the scores.
        scorer_of: function that returns the scorer for the student of a trial.

    Raises:
        UserError: a student is gone, damaged or another one, or a file with scores is.
    """
    scores: dict[str, list[dict[str, Scored]]] = {}
    for record in sorted(records, key=lambda record: record.turn):
        if record.state != "complete":
            continue
        file = folder.scores(part, record.number)
        if (of_student := _read(file, protocol, record)) is None:
            of_student = scorer_of(record).score(student_of(trained, record))
            content = {name: [score.value, score.replicate_R.tolist()] for name, score in of_student.items()}
            write_sealed_at(file, stamp_of(protocol, record) | {"scores": content})
        scores.setdefault(record.arm, []).append(of_student)
    return by_arm(scores)


def result_of(scores: Mapping[str, Mapping[str, SeedScores]], protocol: Protocol) -> str:
    """Returns a hash of the primary scores of all students, rounded to four digits. Students that are trained again
    have other scores; the same students that are scored with other rounding errors have the same.
    """
    goals = protocol.goals()
    values = {
        arm: {goal: of_arm[goal].value_K.round(DIGITS).tolist() for goal in goals if goal in of_arm}
        for arm, of_arm in scores.items()
    }
    return fingerprint(values)


def stamp_of(protocol: Protocol, record: Record) -> dict[str, str]:
    """Returns what a file keeps beside scores or predictions: whose they are."""
    return {"protocol": protocol.hash, "trial": _trained_by(record)}


def is_stamped(content: Mapping[str, Any], protocol: Protocol, record: Record) -> bool:
    """Whether a file belongs to a protocol and a trial. Files of earlier versions do not name the trial."""
    stamp = stamp_of(protocol, record)
    return {"trial": stamp["trial"], **content}.items() >= stamp.items()


def student_of(trained: SweepFolder, record: Record) -> Exported | VlmStudent:
    """Returns the student of a trial.

    Raises:
        UserError: it is gone or damaged, or another training has left it.
    """
    is_answering = isinstance(TrialConfig.model_validate_json(record.config).student, VlmConfig)
    exported = (read_answering_student if is_answering else read_student)(trained, record.number)
    if exported.card.trial != (wanted := _trained_by(record)):
        where = trained.shared_checkpoints.child(str(record.number))
        problem = f"holds the student of another training ({exported.card.trial}, wanted {wanted})"
        raise UserError(f"{where}: {problem}; put back that of trial {record.number}")
    return exported


def _trained_by(record: Record) -> str:
    return TrialConfig.model_validate_json(record.config).fingerprint()


def _read(file: Place, protocol: Protocol, record: Record) -> dict[str, Scored] | None:
    """Returns the scores in a file, or None if it has none of this protocol and trial."""
    content = read_sealed(file, ANEW)
    if not is_stamped(content, protocol, record):
        return None
    try:
        scores = {
            name: Scored(float(value), np.array(of_R, float)) for name, (value, of_R) in content["scores"].items()
        }
        if any(scored.replicate_R.shape != (REPLICATES,) for scored in scores.values()):
            raise ValueError("another number of replicates")
        return scores
    except (AttributeError, LookupError, TypeError, ValueError):
        raise UserError(f"{file}: does not hold the scores of a student; delete it, {ANEW}") from None
