"""Tests on a second cohort by cross-validation: each fold of its patients is sealed in turn, and the students that are
trained on the others are tested on it.

The configurations come from the search on the first cohort, so no choice has seen a patient of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, EvaluationConfig, validate
from mmpkd.export.student_file import Exported, source_of
from mmpkd.prediction.other_cohort import Home, refuse_seen
from mmpkd.scoring.replicates import FoldScorer, PartScorer, Predicted, Scored
from mmpkd.types import CohortError, ConfigError, Mistake, Strict, Task, UserError
from sweep.options import RunOptions
from sweep.storage.layout import SweepFolder
from sweep.storage.whole_files import read_sealed
from sweep.transfer.preparing import prepare_shared
from sweep.types import Record
from sweep.verdict.answer import by_arm
from sweep.verdict.folder import ConfirmationFolder, read_kept, write_sealed_at
from sweep.verdict.inference import SeedScores, widened
from sweep.verdict.opening.external import section_of
from sweep.verdict.opening.patients import Patients, patients_of
from sweep.verdict.opening.scores import ANEW, SealedPart, Trained, is_stamped, stamp_of, student_of
from sweep.verdict.power import usual_seeds
from sweep.verdict.protocol import Protocol, Wanted
from sweep.verdict.training.phases import Phase

SET_BY_FOLDS: Final = ("parts", "sealed", "fold")  # keys of a cohort


class Kept(Strict):
    """The cohort of the folds, as its file names it."""

    cohort: CohortConfig


@dataclass(frozen=True)
class Folds:
    """A cohort, prepared once for each of its folds, which is the sealed part then.

    Attributes:
        config: the cohort as it was given.
        stores: the cohort, prepared for each fold. All have the same samples in the same order.
        shared: what a reader must know of patients that both cohorts may share, see `refuse_seen`.
        cost: what a training costs here, as a multiple of one on the cohort of the search: the ratio of the numbers of
            training samples.
    """

    config: CohortConfig
    stores: Sequence[Store]
    shared: Sequence[str]
    cost: float
    part = "the cohort of the folds"

    @property
    def name(self) -> str:
        """The reader, which says which data set it is, and the fingerprint of the first store."""
        return f"{self.stores[0].manifest['reader']} {self.stores[0].fingerprint}"

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the tests, as sentences."""
        how = (
            f"The patients of {self.name} are tested in {len(self.stores)} folds, each by students that are trained on"
        )
        return [f"{how} others, with settings that are chosen on the cohort of the sweep.", *self.shared]

    @property
    def source(self) -> str:
        return source_of(self.stores[0].manifest)

    @property
    def tasks(self) -> Sequence[Task]:
        return self.stores[0].facts.tasks

    @property
    def shown(self) -> tuple[Store, NDArray[np.int64]]:
        """The first fold, whose images are drawn."""
        return self.stores[0], self.stores[0].rows("test")

    def of(self, protocol: Protocol, wanted: Wanted, is_frozen: bool) -> Protocol:
        """Returns a proposed protocol with the tests on this cohort in the place of the test part, or a frozen one as
        it is.

        Raises:
            ConfigError: a score of regions is wanted, and there are none; or a frozen protocol names another cohort.
        """
        if is_frozen:
            if protocol.crossed != self.name:
                problem = f"the folds of this confirmation are of {protocol.crossed}, got {self.name}"
                raise ConfigError.at("cohort", f"{problem}; put the data back, or begin a new one with new=true")
            return protocol
        facts, count = self.stores[0].facts, len(np.unique(self.stores[0].patient_N))
        localisation = protocol.localisation if facts.roi_labels else None
        if wanted.localisation not in (None, "none") and localisation is None:
            raise ConfigError.at("localisation", f"the cohort of the folds, {self.name}, has no regions; leave it out")
        first, seeds = protocol.seeds[0], wanted.seeds or usual_seeds(count)
        changed = {"localisation": localisation, "seeds": tuple(range(first, first + seeds)), "test_patients": count}
        return protocol.model_copy(update={**changed, "folds": len(self.stores), "crossed": self.name})

    def phases(self, training: Phase, goals: Sequence[str]) -> list[Phase]:
        """Returns the trainings of each fold: those of `training`, on its cohort."""
        cohorts = sealed_in_turn(self.config, len(self.stores))
        return [training.on(cohort, f"fold{fold}", goals) for fold, cohort in enumerate(cohorts)]

    def patients(self, goal: str) -> Patients:
        return patients_of(self.stores[0], np.arange(len(self.stores[0].sample_ids)), goal)

    def scores(
        self, folder: ConfirmationFolder, protocol: Protocol, trained: Sequence[Trained], evaluation: EvaluationConfig
    ) -> dict[str, dict[str, SeedScores]]:
        """Returns the scores over all patients by arm, in the order of the seeds. What the students of one seed predict
        for their folds is scored together.
        """
        goals = protocol.goals()
        parts = [PartScorer(store, store.rows("test"), evaluation, goals, store.rows("train")) for store in self.stores]
        predicted: dict[tuple[str, int], list[Predicted]] = {}
        for fold, (part, (sweep, records)) in enumerate(zip(parts, trained, strict=True)):
            for record in sorted(records, key=lambda record: record.turn):
                of_student = _predicted(folder, protocol, sweep, record, fold, part)
                predicted.setdefault((record.arm, record.turn), []).append(of_student)
        pooled, scored = FoldScorer(parts, goals), dict[str, list[dict[str, Scored]]]()
        for (arm, _), of_seed in predicted.items():
            scored.setdefault(arm, []).append(pooled.score(of_seed))
        return {
            arm: {name: widened(each, len(parts)) for name, each in of_arm.items()}
            for arm, of_arm in by_arm(scored).items()
        }


def _predicted(
    folder: ConfirmationFolder, protocol: Protocol, sweep: SweepFolder, record: Record, fold: int, part: PartScorer
) -> Predicted:
    """Returns what a student predicts for its fold. It is kept in a file, so that no student predicts twice."""
    file = folder.scores(f"fold{fold}", record.number)
    content = read_sealed(file, ANEW)
    if not is_stamped(content, protocol, record):
        exported = student_of(sweep, record)
        assert isinstance(exported, Exported), "students that answer are refused before"
        outputs = part.predict(exported.student)
        values = {
            name: [[None if np.isnan(value) else float(value) for value in value_R] for value_R in value_NR]
            for name, value_NR in outputs.value_NR.items()
        }
        content = stamp_of(protocol, record) | {"logits": outputs.logits_NK.tolist(), "values": values}
        write_sealed_at(file, content)
    try:
        arrays = {name: np.array(value_NR, np.float64) for name, value_NR in content["values"].items()}
        return Predicted(np.array(content["logits"], np.float64), arrays)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise UserError(f"{file}: does not hold the predictions of a student; delete it, {ANEW}") from None


def folds_of(count: int, file: str, folder: ConfirmationFolder, own: SealedPart, options: RunOptions) -> Folds:
    """Prepares a cohort for each of its folds. No score is read.

    Args:
        count: number of folds.
        file: a YAML file with a section `cohort`; an empty text for the cohort that the confirmation has already.
        own: the cohort of the search.

    Raises:
        UserError: it cannot be prepared, has too few patients, or shares patients with the cohort of the search.
    """
    if file:
        section = section_of(file, "cohort")
    elif kept := read_kept(folder.crossed, Kept, "cohort"):
        section = kept.cohort.model_dump(mode="json", exclude=set(SET_BY_FOLDS))
    else:
        problem = f"folds={count} tests on a cohort that the search has not seen, which cohort=FILE names"
        raise ConfigError.at("cohort", f"{problem}: a YAML file with a section `cohort:`")
    given = _given(section, own.store.facts.image_size)
    shared = _refuse_searched(own.store, stores_of(given, count, options, first_only=True)[0], given)
    stores = stores_of(given, count, options)
    return Folds(given, stores, shared, len(stores[0].rows("train")) / len(own.train_rows))


def stores_of(config: CohortConfig, count: int, options: RunOptions, first_only: bool = False) -> list[Store]:
    """Prepares a cohort for each of its folds.

    Args:
        first_only: whether to return the store of the first fold only, which holds the same patients as the others.

    Raises:
        UserError: it cannot be prepared, or not be divided so.
    """
    cohorts = sealed_in_turn(config, count)
    try:
        return [prepare_shared(prepare, each, options)[0] for each in cohorts[: 1 if first_only else count]]
    except CohortError as error:
        raise ConfigError.at("folds", f"the cohort cannot be divided into {count} folds: {error}") from None
    except ConfigError as error:
        mistakes = [
            Mistake("folds", f"{problem.partition(';')[0]}; leave folds out")
            if path == "cohort.parts"
            else Mistake(path, problem)
            for path, problem in error.mistakes
        ]
        raise ConfigError(mistakes) from None


def _given(section: dict[str, Any], image_size: int) -> CohortConfig:
    if given := [key for key in SET_BY_FOLDS if key in section]:
        raise ConfigError([Mistake(f"cohort.{key}", "folds=n seals each part in turn; leave it out") for key in given])
    config = validate(CohortConfig, {**section, "image_size": image_size}, "cohort")
    return config.model_copy(update={"root": config.root and config.root.absolute()})


def sealed_in_turn(config: CohortConfig, count: int) -> list[CohortConfig]:
    """Returns the cohort of each fold. Only a comparison with another cohort reads `own_numbering`."""
    dealt = config.model_copy(update={"own_numbering": False, "parts": count})
    return [dealt.model_copy(update={"sealed": fold}) for fold in range(count)]


def _refuse_searched(own: Store, store: Store, config: CohortConfig) -> list[str]:
    """Checks that the search has not seen the patients of a cohort, and returns notes, see `refuse_seen`.

    Raises:
        ConfigError: it is the cohort of the search, or shares images or patients with it.
    """
    if source_of(own.manifest) == source_of(store.manifest):
        problem = "is the data set on which the sweep has chosen its settings, so none of its patients is unseen"
        raise ConfigError.at("cohort", f"{problem}; name another one, or confirm without folds")
    return refuse_seen(Home.of_store(own), store, config)


def keep_folds(folds: Folds, folder: ConfirmationFolder) -> None:
    """Writes which cohort is divided into folds, so that the same command without it continues."""
    content = Kept(cohort=folds.config).model_dump(mode="json", exclude={"cohort": set(SET_BY_FOLDS)})
    folder.crossed.write_bytes(yaml.safe_dump(content, sort_keys=False).encode())
