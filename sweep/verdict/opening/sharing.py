"""Finds images of a cohort that an earlier opening has shown, although the data set has another key in the ledger: a
corrected label in a user's table, another reader, or images that were written anew.

Images are compared by their perceptual hashes (`mmpkd.cohort.likeness`), which hardly depend on the size at which they
are stored. Of the 252 images of BrEaST, prepared at 64 and at 96 pixels, the hashes of the same image differ in at most
2 bits, and those of two images in at least 14.

Shape letters: N images of a cohort, M opened images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from mmpkd.cohort.likeness import NO_HASH, Hashes
from mmpkd.cohort.store import Store

MAX_BITS: Final = 3  # in which the hashes of one image may differ
MOST: Final = 0.5  # a share of the images from which on a cohort counts as opened
BLOCK: Final = 1 << 22  # pairs compared at once
DIGITS: Final = 16  # of a hash as text


@dataclass(frozen=True)
class Images:
    """Perceptual hashes of images, without those that have none.

    Attributes:
        opened: the images of the part that is opened, each once, ascending.
        cohort: those of the whole cohort.
    """

    opened: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    cohort: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))

    @classmethod
    def of(cls, store: Store, is_whole: bool) -> Self:
        """Returns the images of a store. No pixel and no label is read, but from stores of old versions.

        Args:
            is_whole: whether all of it is opened, and not the test part alone.
        """
        hash_N = store.perceptual_hashes()
        is_opened_N = np.full(len(hash_N), True) if is_whole else store.split_N == "test"
        return cls(_known(hash_N[is_opened_N]), _known(hash_N))

    @property
    def text(self) -> str:
        """The opened images as text, 16 hex digits each."""
        return self.opened.astype(">u8").tobytes().hex()

    def shared_with(self, text: str) -> str:
        """Returns how an earlier opening has shown this cohort, in words; empty if it has not.

        It has if at least half of its images are in this cohort, whatever the part, or if it has shown at least half
        of the part that is opened now. Its images count in the whole cohort because a changed label or a new patient
        deals the parts anew, so that the parts alone may share few images.

        Args:
            text: the images of the earlier opening, as `text` returns them.
        """
        earlier = np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)
        if not earlier.size or not self.cohort.size:
            return ""
        again, here = int(is_among(self.opened, earlier).sum()), int(is_among(earlier, self.cohort).sum())
        if here < MOST * earlier.size and not 0 < MOST * self.opened.size <= again:
            return ""
        return (
            f"another version of this data: {here} of the {earlier.size} images that were opened then are in this "
            f"cohort, and {again} of the {self.opened.size} images to be tested were opened then"
        )


def _known(hashes: Hashes) -> Hashes:
    known: NDArray[np.uint64] = np.unique(hashes[hashes != NO_HASH]).astype(np.uint64)
    return known


def is_among(hash_N: Hashes, hash_M: Hashes) -> NDArray[np.bool_]:
    """Returns whether each image is one of the others, N: whether their hashes differ in at most `MAX_BITS` bits."""
    height = max(1, BLOCK // max(1, len(hash_M)))
    blocks = [hash_N[start : start + height, None] ^ hash_M for start in range(0, len(hash_N), height)]
    return np.concatenate([np.empty(0, bool), *((np.bitwise_count(each) <= MAX_BITS).any(axis=1) for each in blocks)])
