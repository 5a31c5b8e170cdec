"""The external cohort of a confirmation: patients of another data set, on whom its students are scored as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mmpkd.cohort.decode import Depth
from mmpkd.cohort.prepare import prepare
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig, EvaluationConfig, validate
from mmpkd.export.student_file import source_of
from mmpkd.machine.files import overridden, read_yaml
from mmpkd.prediction.other_cohort import Home, prepared, refuse_seen
from mmpkd.scoring.replicates import PartScorer
from mmpkd.scoring.saliency import MAPS, columns_explained
from mmpkd.scoring.subgroups import aligned
from mmpkd.scoring.validation import Labels
from mmpkd.types import ConfigError, Mistake, Strict
from sweep.options import RunOptions
from sweep.storage.layout import Storage
from sweep.transfer.addresses import Place
from sweep.transfer.preparing import prepare_shared
from sweep.verdict.folder import ConfirmationFolder, read_kept
from sweep.verdict.opening.ledger import Ledger

PATH = "external.cohort"  # of the section, in messages


class Kept(Strict):
    """The external cohort of a confirmation, as its file names it."""

    fingerprint: str
    cohort: CohortConfig


@dataclass(frozen=True)
class ExternalCohort:
    """A cohort that no student has seen. All its samples are scored.

    Attributes:
        labels: its labels, in the layout of the students' logits.
        lacking: labels of the students that it lacks, such as `findings/Edema`.
        shared: see `refuse_seen`.
    """

    config: CohortConfig
    store: Store
    labels: Labels
    lacking: tuple[str, ...]
    shared: tuple[str, ...]

    @property
    def name(self) -> str:
        """The reader, which says which data set it is, and the fingerprint of the store."""
        return f"{self.store.manifest['reader']} {self.store.fingerprint}"

    def ledger(self, cache: Place, storage: Storage) -> Ledger:
        """Returns its ledger, which counts openings of all of it."""
        part, source = f"the external cohort {self.name}", source_of(self.store.manifest)
        return Ledger.of(cache, source, storage, part, self.store)

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.arange(len(self.store.sample_ids))

    @property
    def part(self) -> str:
        """The name of the files with scores on it."""
        return f"external-{self.store.fingerprint}"

    def scorer(
        self, own: Store, train_rows: NDArray[np.int64], evaluation: EvaluationConfig, goals: Sequence[str]
    ) -> PartScorer:
        """Returns what scores students on all its samples. The mean ROI of their own training patients is a map that
        ignores the image on it as well.

        Args:
            own: the cohort of the students.
            train_rows: their training samples.
        """
        rows = train_rows if self.shares_regions(own) else None
        return PartScorer(self.store, self.rows, evaluation, goals, rows, self.labels, own)

    def notes(self, localisation: str | None, own: Store) -> list[str]:
        """Returns how scores on it differ from those on the students' own cohort, as sentences.

        Args:
            localisation: the score of ROIs that is compared, if any.
            own: the cohort of the students.
        """
        notes = list(self.shared)
        if self.lacking:
            notes.append(f"It lacks the labels {', '.join(self.lacking)}, so its scores are means over the others.")
        if localisation and not self.store.facts.roi_labels:
            notes.append(f"It has no regions, so {localisation} is not compared on it.")
        elif localisation and not self.shares_regions(own):
            notes.append("Its regions have other labels, so the mean training ROI is not among the maps compared.")
        return notes

    def shares_regions(self, own: Store) -> bool:
        """Whether its regions have the same labels as those of the students' own cohort."""
        return self.store.facts.roi_labels == own.facts.roi_labels


def section_of(file: str, option: str = "external") -> dict[str, Any]:
    """Returns the section `cohort` of a file.

    Args:
        option: the word of the command line that names the file.

    Raises:
        UserError: there is no such file, or no such section.
    """
    section = overridden(read_yaml(Path(file)), ()).get("cohort")
    if not isinstance(section, dict):
        raise ConfigError.at(option, f"{file} has no section `cohort:`; write one, as mmpkd.evaluate takes it")
    return section


def external_cohort(
    section: Mapping[str, Any], own: Store, evaluation: EvaluationConfig, options: RunOptions
) -> ExternalCohort:
    """Prepares an external cohort as the images of the students, and checks that it can be scored. No score is read.

    Args:
        section: the content of a section `cohort`.
        own: the cohort of the students.
        evaluation: how the students are scored.

    Raises:
        UserError: it cannot be prepared, is the students' own cohort, shares images or patients with it, or has no
            label in common.
    """
    home = Home.of_store(own)
    config = validate(CohortConfig, {**section, "image_size": home.image_size}, PATH)
    config = config.model_copy(update={"root": config.root and config.root.absolute()})

    def with_depth(depth: Depth | None) -> Store:
        store = prepare_shared(partial(prepare, depth=depth, folds=False), config, options)[0]
        if store.fingerprint != home.cohort and source_of(store.manifest) == home.source:
            problem = "is the data set of the sweep, prepared with other options or from other files"
            raise ConfigError.at("cohort", f"{problem}, so it may hold patients of training; name another data set")
        return store

    try:
        store = prepared(home, config, with_depth)
        if home.is_same(store):
            raise ConfigError.at("cohort", "is the cohort of the sweep itself; name one that its students never saw")
        shared = tuple(refuse_seen(home, store, config))
        tasks, target_NK, known_NK = aligned(home.tasks, home.channels, store)
        if MAPS[evaluation.map].per_label:
            columns_explained(store.facts.roi_labels, tasks)
    except ConfigError as error:
        raise ConfigError([Mistake(f"external.{path}", problem) for path, problem in error.mistakes]) from None
    names = [f"{task.name}/{name}" for task in home.tasks for name in task.logit_names]
    lacking = tuple(name for name, known_N in zip(names, known_NK.T, strict=True) if not known_N.any())
    return ExternalCohort(config, store, Labels(tasks, target_NK, known_NK), lacking, shared)


def external_of(
    file: str,
    in_protocol: str,
    folder: ConfirmationFolder,
    own: Store,
    evaluation: EvaluationConfig,
    options: RunOptions,
) -> ExternalCohort | None:
    """Returns the external cohort that the command line names, else the one that the confirmation has already, if any.

    Args:
        file: the value of `external=`, or an empty text.
        in_protocol: fingerprint of the external cohort of the protocol, or an empty text.
        own: the cohort of the students.

    Raises:
        UserError: it cannot be scored, or the confirmation has another one.
    """
    kept = read_kept(folder.external, Kept, "external")
    expected = in_protocol or (kept.fingerprint if kept else "")
    section = section_of(file) if file else kept.cohort.model_dump(mode="json") if kept else None
    if section is None:
        if expected:
            raise ConfigError.at("external", f"the protocol names the external cohort {expected}; give its file")
        return None
    external = external_cohort(section, own, evaluation, options)
    if expected and external.store.fingerprint != expected:
        problem = f"this confirmation has the external cohort {expected}, got {external.store.fingerprint}"
        raise ConfigError.at("external", f"{problem}; put its data back, or begin a new confirmation with new=true")
    return external


def keep(external: ExternalCohort, folder: ConfirmationFolder) -> None:
    """Writes which external cohort a confirmation has, so that the same command without it continues."""
    content = Kept(fingerprint=external.store.fingerprint, cohort=external.config).model_dump(mode="json")
    folder.external.write_bytes(yaml.safe_dump(content, sort_keys=False).encode())


def refuse_another(ledgers: Sequence[Ledger], protocol: str) -> None:
    """Checks that a confirmation has opened nothing else than what it opens now. The file that keeps which external
    cohort it has may be gone, and a second cohort in its place would be a choice between two results.

    Args:
        ledgers: those of the cohort and of the external cohort, if there is one.
        protocol: the hash of its protocol.

    Raises:
        ConfigError: it has opened another external cohort.
    """
    for source, openings in ledgers[0].everywhere().items():
        known = [each.cohort for each in ledgers if each.source == source]
        for opening in openings:
            if opening.protocol == protocol and not (known and opening.cohort in ("", *known)):
                now = "another one is named" if len(ledgers) > 1 else "none is named"
                which = f"the external cohort {opening.cohort or source}"
                problem = f"this confirmation has opened {which} at {opening.time}, and now {now}"
                advice = "give the file of that cohort again, or begin a new confirmation with new=true"
                raise ConfigError.at("external", f"{problem}; {advice}")
