"""Choosers: points of an even cover, and the parameters of a past trial."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sweep.search.choosers import CubeChooser, EvenCover, NotInSpace, ReplayChooser
from sweep.space.draw import draw
from tests.sweep.search.test_samplers import SPACE, run, sampler_of, space_of


def test_a_point_of_the_even_cover_depends_on_its_index_alone(tmp_path: Path) -> None:
    space = space_of(tmp_path, SPACE)
    cover, other = (EvenCover(space.arms["tabular"], "tabular", 0) for _ in range(2))
    forward = [cover.point(index) for index in range(9)]
    assert [other.point(index) for index in reversed(range(9))] == forward[::-1]
    assert len({str(point) for point in forward}) == 9
    assert EvenCover(space.arms["tabular"], "tabular", 1).point(0) != forward[0]
    assert EvenCover(space_of(tmp_path, "cohort: {reader: synthetic}").arms["none"], "none", 0).point(3) == {}


def test_the_even_cover_covers_branches_and_ranges_evenly(tmp_path: Path) -> None:
    cover = EvenCover(space_of(tmp_path, SPACE).arms["tabular"], "tabular", 0)
    points = [cover.point(index) for index in range(64)]

    def counts(name: str) -> Counter[Any]:
        return Counter(point[f"tabular/{name}"] for point in points if f"tabular/{name}" in point)

    # Of 64 points of a Sobol sequence one lies in each 64th of each dimension.
    assert counts("objectives") == {"soft": 32, "deep": 32}
    assert counts("optimizer.label_smoothing.maybe") == {"absent": 32, "present": 32}
    assert counts("optimizer.batch_size") == {8: 16, 9: 16, 10: 16, 11: 16}
    logs = sorted(point["tabular/optimizer.lr"] for point in points)
    assert all(1e-4 * 10 ** (index / 32) <= lr <= 1e-4 * 10 ** ((index + 1) / 32) for index, lr in enumerate(logs))
    for point in points:  # leaves outside the point's branch are left out
        assert ("tabular/objectives.soft.logits.weight" in point) == (point["tabular/objectives"] == "soft")


def test_choices_by_a_point_of_the_cube_by_hand() -> None:
    chooser = CubeChooser({"half": 0.5, "low": 0.0, "high": 0.999999, "third": 0.34})
    assert chooser.uniform("half", 2, 4, log=False) == 3
    assert chooser.uniform("half", 1e-4, 1e-2, log=True) == pytest.approx(1e-3)
    # 1 to 3 is [0.5, 3.5), with a third for each number.
    assert [chooser.integer(name, 1, 3, log=False) for name in ("low", "third", "high")] == [1, 2, 3]
    # On a log scale it is [0.5, 4.5), a factor of 9: the third lies at 0.5 x 9^0.34 = 1.055, the half at 1.5.
    assert [chooser.integer(name, 1, 4, log=True) for name in ("low", "third", "half", "high")] == [1, 1, 2, 4]
    assert [chooser.category(name, ("a", "b", "c")) for name in ("low", "third", "high")] == ["a", "b", "c"]
    assert chooser.uniform("nowhere", 0, 1, log=False) == 0.5 and chooser.category("nowhere", ("a", "b")) == "a"
    assert chooser.chosen["half"] == 2, "the last choice for each name is kept"


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
