"""The grammar: what a distribution is, what is drawn from it, and every branch of it counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mmpkd.types import Mistake
from sweep.space.draw import branches, count_branches, draw
from sweep.space.grammar import Node, Range, Tree, lay_over, parse


class Middle:
    """Takes the arithmetic middle of a range and the last of some labels; notes what it was asked."""

    def __init__(self, **labels: str):
        self.labels = labels
        self.asked: list[str] = []

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        self.asked.append(name)
        return (low + high) / 2

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        self.asked.append(name)
        return (low + high) // 2

    def category(self, name: str, labels: Sequence[str]) -> str:
        self.asked.append(name)
        return self.labels.get(name.replace("/", "_").replace(".", "_"), labels[-1])


def sound(value: Any, path: str = "") -> Node:
    mistakes: list[Mistake] = []
    node = parse(value, path, mistakes)
    assert not mistakes
    assert node is not None
    return node


def wrong(value: Any) -> list[str]:
    mistakes: list[Mistake] = []
    parse({"leaf": value}, "", mistakes)
    return [str(mistake) for mistake in mistakes]


OBJECTIVES = {
    "one_of": {
        "soft": {"logits": {"weight": {"log_uniform": [0.1, 10]}}},
        "deep": {"features": {"weight": {"uniform": [1, 3]}, "params": {"layer": {"int": [2, 4]}}}},
    }
}


def test_a_drawn_branch_takes_the_place_of_its_one_of_and_only_its_leaves_are_asked_for():
    arm = sound({"objectives": OBJECTIVES})
    chooser = Middle()
    drawn = draw(arm, chooser, "tab")
    assert drawn.config == {"objectives": {"features": {"weight": 2.0, "params": {"layer": 3}}}}
    assert chooser.asked == [
        "tab/objectives",
        "tab/objectives.deep.features.weight",
        "tab/objectives.deep.features.params.layer",
    ]
    assert drawn.values == {
        "tab/objectives": "deep",
        "tab/objectives.deep.features.weight": 2.0,
        "tab/objectives.deep.features.params.layer": 3,
    }
    assert drawn.places["tab/objectives.deep.features.params.layer"] == "objectives.features.params.layer"
    assert drawn.places["tab/objectives"] == "objectives"
    assert drawn.origins["objectives.features.weight"] == "objectives.deep.features.weight"


def test_the_same_choices_draw_the_same_configuration_and_share_nothing():
    arm = sound({"objectives": OBJECTIVES, "columns": ["a", "b"]})
    one, other = draw(arm, Middle(), "tab"), draw(arm, Middle(), "tab")
    assert one == other
    one.config["columns"].append("c")
    assert other.config["columns"] == draw(arm, Middle(), "tab").config["columns"] == ["a", "b"]


def test_an_absent_maybe_removes_the_key():
    arm = sound({"optimizer": {"label_smoothing": {"maybe": {"uniform": [0, 0.2]}}, "lr": 1}})
    absent = draw(arm, Middle(none_optimizer_label_smoothing_maybe="absent"), "none")
    assert absent.config == {"optimizer": {"lr": 1}}
    assert absent.values == {"none/optimizer.label_smoothing.maybe": "absent"}
    present = draw(arm, Middle(), "none")
    assert present.config == {"optimizer": {"label_smoothing": 0.1, "lr": 1}}
    assert present.values == {
        "none/optimizer.label_smoothing.maybe": "present",
        "none/optimizer.label_smoothing": 0.1,
    }


def test_choices_may_be_anything_and_are_known_by_text():
    arm = sound({"columns": {"choice": [["a", "b"], None, 16]}})
    as_list = draw(arm, Middle(x_columns='["a", "b"]'), "x")
    assert as_list.config == {"columns": ["a", "b"]}
    assert as_list.values == {"x/columns": '["a", "b"]'}
    assert draw(arm, Middle(x_columns="null"), "x").values == {"x/columns": None}
    assert draw(arm, Middle(), "x").values == {"x/columns": 16}


def test_whole_numbers_stay_whole_and_ranges_know_their_scale():
    assert sound({"log_int": [1, 64]}) == Range("", 1, 64, log=True, integer=True)
    assert sound({"uniform": [0, 1]}) == Range("", 0.0, 1.0, log=False, integer=False)
    layer = draw(sound({"layer": {"int": [3.0, 3]}}), Middle(), "x").config["layer"]
    assert layer == 3 and isinstance(layer, int)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"uniform": [0.1, 0.001]}, "leaf: low 0.1 is above high 0.001; write {uniform: [0.001, 0.1]}"),
        ({"log_uniform": [0, 1]}, "leaf: the low end of log_uniform must be above 0, got 0; raise it, or use uniform"),
        ({"log_int": [0, 8]}, "leaf: the low end of log_int must be above 0, got 0; raise it, or use int"),
        ({"uniform": [1]}, "leaf: uniform wants two bounds, [low, high], got [1]"),
        ({"uniform": [1, 2, 3]}, "leaf: uniform wants two bounds, [low, high], got [1, 2, 3]"),
        ({"uniform": {"low": 1}}, "leaf: uniform wants two bounds, [low, high], got {'low': 1}"),
        ({"int": 3}, "leaf: int wants two bounds, [low, high], got 3"),
        ({"uniform": ["small", 1]}, "leaf: the bounds of uniform must be finite numbers, got 'small'"),
        ({"uniform": [0, float("inf")]}, "leaf: the bounds of uniform must be finite numbers, got inf"),
        ({"uniform": [False, 1]}, "leaf: the bounds of uniform must be finite numbers, got False"),
        ({"int": [1, 2.5]}, "leaf: the bounds of int must be whole numbers, got [1, 2.5]"),
        ({"choice": []}, "leaf: choice wants a list of at least one value, got []"),
        ({"choice": "cosine"}, "leaf: choice wants a list of at least one value, got 'cosine'"),
        ({"choice": [1, "1"]}, "leaf: choice has the value 1 twice"),
        ({"choice": [1, {"int": [2, 3]}]}, "leaf: a choice takes plain values; for distributions inside use one_of"),
        ({"one_of": {}}, "leaf: one_of wants a mapping of labels to branches, got {}"),
        (
            {"one_of": [1, 2]},
            "leaf: one_of wants a mapping of labels to branches, got [1, 2]; for plain values use choice",
        ),
        ({"one_of": {"a.b": 1}}, "leaf.a.b: a label is letters, digits, - and _, and no grammar word"),
        ({"one_of": {"int": 1}}, "leaf.int: a label is letters, digits, - and _, and no grammar word"),
        ({"maybe": {"maybe": 1}}, "leaf: a maybe directly inside a maybe adds nothing; remove one of them"),
        ([1, {"int": [2, 3]}], "leaf: a distribution cannot stand inside a list; use a choice of whole lists"),
        ({"int": [1, 2], "lr": 3}, "leaf.int: a grammar word must stand alone, here it is beside 'lr'"),
    ],
)
def test_each_mistake_of_the_grammar_is_said_once_under_its_path(value: Any, message: str):
    assert wrong(value) == [message]


def test_two_words_beside_each_other_are_two_mistakes():
    assert [line.partition(":")[0] for line in wrong({"int": [1, 2], "choice": [3]})] == ["leaf.int", "leaf.choice"]


def test_mistakes_inside_branches_carry_the_labels_and_leave_the_rest_standing():
    mistakes: list[Mistake] = []
    node = parse({"one_of": {"a": {"maybe": {"w": {"int": [5, 1]}}}, "b": 2}}, "top", mistakes)
    assert [mistake.path for mistake in mistakes] == ["top.a.w"]
    assert node is not None
    assert draw(Tree("", {"top": node}), Middle(x_top="a"), "x").config == {"top": {"w": 5}}  # a stand-in


def test_merging_and_drawing_give_the_same_in_either_order():
    base = {"optimizer": {"lr": 1, "betas": [1, 2]}, "objectives": {"kept": {"weight": 1}}, "only": 0}
    over = {"optimizer": {"betas": [3]}, "objectives": OBJECTIVES}
    merged = lay_over(sound(base), sound(over, "arms.x"))
    assert draw(merged, Middle(x_objectives="soft"), "x").config == {
        "optimizer": {"lr": 1, "betas": [3]},
        "objectives": {"kept": {"weight": 1}, "logits": {"weight": 5.05}},
        "only": 0,
    }


def test_a_distribution_of_the_base_is_replaced_whole():
    base = sound({"lr": {"log_uniform": [1, 2]}, "objectives": OBJECTIVES})
    over = sound({"lr": {"uniform": [3, 5]}, "objectives": {"other": {"weight": 1}}})
    assert draw(lay_over(base, over), Middle(), "x").config == {"lr": 4.0, "objectives": {"other": {"weight": 1}}}


def test_branches_are_all_ways_through_with_every_leaf_at_its_bounds():
    arm = sound(
        {
            "objectives": OBJECTIVES,
            "optimizer": {"lr": {"uniform": [1, 2]}, "decay": {"maybe": {"choice": ["a", "b", "c"]}}},
            "batch": {"int": [8, 8]},
        }
    )
    assert count_branches(arm) == 4  # soft or deep, decay absent or present
    found = list(branches(arm, "x", most=4))
    assert [tuple(branch.labels.values()) for branch in found] == [
        ("soft", "absent"),
        ("soft", "present"),
        ("deep", "absent"),
        ("deep", "present"),
    ]
    assert [len(branch.drawn) for branch in found] == [2, 3, 2, 3]  # three choices need three
    assert found[0].free == ("x/objectives.soft.logits.weight", "x/optimizer.lr")  # batch is always 8
    low, high, third = (drawn.config for drawn in found[3].drawn)
    assert low["objectives"]["features"] == {"weight": 1, "params": {"layer": 2}}
    assert high["objectives"]["features"] == {"weight": 3, "params": {"layer": 4}}
    assert [config["optimizer"]["decay"] for config in (low, high, third)] == ["a", "b", "c"]
    assert "decay" not in found[0].drawn[0].config["optimizer"]


def test_a_space_of_too_many_branches_is_covered_label_by_label():
    leaf = {"one_of": {"a": 1, "b": 2, "c": {"maybe": 3}}}
    arm = sound({str(index): leaf for index in range(10)})
    assert count_branches(arm) == 4**10
    found = list(branches(arm, "x", most=100))
    assert len(found) == 4
    for index in range(10):
        assert [branch.labels[f"x/{index}"] for branch in found] == ["a", "b", "c", "c"]
        assert [branch.labels.get(f"x/{index}.c.maybe") for branch in found] == [None, None, "absent", "present"]


def test_an_arm_that_is_itself_one_of_is_named_by_the_arm():
    arm = lay_over(sound({"lr": 1}), sound({"one_of": {"a": {"x": {"int": [1, 3]}}, "b": {}}}, "arms.t"))
    drawn = draw(arm, Middle(t="a"), "t")
    assert drawn.config == {"lr": 1, "x": 2}
    assert drawn.values == {"t": "a", "t/a.x": 2}
