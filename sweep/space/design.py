"""Points of an arm: those of its space-filling design, which cover it evenly from the first few on, and random ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Final, TypeVar

from mmpkd.machine.checksums import fingerprint
from sweep.space.draw import PRESENCE, draw, leaf_name
from sweep.space.grammar import Choice, Maybe, Node, OneOf, Range, spots

NUM_DIGITS: Final = 8  # a range is halved this often; the place within the last half is random
NUM_PAIRED_DIGITS: Final = 2  # so many digits of a range are balanced against the labels and digits of other leaves
MAX_DEALT_INTEGERS: Final = 4  # a range of up to this many integers is dealt like a choice: halves make no thirds

_Label = TypeVar("_Label", str, int)


class SpaceFillingDesign:
    """A sequence of points in the space of an arm.

    Every leaf is *dealt* in rounds: each of its labels once, in random order, before any label is dealt twice. A leaf
    that only some points reach counts only these points. A number is dealt by binary digits: the half of the range,
    then the half of this half, and so on. The numbers of a leaf are a van der Corput sequence with scrambled digits
    (Owen 1995, but in a new order in every round). Each branch, that is each combination of labels at `one_of` and
    `maybe`, deals its numbers in rounds of its own.

    A round may leave several labels. Then the label is dealt that all branches together have had least often. Among
    equals it is the label that was least often dealt together with the labels and digits that the point already has,
    as in the minimisation of Pocock and Simon (1975). Without this rule two leaves would often be confounded in a small
    sample, as they are in a joint Sobol sequence.

    A point depends only on the space, the seed, the arm and the index. A restarted driver therefore continues where the
    last one stopped.
    """

    def __init__(self, node: Node, arm: str, seed: int):
        self._node, self._arm, self._seed = node, arm, seed
        self._leaves = {leaf_name(arm, spot.path): spot.node for spot in spots(node)}
        self._points: list[dict[str, Any]] = []
        self._counts = _Counts()

    def point(self, index: int) -> dict[str, Any]:
        """Returns the values of the leaves in the point's branch, in the form in which an Optuna trial is enqueued."""
        while len(self._points) <= index:  # a point depends on the counts of all points before it
            self._points.append(self._next_point())
        return dict(self._points[index])

    def _next_point(self) -> dict[str, Any]:
        seed = int(fingerprint([self._seed, self._arm, len(self._points)])[:8], 16)
        dealer = _Dealer(Random(seed), self._counts, self._leaves)
        draw(self._node, dealer, self._arm)
        dealer.deal_leaves()
        return dealer.values


class _Counts:
    """Running counts of what the points of a design have been dealt.

    Attributes:
        labels: how often each label was dealt, by branch, leaf and label. The branch "" counts all points.
        pairs: how often two labels were dealt to the same point, by leaf and label of each.
    """

    def __init__(self) -> None:
        self.labels: Counter[tuple[str, str, str | int]] = Counter()
        self.pairs: defaultdict[tuple[str, str | int], Counter[tuple[str, str | int]]] = defaultdict(Counter)


class _Dealer:
    """Deals one point: its decisions while the space is drawn, then the leaves of the branch that they lead to.

    Attributes:
        values: the dealt values, by the name of the leaf. A label represents the value of a choice.
    """

    def __init__(self, random: Random, counts: _Counts, leaves: Mapping[str, Node]):
        self._random, self._counts, self._leaves = random, counts, leaves
        self._reached: list[str] = []  # leaves that are no decisions
        # Labels and digits that later leaves are balanced against: how many labels the leaf has, by leaf and label.
        self._dealt: dict[tuple[str, str | int], int] = {}
        self.values: dict[str, Any] = {}

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        self._reached.append(name)
        return low  # of no consequence, because the design does not use the drawn configuration

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        self._reached.append(name)
        return low

    def category(self, name: str, labels: Sequence[str]) -> str:
        if isinstance(self._leaves.get(name), Choice):
            self._reached.append(name)
            return labels[0]
        self.values[name] = label = self._deal(name, labels)
        return label

    def deal_leaves(self) -> None:
        """Deals the numbers and the choices of the drawn branch. The numbers come first, because the rounds of their
        branch leave them fewer ways to keep pairs of leaves balanced.
        """
        branch = str(self.values)
        nodes = {name: self._leaves[name] for name in self._reached}
        self.values |= {
            name: self._number(name, node, branch) for name, node in nodes.items() if isinstance(node, Range)
        }
        self.values |= {
            name: self._deal(name, list(node.values)) for name, node in nodes.items() if isinstance(node, Choice)
        }

    def _number(self, name: str, interval: Range, branch: str) -> float:
        low, high = interval.low, interval.high
        if interval.integer and not interval.log and high - low < MAX_DEALT_INTEGERS:
            return self._deal(name, range(int(low), int(high) + 1), branch)
        digits = ""
        for place in range(NUM_DIGITS):
            digits += self._deal(f"{name} {digits}", "01", branch, paired=place < NUM_PAIRED_DIGITS)
        return number_at((int(digits, 2) + self._random.random()) / 2**NUM_DIGITS, interval)

    def _deal(self, name: str, labels: Sequence[_Label], branch: str = "", paired: bool = True) -> _Label:
        """Returns the label that is dealt to a leaf.

        Args:
            branch: the branch whose points share a round. With "" all points that reach the leaf share it.
            paired: whether the leaves that are dealt later to this point are balanced against this label.
        """
        counts = self._counts

        def past(label: _Label) -> tuple[int, int]:
            return counts.labels.get((branch, name, label), 0), counts.labels.get(("", name, label), 0)

        def together(label: _Label) -> int:
            # A leaf of many labels has each of them less often, so that a pair with one of them counts for more.
            pairs = counts.pairs[name, label]
            return sum(pairs.get(other, 0) * num for other, num in self._dealt.items())

        shuffled = self._random.sample(labels, len(labels))  # of equals, `min` returns the first
        least = min(map(past, shuffled))
        rarest = [label for label in shuffled if past(label) == least]
        label = rarest[0] if len(rarest) == 1 else min(rarest, key=together)
        for place in {branch, ""}:
            counts.labels[place, name, label] += 1
        counts.pairs[name, label].update(self._dealt.keys())
        if paired:
            self._dealt[name, label] = len(labels)
        return label


def random_points(node: Node, arm: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Returns independent random points of an arm, in the form in which an Optuna trial is enqueued.

    The points have the distribution of random draws, but no configuration is built, which takes most of the time.
    """
    random, points = Random(seed), []
    leaves = [(leaf_name(arm, spot.path), spot) for spot in spots(node)]
    for _ in range(count):
        point: dict[str, Any] = {}
        labels: dict[str, str] = {}  # of the decisions so far, by path
        for name, spot in leaves:
            if any(labels.get(path) != label for path, label in spot.decisions.items()):
                continue  # of another branch
            match spot.node:
                case Range():
                    point[name] = number_at(random.random(), spot.node)
                case Choice(values=values):
                    point[name] = random.choice(list(values))
                case OneOf(branches=branches):
                    point[name] = labels[spot.path] = random.choice(list(branches))
                case Maybe():
                    point[f"{name}.maybe"] = labels[f"{spot.path}.maybe"] = random.choice(PRESENCE)
        points.append(point)
    return points


def number_at(share: float, interval: Range) -> float:
    """Returns the number at a share of a range, from 0 to below 1, on the scale of the range."""
    low, high = interval.low, interval.high
    if interval.integer:
        # The range is widened by half a step on both sides, so that each integer has its fair share.
        low, high = max(low - 0.5, 0.5) if interval.log else low - 0.5, high + 0.5
    number = low * (high / low) ** share if interval.log else low + share * (high - low)
    if interval.integer:
        return int(min(max(round(number), interval.low), interval.high))
    return float(min(max(number, interval.low), interval.high))
