"""The space-filling design, over all arms of the shipped spaces and of two spaces with nested branches."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import permutations
from typing import Any, Final

import numpy as np
import pytest
from scipy.stats import qmc

from mmpkd.types import Mistake
from sweep.search.choosers import ReplayChooser
from sweep.space.design import SpaceFillingDesign, number_at, random_points
from sweep.space.draw import PRESENCE, draw, leaf_name
from sweep.space.grammar import Choice, Maybe, Node, OneOf, Range, parse, spots
from sweep.space.loading import shipped
from sweep.space.space import load_space

BUILT: Final[dict[str, Any]] = {
    "nested": {
        "lr": {"log_uniform": [1e-4, 1e-2]},
        "batch_size": {"choice": [8, 16, 32]},
        "smoothing": {"maybe": {"uniform": [0, 0.1]}},
        "objective": {
            "one_of": {
                "soft": {"weight": {"maybe": {"log_uniform": [0.1, 10]}}, "temperature": {"choice": [1, 2, 4]}},
                "deep": {"form": {"one_of": {"near": {"layer": {"int": [1, 3]}}, "far": {"layer": {"int": [1, 12]}}}}},
                "none": {"constant": 1},
            }
        },
    },
    "flags": {name: {"maybe": 1} for name in "abcd"} | {"lr": {"uniform": [0, 1]}, "depth": {"log_int": [1, 64]}},
}
NUM_SEEDS: Final = 100
DESIGNS: Final[dict[int, tuple[Node, SpaceFillingDesign]]] = {}  # a node that is kept keeps its id


def parsed(content: Any) -> Node:
    mistakes: list[Mistake] = []
    node = parse(content, "", mistakes)
    assert node is not None and not mistakes
    return node


@pytest.fixture(scope="module")
def arms() -> dict[str, Node]:
    """Every arm, by the name of its space and its own name."""
    nodes = {f"{name}/x": parsed(content) for name, content in BUILT.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", "/data")
        for name in shipped():
            space, mistakes = load_space(name, ())
            assert space is not None and not mistakes
            nodes |= {f"{name}/{arm}": node for arm, node in space.arms.items()}
    return nodes


def labels_of(node: Node) -> dict[str, tuple[str, ...]]:
    """Returns the labels of each decision and choice, by the name of the leaf."""
    labels = {}
    for spot in spots(node):
        name = leaf_name("x", spot.path)
        match spot.node:
            case OneOf(branches=branches):
                labels[name] = tuple(branches)
            case Choice(values=values):
                labels[name] = tuple(values)
            case Maybe():
                labels[f"{name}.maybe"] = PRESENCE
    return labels


def ranges_of(node: Node) -> dict[str, Range]:
    return {leaf_name("x", spot.path): spot.node for spot in spots(node) if isinstance(spot.node, Range)}


def points_of(node: Node, num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns the first points of a design. Tests share those of seed 0; whether a point depends on its index alone has
    a test that shares none.
    """
    design = SpaceFillingDesign(node, "x", seed)
    if seed == 0:
        _, design = DESIGNS.setdefault(id(node), (node, design))
    return [design.point(index) for index in range(num)]


def decisions_of(node: Node) -> set[str]:
    """Returns the names of the leaves that decide the branch of a point."""
    choices = {leaf_name("x", spot.path) for spot in spots(node) if isinstance(spot.node, Choice)}
    return labels_of(node).keys() - choices


def branch_of(decisions: Collection[str], point: Mapping[str, Any]) -> str:
    return str([(name, value) for name, value in point.items() if name in decisions])


def share(value: float, interval: Range) -> float:
    """Returns how far up a range a value lies, from 0 to 1, on the scale of the range."""
    low, high = interval.low, interval.high
    return math.log(value / low) / math.log(high / low) if interval.log else (value - low) / (high - low)


# --- evenness ---


def test_every_label_is_dealt_before_any_is_dealt_again(arms: Mapping[str, Node]) -> None:
    for arm, node in arms.items():
        counts = {name: dict.fromkeys(labels, 0) for name, labels in labels_of(node).items()}
        for point in points_of(node, 60):
            for name, of_label in counts.items():
                if name in point:
                    of_label[point[name]] += 1
                assert max(of_label.values()) - min(of_label.values()) <= 1, f"{name} of {arm}"
        assert all(sum(of_label.values()) for of_label in counts.values()), f"{arm}: a decision was never reached"


def test_a_few_integers_are_dealt_like_labels_in_each_branch(arms: Mapping[str, Node]) -> None:
    num_checked = 0
    for arm, node in arms.items():
        integers = {name: interval for name, interval in ranges_of(node).items() if interval.integer}
        few = {name: interval for name, interval in integers.items() if interval.high - interval.low < 4}
        decisions, seen = decisions_of(node), defaultdict[tuple[str, str], Counter[int]](Counter)
        for point in points_of(node, 60):
            for name in few.keys() & point.keys():
                counts = seen[branch_of(decisions, point), name]
                counts[point[name]] += 1
                numbers = range(int(few[name].low), int(few[name].high) + 1)
                assert max(counts.values()) - min(counts[number] for number in numbers) <= 1, f"{name} of {arm}"
                num_checked += 1
    assert num_checked > 100


def test_each_branch_covers_each_of_its_ranges_evenly(arms: Mapping[str, Node]) -> None:
    """Of the first 2, 4 and 8 numbers that a branch deals, one lies in each half, quarter and eighth of the range."""
    for arm, node in arms.items():
        shares, decisions, ranges = defaultdict(list), decisions_of(node), ranges_of(node)
        for point in points_of(node, 60):
            for name, interval in ranges.items():
                if name in point and not interval.integer:
                    shares[branch_of(decisions, point), name].append(share(point[name], interval))
        for place, drawn in shares.items():
            for num in (2, 4, 8):
                if len(drawn) >= num:
                    assert sorted(int(at * num) for at in drawn[:num]) == list(range(num)), f"{place} of {arm}"


def test_all_branches_together_cover_a_range_evenly(arms: Mapping[str, Node]) -> None:
    """In the arm `tabular` of the demo, two branches share the learning rate."""
    node = arms["demo/tabular"]
    lr = ranges_of(node)["x/optimizer.lr"]
    for seed in range(NUM_SEEDS):
        shares = [share(point["x/optimizer.lr"], lr) for point in points_of(node, 8, seed)]
        assert Counter(int(2 * at) for at in shares) == {0: 4, 1: 4}


def test_both_ends_of_every_range_are_approached_and_never_left(arms: Mapping[str, Node]) -> None:
    for arm, node in arms.items():
        points = points_of(node, 200)
        for name, interval in ranges_of(node).items():
            drawn = [point[name] for point in points if name in point]
            assert interval.low <= min(drawn) and max(drawn) <= interval.high, f"{name} of {arm}"
            if interval.integer:
                assert (min(drawn), max(drawn)) == (interval.low, interval.high), f"{name} of {arm}"
            else:
                assert share(min(drawn), interval) < 0.05 and share(max(drawn), interval) > 0.95, f"{name} of {arm}"
        for name, labels in labels_of(node).items():
            assert {point[name] for point in points if name in point} == set(labels), f"{name} of {arm}"


# --- confounding ---


class JointSobol:
    """The design until November 2026: one scrambled Sobol sequence with a dimension for each leaf of the arm."""

    def __init__(self, node: Node, seed: int):
        names = sorted({*labels_of(node), *ranges_of(node)})
        sobol = qmc.Sobol(len(names), scramble=True, rng=seed)
        self._node, self._coordinates = node, (dict(zip(names, row, strict=True)) for row in sobol.random(64))

    def points(self, num: int) -> list[dict[str, Any]]:
        return [self._point(next(self._coordinates)) for _ in range(num)]

    def _point(self, coordinates: Mapping[str, float]) -> dict[str, Any]:
        values: dict[str, Any] = {}

        class Chooser:
            def uniform(self, name: str, low: float, high: float, log: bool) -> float:
                values[name] = number_at(coordinates[name], Range("", low, high, log, integer=False))
                return low

            def integer(self, name: str, low: int, high: int, log: bool) -> int:
                values[name] = number_at(coordinates[name], Range("", low, high, log, integer=True))
                return low

            def category(self, name: str, labels: Sequence[str]) -> str:
                values[name] = labels[int(coordinates[name] * len(labels))]
                return labels[int(coordinates[name] * len(labels))]

        draw(self._node, Chooser(), "x")
        return values


def mean_associations(node: Node, samples: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Returns for each label and each other leaf how strongly they are associated within a sample of points.

    The measure is the squared correlation of 'has the label' with the other leaf, times n - 1, over the n points that
    have both leaves. For n values that are assigned to n points in random order its expectation is exactly 1. The mean
    is over the samples. Associations that fewer than half of the samples can show are left out.
    """
    values_by_column: dict[tuple[str, str], list[list[float]]] = {}  # nan where a point lacks the leaf
    for name, labels in labels_of(node).items():
        for label in labels:
            values_by_column[name, label] = [
                [float(point[name] == label) if name in point else math.nan for point in points] for points in samples
            ]
    for name, interval in ranges_of(node).items():
        values_by_column[name, ""] = [
            [share(point[name], interval) if name in point else math.nan for point in points] for points in samples
        ]
    columns_SN = {column: np.array(values) for column, values in values_by_column.items()}  # samples x points
    means = {}
    for (name, label), (other, other_label) in permutations(columns_SN, 2):
        if not label or name == other:
            continue
        pair_2SN = np.stack([columns_SN[name, label], columns_SN[other, other_label]])
        both_SN = np.isfinite(pair_2SN).all(axis=0)
        num_S = both_SN.sum(axis=1, keepdims=True)
        pair_2SN = np.where(both_SN, pair_2SN, 0)
        pair_2SN = np.where(both_SN, pair_2SN - pair_2SN.sum(axis=2, keepdims=True) / num_S.clip(min=1), 0)
        scale_S = np.prod((pair_2SN**2).sum(axis=2), axis=0)
        shown_S = (num_S[:, 0] > 2) & (scale_S > 1e-12)
        if 2 * shown_S.sum() >= len(samples):
            squares_S = np.prod(pair_2SN, axis=0).sum(axis=1)[shown_S] ** 2 / scale_S[shown_S]
            means[f"{name}={label} and {other}={other_label}".rstrip("=")] = float(
                np.mean(squares_S * (num_S[shown_S, 0] - 1))
            )
    return means


# Under random dealing, the mean over 100 seeds lies around 1 with a standard error of about sqrt(2 / 100) = 0.14.
CHANCE: Final = 1 + 3 * math.sqrt(2 / NUM_SEEDS)


def test_no_branch_is_confounded_with_another_leaf_in_the_first_ten_points(arms: Mapping[str, Node]) -> None:
    num_checked = 0
    different = {str((labels_of(node), *ranges_of(node))): arm for arm, node in arms.items() if labels_of(node)}
    for arm, node in ((arm, arms[arm]) for arm in different.values()):
        decisions = [leaf_name("x", spot.path) for spot in spots(node) if isinstance(spot.node, OneOf)]
        decisions += [f"{leaf_name('x', spot.path)}.maybe" for spot in spots(node) if isinstance(spot.node, Maybe)]
        means = mean_associations(node, [points_of(node, 10, seed) for seed in range(NUM_SEEDS)])
        of_decisions = {pair: mean for pair, mean in means.items() if pair.split("=")[0] in decisions}
        assert all(mean < CHANCE for mean in of_decisions.values()), (arm, of_decisions)
        # In a branch with five points a choice cannot be balanced against four other leaves. It comes close to chance.
        assert all(mean < 1.75 for mean in means.values()), (arm, means)
        assert not means or np.mean(list(means.values())) < 1.15, (arm, means)
        num_checked += len(of_decisions)
    assert num_checked > 150


def test_a_joint_sobol_sequence_is_confounded(arms: Mapping[str, Node]) -> None:
    """The fault that the test above is there to notice: one branch has one half of the learning rates."""
    node = arms["demo/tabular"]
    means = mean_associations(node, [JointSobol(node, seed).points(10) for seed in range(NUM_SEEDS)])
    assert means["x/objectives=logits and x/optimizer.lr"] > 6
    for seed in range(NUM_SEEDS):
        halves = defaultdict(set)
        for point in JointSobol(node, seed).points(10):
            halves[point["x/objectives"]].add(share(point["x/optimizer.lr"], ranges_of(node)["x/optimizer.lr"]) < 0.5)
        assert sorted(halves["logits"] | halves["features"]) == [False, True]
        assert len(halves["logits"]) == len(halves["features"]) == 1, "each branch has one half alone"


# --- a function of its index ---


def test_a_point_depends_on_the_space_the_seed_the_arm_and_the_index_alone(arms: Mapping[str, Node]) -> None:
    for arm, node in arms.items():
        design = SpaceFillingDesign(node, "x", 0)
        forward = [design.point(index) for index in range(30)]
        restarted = SpaceFillingDesign(node, "x", 0)
        assert [restarted.point(index) for index in (29, 3, 17, 0)] == [forward[index] for index in (29, 3, 17, 0)], arm
        assert points_of(node, 30, seed=1) != forward, arm
        other_arm = SpaceFillingDesign(node, "y", 0).point(0)
        assert {name.removeprefix("y/"): value for name, value in other_arm.items()} != {
            name.removeprefix("x/"): value for name, value in forward[0].items()
        }, arm
    assert SpaceFillingDesign(parsed({"constant": 1}), "x", 0).point(3) == {}


def test_a_point_cannot_be_changed_from_outside() -> None:
    design = SpaceFillingDesign(parsed({"lr": {"uniform": [0, 1]}}), "x", 0)
    point = design.point(0)
    design.point(0)["x/lr"] = 2.0
    assert design.point(0) == point


# --- numbers ---


def test_numbers_at_a_share_of_a_range_by_hand() -> None:
    def at(share: float, low: float, high: float, log: bool = False, integer: bool = False) -> float:
        return number_at(share, Range("", low, high, log, integer))

    assert at(0.5, 2, 4) == 3 and at(0, 2, 4) == 2
    assert at(0.5, 1e-4, 1e-2, log=True) == pytest.approx(1e-3)
    # 1 to 3 is [0.5, 3.5), with a third for each number.
    assert [at(share, 1, 3, integer=True) for share in (0, 0.34, 0.999999)] == [1, 2, 3]
    # On a log scale 1 to 4 is [0.5, 4.5), a factor of 9: the third lies at 0.5 x 9^0.34 = 1.055, the half at 1.5.
    assert [at(share, 1, 4, log=True, integer=True) for share in (0, 0.34, 0.5, 0.999999)] == [1, 1, 2, 4]
    assert isinstance(at(0.3, 1, 12, integer=True), int) and isinstance(at(0.3, 0, 1), float)


def test_random_points_are_whole_configurations_drawn_evenly(arms: Mapping[str, Node]) -> None:
    for name, node in arms.items():
        points = random_points(node, "x", 0, 400)
        assert points == random_points(node, "x", 0, 400) != random_points(node, "x", 1, 400)
        for point in points[:50]:
            chooser = ReplayChooser(point)
            draw(node, chooser, "x")
            assert set(chooser.distributions) == set(point), f"{name}: exactly the leaves of the drawn branch"
        for leaf, labels in labels_of(node).items():
            drawn = Counter(point[leaf] for point in points if leaf in point)
            for label in labels:
                assert drawn[label] == pytest.approx(drawn.total() / len(labels), abs=4.5 * drawn.total() ** 0.5 / 2)
