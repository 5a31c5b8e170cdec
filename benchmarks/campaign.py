"""What campaigns of trainings share: runs in worker processes, kept and not run again, and how figures are told."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sklearn
import timm
import torch
from rich.console import Console
from rich.progress import Progress

import mmpkd
from mmpkd.config import TrialConfig
from mmpkd.machine.checksums import fingerprint
from mmpkd.scoring.stats import Interval

Key = TypeVar("Key", bound=Hashable)


def run(
    configs: Mapping[Key, TrialConfig],
    one: Callable[[TrialConfig, Path], Any],
    workers: int,
    cache: Path,
    kept: Path | None = None,
) -> dict[Key, Any]:
    """What `one` says of every configuration, in their order; runs that `kept` holds already are left out.

    A kept run is found by its configuration, the source of `mmpkd` and the versions beneath it.

    Args:
        one: a module's function, of a configuration and the cache; JSON can hold what it returns.
    """
    code = fingerprint([source_hash(), versions()])
    done: dict[str, Any] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    address = {key: f"{code}-{config.fingerprint()}" for key, config in configs.items()}
    missing = [key for key in configs if address[key] not in done]
    spawn = multiprocessing.get_context("spawn")  # a forked torch would inherit locks
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=len(configs), completed=len(configs) - len(missing))
        futures = {pool.submit(one, configs[key], cache): key for key in missing}
        for future in as_completed(futures):
            done[address[futures[future]]] = future.result()
            progress.advance(bar)
            if kept:
                write(kept, done)
    return {key: done[address[key]] for key in configs}


def source_hash() -> str:
    """Content hash of the package, so that no run of older code is taken for one of this."""
    folder = Path(str(mmpkd.__file__)).parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    modules: Sequence[Any] = (torch, timm, np, sklearn)
    return {"python": platform.python_version(), **{module.__name__: str(module.__version__) for module in modules}}


def write(path: Path, content: Mapping[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(json.dumps(content, indent=1))
    os.replace(beside, path)


def told(interval: Interval, form: str = "+.3f") -> str:
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
