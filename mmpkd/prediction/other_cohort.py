"""Another cohort for students: prepared as their training images were, and refused if it is no other cohort.

What both cohorts share is found by comparing their stores. A student that is far from the store of its training has
only digests of its images: then images that are equal pixel for pixel are found, and `refuse_seen` says that nothing
else was compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmpkd import command
from mmpkd.cohort import copies, reader_for
from mmpkd.cohort.decode import Depth, depth_of
from mmpkd.cohort.formats.bit_depths import contrast_options
from mmpkd.cohort.identities import NEARLY
from mmpkd.cohort.source import scan_cohort
from mmpkd.cohort.spelling import group_loose_spellings, names_in_both
from mmpkd.cohort.store import STORES, Store
from mmpkd.config import CohortConfig
from mmpkd.export.student_file import Exported, source_of
from mmpkd.types import ConfigError, Task
from mmpkd.vlm.student import VlmStudent

CONTRAST: Final = ("window", "clahe")  # options of a cohort that belong to the student's training
OWN_NUMBERING: Final = "cohort.own_numbering=true"


@dataclass(frozen=True)
class Home:
    """The cohort on which students are trained, as far as another cohort must fit to it.

    Attributes:
        cohort: fingerprint of its store.
        source: see `source_of`.
        image_size: side of the input square, pixels.
        depth: how raw pixels become 8 bits.
        seen: digests of all its images, see `Store.digests`.
        store: its store, if it is at hand.
    """

    cohort: str
    source: str
    tasks: tuple[Task, ...]
    channels: int
    image_size: int
    depth: Depth
    seen: NDArray[np.int64]
    store: Store | None

    @classmethod
    def of_student(cls, exported: Exported | VlmStudent, cache: Path) -> Self:
        """Returns the cohort of an exported student.

        Args:
            cache: the folder of stores, which may hold the store of this cohort.

        Raises:
            CohortError: it does, but the store is damaged.
        """
        card = exported.card
        paths = [path for path in (cache / STORES).glob("*") if path.name.endswith(f"-{card.cohort}")]
        store = Store.open(paths[0]) if paths else None
        return cls(
            card.cohort, card.source, card.tasks, card.channels, card.image_size, card.depth, exported.seen, store
        )

    @classmethod
    def of_store(cls, store: Store) -> Self:
        facts, manifest = store.facts, store.manifest
        source, depth = source_of(manifest), depth_of(manifest)
        seen = store.digests()
        return cls(store.fingerprint, source, facts.tasks, facts.channels, facts.image_size, depth, seen, store)

    def is_same(self, store: Store) -> bool:
        """Whether a store is this same cohort.

        Raises:
            ConfigError: it is this data set with other options: any part may hold training patients.
        """
        if store.fingerprint != self.cohort and source_of(store.manifest) == self.source:
            problem = (
                f"the student was trained on {store.manifest['reader']}, prepared with other options or from other "
                "files"
            )
            advice = "its training patients may be in any part of this cohort; give the same options as in training"
            raise ConfigError.at("cohort", f"{problem}: {advice}")
        return store.fingerprint == self.cohort


def prepared(
    home: Home, config: CohortConfig, prepare: Callable[[Depth | None], Store], stated: Collection[str] = ()
) -> Store:
    """Returns the store of a cohort, whose raw pixels become 8 bits as in the training of the students.

    Args:
        config: the cohort, with the image size of the students.
        prepare: prepares it with a Depth; None derives the Depth from its own images.
        stated: keys of the command line, such as `cohort.window`, which are mistakes if they have no effect. In a file
            they are named in a warning, since the file may serve other purposes.

    Raises:
        ConfigError: see `Home.is_same`; or an option of contrast is stated, which the training determines.
        CohortError: the cohort cannot be prepared.
    """
    store = prepare(None)
    if home.is_same(store):
        return store
    if contrast_options(config):
        unused = "cohort.window and cohort.clahe are not used: images are prepared as for the training of the student"
        for key in CONTRAST:
            if any(word == f"cohort.{key}" or word.startswith(f"cohort.{key}.") for word in stated):
                raise ConfigError.at(f"cohort.{key}", f"{unused}; leave it out")
        command.warn([f"{unused}, {home.depth}"])
    return store if depth_of(store.manifest) == home.depth else prepare(home.depth)


def refuse_seen(home: Home, store: Store, config: CohortConfig) -> list[str]:
    """Checks that a cohort shares no image and no patient with the cohort of the students, whatever the part.

    Args:
        config: the cohort of `store`.

    Returns:
        Sentences that belong beside the scores: what could not be compared, and what the user has to judge.

    Raises:
        ConfigError: an image of the cohort is an image of the students' cohort, pixel for pixel or nearly so
            (`likeness`), or one of its patients has the name of a patient there in any spelling (`spelling`) and
            `cohort.own_numbering` is not set.
    """
    is_seen_N = _equal_images(home, store)
    is_namesake_N = np.zeros(len(is_seen_N), bool)
    notes = []
    if home.store is None:
        notes.append(
            "The store of the student's own cohort is not in cache=, so the two cohorts were not compared in full: an "
            "image that is equal pixel for pixel would have been refused, but patients of the same name and changed "
            "copies of an image go unnoticed."
        )
    else:
        pictures = store.pictures, store.perceptual_hashes(), home.store.pictures, home.store.perceptual_hashes()
        is_seen_N |= copies.shown_in_both(*pictures)
        names, others = set(map(str, store.patient_ids)), set(map(str, home.store.patient_ids))
        both = names_in_both(names, others)
        if both and config.own_numbering:
            notes.append(
                f"{_counted(len(both), len(names), 'patients')} have the name of a patient of the student's own "
                "cohort; cohort.own_numbering says that they are other people."
            )
        elif not config.own_numbering:
            is_namesake_N = np.isin(store.patient_ids, list(both))
            notes += _similar_names(names, others)
    if is_seen_N.any() or is_namesake_N.any():
        raise ConfigError.at("cohort", _refusal(store, config, is_seen_N, is_namesake_N))
    return notes


def _equal_images(home: Home, store: Store) -> NDArray[np.bool_]:
    """Returns whether each image is equal to one of the students' cohort, N. Images of a single value are not: blank
    images are alike everywhere."""
    is_equal_N = np.isin(store.digests(), home.seen)
    for row in np.flatnonzero(is_equal_N):
        grey_HW = store.pictures.grey(int(row))
        is_equal_N[row] = grey_HW.min() < grey_HW.max()
    return is_equal_N


def _similar_names(names: set[str], others: set[str]) -> list[str]:
    groups = group_loose_spellings(names | others, loosely=True)
    similar = {name for group in groups if not others.isdisjoint(group) for name in group} & (names - others)
    if not similar:
        return []
    what = f"{_counted(len(similar), len(names), 'patients')} have a name that differs from the name of a patient of"
    return [f"{what} the student's own cohort only in {NEARLY}; leave them out if they are the same people."]


def _refusal(store: Store, config: CohortConfig, is_seen_N: NDArray[np.bool_], is_namesake_N: NDArray[np.bool_]) -> str:
    problems = []
    if num_images := int(is_seen_N.sum()):
        counted = _counted(num_images, len(is_seen_N), "images")
        problems.append(f"{counted} show a picture, pixel for pixel or nearly so,")
    if num_namesakes := len(set(store.patient_N[is_namesake_N])):
        problems.append(f"{_counted(num_namesakes, len(set(store.patient_N)), 'patients')} have the name of a patient")
    problem = f"{' and '.join(problems)} of the student's own cohort (its training, validation or test part)"
    known_N = np.isin(store.patient_N, store.patient_N[is_seen_N | is_namesake_N])
    if known_N.all():
        remedy = "Name a cohort whose patients the student has not seen"
    else:
        scan = scan_cohort(config, reader_for(config))
        positions = scan.samples.index.get_indexer(pd.Index(store.sample_ids[known_N]))
        option = copies.leave_out_option(scan.samples, positions.tolist(), config)
        how = f"{option}, or the same key in its file" if option else "remove them from its source"
        remedy = f"Leave out all images of these patients: {how}"
    if num_namesakes:
        remedy += f". If these are other people, because each cohort counts its own patients, write {OWN_NUMBERING}"
        remedy += " (in the section `cohort` of a file: `own_numbering: true`)"
    return f"{problem}. {remedy}"


def _counted(amount: int, total: int, noun: str) -> str:
    return f"{amount} of its {total} {noun}"
