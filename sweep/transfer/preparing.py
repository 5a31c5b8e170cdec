"""Prepares the cohort of a sweep where all workers can read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmpkd.cohort.store import STORES, Store
from mmpkd.config import CohortConfig
from mmpkd.types import UserError
from sweep.cluster import cluster_address
from sweep.options import RunOptions
from sweep.patience import is_of_store
from sweep.transfer.addresses import Place, place
from sweep.transfer.refusals import in_words
from sweep.transfer.scratch import scratch_folder
from sweep.transfer.staging import NodeCache
from sweep.types import Scratch


def prepare_shared(prepare: Callable[..., Store], cohort: CohortConfig, options: RunOptions) -> tuple[Store, Place]:
    """Returns the prepared cohort, and the cache that all machines share.

    A cohort for a cache in an object store is prepared on the disk of this machine, and copied to the store.

    Args:
        prepare: `mmpkd.cohort.prepare.prepare`.

    Raises:
        UserError: the cohort cannot be prepared, or not copied.
    """
    cache = place(options.cache, "cache")
    if cache.is_local:
        folder = Path(options.cache).absolute()
        return prepare(cohort, folder), place(folder)
    folder = scratch_folder(options.scratch) / "cache"
    with NodeCache(cache, folder, options.scratch_gigabytes) as copies:
        try:
            store = prepare(cohort, folder, shared=copies)
            copies.send(f"{STORES}/{store.path.name}")
        except OSError as error:
            if is_of_store(error):
                raise UserError(in_words(error)) from error
            raise
    return store, cache


def use_of_scratch(options: RunOptions, cache: Place, sweep_id: str) -> Scratch | None:
    """Returns the use that workers make of the disk of their node. Returns None if all files are on this machine."""
    if cache.is_local and options.folder.shared.is_local and not cluster_address():
        return None
    folder = str(Path(options.scratch).absolute()) if options.scratch else ""
    return Scratch(folder=folder, gigabytes=options.scratch_gigabytes, sweep=sweep_id)
