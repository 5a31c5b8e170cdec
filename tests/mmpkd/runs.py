"""A training before its first step, for tests of what a training is made of."""

from pathlib import Path

import torch

from mmpkd.cohort.prepare import prepare
from mmpkd.config import TrialConfig
from mmpkd.teachers.fitted import fit_teachers
from mmpkd.train import run_of
from mmpkd.training.stages import Run


def begun(config: TrialConfig, cache: Path, device: str = "cpu") -> Run:
    store = prepare(config.cohort, cache)
    return run_of(config, store, fit_teachers(config, store, cache), torch.device(device))
