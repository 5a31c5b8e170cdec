"""Vectors of configurations, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from sweep.space.draw import BoundsChooser, branches, draw
from sweep.space.encoding import encode
from sweep.space.grammar import parse
from sweep.space.space import load_space

ARM = """
lr: {log_uniform: [0.0001, 0.01]}
layers: {int: [2, 6]}
pooling: {choice: [1, mean, [a, b], true]}
fixed: 3
only: {uniform: [2, 2]}
decay: {maybe: {uniform: [0, 0.5]}}
objectives:
  one_of:
    soft: {weight: {uniform: [1, 3]}}
    near: {layer: {choice: [x]}}
"""


def test_coordinates_by_hand() -> None:
    node = parse(yaml.safe_load(ARM), "", mistakes := [])
    assert node is not None and not mistakes
    rows = [
        {
            "a/lr": 1e-3,
            "a/layers": 3,
            "a/pooling": "mean",
            "a/only": 2.0,
            "a/decay.maybe": "present",
            "a/decay": 0.1,
            "a/objectives": "soft",
            "a/objectives.soft.weight": 1.5,
        },
        {
            "a/lr": 1e-4,
            "a/layers": 6,
            "a/pooling": True,
            "a/only": 2.0,
            "a/decay.maybe": "absent",
            "a/objectives": "near",
            "a/objectives.near.layer": "x",
        },
    ]
    expected = [
        # lr, layers, four labels of pooling, maybe, decay, two labels of objectives, weight
        [0.5, 0.25, 0, 1, 0, 0, 1, 0.2, 1, 0, 0.25],
        [0.0, 1.0, 0, 0, 0, 1, 0, 0.5, 0, 1, 0.5],
    ]
    assert encode(node, "a", rows) == pytest.approx(np.array(expected))
    labels = [{**rows[0], "a/pooling": label} for label in ("1", '["a", "b"]', "true")]
    assert encode(node, "a", labels)[:, 2:6].tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert encode(node, "a", []).shape == (0, 11)


def test_an_arm_without_distributions_has_no_coordinates() -> None:
    node = parse({"lr": 0.1}, "", [])
    assert node is not None and encode(node, "a", [{}, {}]).shape == (2, 0)


@pytest.mark.parametrize("name", ["demo", "guidance", "all_objectives"])
def test_branches_of_shipped_spaces_differ_and_lie_in_the_unit_cube(name: str) -> None:
    space, _ = load_space(name)
    assert space is not None
    for arm, node in space.arms.items():
        labels = [branch.labels for branch in branches(node, arm, 64)]
        x_ND = encode(node, arm, [draw(node, BoundsChooser(each), arm).values for each in labels])
        assert x_ND.min(initial=0) >= 0 and x_ND.max(initial=1) <= 1
        assert len(np.unique(x_ND, axis=0)) == len(labels)
