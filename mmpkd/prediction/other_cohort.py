"""Another cohort for students: prepared as their training images were, and refused if it is no other cohort."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from mmpkd import command
from mmpkd.cohort.decode import Depth, depth_of
from mmpkd.cohort.formats.bit_depths import contrast_options
from mmpkd.cohort.store import Store
from mmpkd.config import CohortConfig
from mmpkd.export.student_file import Exported, source_of
from mmpkd.types import ConfigError, Task

CONTRAST: Final = ("window", "clahe")  # options of a cohort that belong to the student's training


@dataclass(frozen=True)
class Home:
    """The cohort on which students are trained, as far as another cohort must fit to it.

    Attributes:
        cohort: fingerprint of its store.
        source: see `source_of`.
        image_size: side of the input square, pixels.
        depth: how raw pixels become 8 bits.
        seen: digests of all its images, see `Store.digests`.
    """

    cohort: str
    source: str
    tasks: tuple[Task, ...]
    channels: int
    image_size: int
    depth: Depth
    seen: NDArray[np.int64]

    @classmethod
    def of_student(cls, exported: Exported) -> Self:
        card = exported.card
        return cls(card.cohort, card.source, card.tasks, card.channels, card.image_size, card.depth, exported.seen)

    @classmethod
    def of_store(cls, store: Store) -> Self:
        facts, manifest = store.facts, store.manifest
        source, depth = source_of(manifest), depth_of(manifest)
        return cls(store.fingerprint, source, facts.tasks, facts.channels, facts.image_size, depth, store.digests())

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


def refuse_seen(home: Home, store: Store, advice: str = "remove their patients from it") -> None:
    """Checks that a cohort shares no image with the cohort of the students.

    Args:
        advice: what the user can do.

    Raises:
        ConfigError: it does.
    """
    if known := int(np.isin(store.digests(), home.seen).sum()):
        problem = f"{known} of its {len(store.sample_ids)} images are images of the student's own cohort as well"
        problem += " (in its training, validation or test part)"
        raise ConfigError.at("cohort", f"{problem}: {advice}")
