"""What campaigns of trainings share: runs in worker processes, kept and not run again, and how figures are written."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import sklearn
import timm
import torch
from rich.console import Console
from rich.progress import Progress

import mmpkd
from mmpkd.config import TrialConfig
from mmpkd.machine.checksums import fingerprint
from mmpkd.scoring.stats import Interval, paired_interval

Key = TypeVar("Key", bound=Hashable)
Scores = dict[str, dict[int, dict[str, float]]]  # arm, seed, score


def run(
    configs: Mapping[Key, TrialConfig],
    train_one: Callable[[TrialConfig, Path], Any],
    workers: int,
    cache: Path,
    kept: Path | None = None,
) -> dict[Key, Any]:
    """Returns what `train_one` returns for every configuration, in their order. Runs that `kept` holds are left out.

    A kept run is found by its configuration, the source of `mmpkd` and the versions beneath it.

    Args:
        train_one: a module's function, of a configuration and the cache; JSON can hold what it returns.
    """
    code = fingerprint([source_hash(), versions()])
    done: dict[str, Any] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    address = {key: f"{code}-{config.fingerprint()}" for key, config in configs.items()}
    missing = [key for key in configs if address[key] not in done]
    spawn = multiprocessing.get_context("spawn")  # a forked torch would inherit locks
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=len(configs), completed=len(configs) - len(missing))
        futures = {pool.submit(train_one, configs[key], cache): key for key in missing}
        for future in as_completed(futures):
            done[address[futures[future]]] = future.result()
            progress.advance(bar)
            if kept:
                write(kept, done)
    return {key: done[address[key]] for key in configs}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every campaign has; `doc` is the text of its help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", help="other seeds than the committed ones")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def seeds_of(
    parser: argparse.ArgumentParser, chosen: Sequence[int] | None, committed: Sequence[int], what: str = "an interval"
) -> tuple[int, ...]:
    """The seeds of `--seeds` without repetitions, or the committed ones. Ends the command if there is only one."""
    seeds = tuple(dict.fromkeys(chosen or committed))
    if len(seeds) < 2:
        parser.error(f"--seeds: {what} needs at least two different ones")
    return seeds


def differences(scores: Scores, score: str, treated: str, control: str) -> list[float]:
    """One arm minus another, by seed."""
    return [scores[treated][seed][score] - scores[control][seed][score] for seed in scores[control]]


def difference(scores: Scores, score: str, treated: str, control: str) -> Interval:
    """The mean and the 95 % t interval over seeds of one arm minus another."""
    return paired_interval(differences(scores, score, treated, control))


def conclude(path: Path | None, configs: Iterable[TrialConfig], figures: Mapping[str, Any], name: str) -> NoReturn:
    """Writes the figures of a campaign, says which of its claims hold, and ends with status 1 if one fails.

    Args:
        figures: with `claims`, which says of each claim whether it holds.
    """
    claims = figures["claims"]
    if path:
        listed = [config.model_dump(mode="json") for config in configs]
        content = {"command": sys.argv, "versions": versions(), "source": source_hash(), "configs": listed}
        write(path, content | dict(figures))
    for claim, holds in claims.items():
        print("PASS" if holds else "FAIL", claim)
    print("PASS" if all(claims.values()) else "FAIL", name)
    sys.exit(not all(claims.values()))


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


def in_words(interval: Interval, form: str = "+.3f") -> str:
    """Returns the mean and the bounds of an interval as text."""
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
