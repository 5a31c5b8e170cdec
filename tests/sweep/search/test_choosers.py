"""Choosers: the parameters of a past trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.search.choosers import NotInSpace, ReplayChooser
from sweep.space.draw import draw
from tests.sweep.search.test_samplers import SPACE, run, sampler_of, space_of


def test_a_trial_is_replayed_if_the_space_holds_it(tmp_path: Path) -> None:
    space = space_of(tmp_path, SPACE)
    (proposal,) = run(sampler_of(space, "none"), [0])
    chooser = ReplayChooser(proposal.params)
    assert draw(space.arms["none"], chooser, "none").config == proposal.drawn.config
    assert chooser.distributions == proposal.distributions
    low = proposal.config.optimizer.lr
    other_spaces = {
        "narrower": (f"optimizer.lr={{log_uniform: [{low * 1.01}, 1]}}", "none/optimizer.lr"),
        "one more leaf": ("optimizer.clip_norm={uniform: [0, 1]}", "none/optimizer.clip_norm"),
        "words for numbers": ("optimizer.batch_size={choice: [8, 9, 10, 11]}", "none/optimizer.batch_size"),
    }
    for override, name in other_spaces.values():
        with pytest.raises(NotInSpace, match=name):
            draw(space_of(tmp_path, SPACE, override).arms["none"], ReplayChooser(proposal.params), "none")
