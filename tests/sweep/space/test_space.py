"""A space file as arms and a search: what is read, what is refused, and under which path."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmpkd.types import Mistake
from sweep.space.draw import BoundsChooser, draw
from sweep.space.grammar import Range
from sweep.space.loading import shipped
from sweep.space.search_config import EarlyStopping, SearchConfig
from sweep.space.show import tree
from sweep.space.space import Space, dump_space, load_space

SPACE = """
cohort: {reader: synthetic, image_size: 48}
optimizer: {lr: {log_uniform: [1e-5, 1e-3]}, batch_size: 16}
epochs: 9
arms:
  tabular:
    teachers: {findings: {kind: tabular, params: {columns: [shape, age]}}}
    objectives:
      one_of:
        soft: {logits: {weight: {log_uniform: [0.05, 20]}}}
        deep: {features: {maybe: {weight: 1, params: {layer: {int: [1, 3]}}}}}
search: {trials: 8}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    return path


def load(file: Path, *overrides: str) -> Space:
    space, mistakes = load_space(str(file), overrides)
    assert mistakes == []
    assert space is not None
    return space


def first(space: Space, arm: str = "tabular", step: int = 0, **labels: str) -> dict[str, Any]:
    chosen = {f"{arm}/{name}": label for name, label in labels.items()}
    return draw(space.arms[arm], BoundsChooser(chosen, step), arm).config


def refused(file: Path, *overrides: str) -> list[Mistake]:
    return load_space(str(file), overrides)[1]


def test_a_file_becomes_arms_and_none_is_always_there(file: Path):
    space = load(file)
    assert space.name == "mine"
    assert list(space.arms) == ["none", "tabular"]
    assert first(space, "none") == {
        "cohort": {"reader": "synthetic", "image_size": 48},
        "optimizer": {"lr": 1e-5, "batch_size": 16},
        "epochs": 9,
    }
    assert first(space, step=1, objectives="soft")["objectives"] == {"logits": {"weight": 20.0}}


def test_numbers_without_a_point_are_numbers(file: Path):
    lr = first(load(file), "none")["optimizer"]["lr"]
    assert isinstance(lr, float) and lr == 0.00001  # PyYAML would have read a string
    assert first(load(file, "optimizer.lr=3e-4"))["optimizer"]["lr"] == 0.0003
    range_ = {"log_uniform": [0.0001, 0.01]}
    assert load(file, "optimizer.lr={log_uniform: [1e-4, 1e-2]}").raw["optimizer"]["lr"] == range_


def test_a_key_that_stands_twice_is_refused(file: Path):
    file.write_text("epochs: 3\nepochs: 4\n")
    (mistake,) = refused(file)
    assert mistake.path == "space" and "duplicate key epochs" in mistake.problem


@pytest.mark.parametrize("content", ["- 1\n", "3\n", "a: [\n"])
def test_what_is_no_mapping_is_refused(file: Path, content: str):
    file.write_text(content)
    space, mistakes = load_space(str(file))
    assert space is None
    assert [mistake.path for mistake in mistakes] == ["space"]


def test_an_unknown_space_names_its_near_ones():
    space, mistakes = load_space("dmeo")
    assert space is None
    assert str(mistakes[0]).startswith("space: 'dmeo' is no space (did you mean 'demo'?)")
    assert "'./nothing.yaml' is no file" in load_space("./nothing.yaml")[1][0].problem


WITHOUT_TABULAR = ("mimic", "guidance", "vqa_demo", "med_grit")


def test_every_shipped_space_is_read_and_drawn():
    assert {"demo", "breast", "cbis"} <= set(shipped())
    for name in shipped():
        models = ["student.model=/models/qwen"] if name == "med_grit" else []
        space, mistakes = load_space(name, ["cohort.root=/data", *models])
        assert space is not None and mistakes == []
        assert "none" in space.arms and ("tabular" in space.arms or name in WITHOUT_TABULAR)


@pytest.mark.parametrize("key", ["cohort.image_size", "epochs", "evaluation.batch_size", "threads", "seed"])
def test_what_all_trials_share_is_never_sampled(file: Path, key: str):
    (mistake,) = refused(file, f"{key}={{int: [1, 3]}}")
    assert mistake == (key, "is the same for every trial of a sweep: give one value, no distribution")
    arms = refused(file, f"arms.tabular.{key}=3")
    problem = "is the same for every trial of a sweep: set it at the top of the file, not in an arm"
    assert arms == [(f"arms.tabular.{key.partition('.')[0]}", problem)]


def test_unknown_keys_and_search_keys_name_their_near_ones(file: Path):
    assert refused(file, "optimzer.lr=1", "search.trails=3", "arm.none={}") == [
        ("optimzer.lr", "unknown word (did you mean 'optimizer.lr'?)"),
        ("arm.none", "unknown word (did you mean 'arms'?)"),
        ("search.trails", "unknown key (did you mean 'trials'?)"),
    ]


@pytest.mark.parametrize(
    ("override", "path", "meant"),
    [
        ("trails=4", "trails", "'trials'"),
        ("seach.trials=2", "seach.trials", "'search.trials' or 'trials'"),
        ("task.class_weights=balanced", "task.class_weights", "'optimizer.class_weights'"),
        ("sampler=tpe", "sampler", "'search.sampler'"),
        ("nmae=mine", "nmae", "'name'"),
        ("budget_hours=1", "budget_hours", "'budget_device_hours'"),
        ("search.lr=1", "search.lr", "'optimizer.lr'"),
    ],
)
def test_a_misplaced_word_leads_to_its_place(file: Path, override: str, path: str, meant: str):
    _, (mistake,) = load_space(str(file), [override], ("name", "space"))
    assert mistake.path == path and mistake.problem.endswith(f"(did you mean {meant}?)")


def test_a_misplaced_section_of_a_file_leads_to_its_place(file: Path):
    file.write_text(file.read_text() + "task: {class_weights: balanced}\ntrials: 3\n")
    assert refused(file) == [
        ("task", "unknown key (did you mean 'optimizer.class_weights'?)"),
        ("trials", "unknown key (did you mean 'search.trials'?)"),
    ]


def test_a_space_is_named_by_its_word(file: Path):
    assert refused(file, "breast", "epochs") == [
        ("breast", "expected key=value; write space=breast"),
        ("epochs", "expected key=value"),
    ]


NOT_AMONG = "val/auroc is not among the goals of search.maximize: val/pointing"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("maximize=[val/auroc, val/pointng]", "no score 'val/pointng' to maximise (did you mean 'val/pointing'?)"),
        ("maximize=[]", "tuple should have at least 1 item"),
        ("select=val/point", "no score 'val/point' (did you mean 'val/pointing'"),
        ("select={maximize: val/point}", "no score 'val/point' (did you mean 'val/pointing'"),
        ("select={maximize: val/pointing, within: 1se}", "within without of: a limit is within=1se of=GOAL"),
        ("select={maximize: val/pointing, of: val/auroc}", "of without within: a limit is within=1se of=GOAL"),
        ("select={maximize: val/auroc, within: 0.1, of: val/auroc}", "of is the goal 'val/auroc' itself"),
        ("select={maximise: val/auroc}", "maximize: missing; maximise: unknown key (did you mean 'maximize'?)"),
        ("select={maximize: val/pointing, within: 2se, of: val/auroc}", "within: wants 1se or a number of at least 0"),
        ("select={maximize: val/pointing, within: -1, of: val/auroc}", "within: wants 1se or a number of at least 0"),
        ("select=[val/auroc]", "wants a goal, or {maximize: GOAL, within: 1se, of: GOAL}"),
        ("maximize=[val/pointing]", NOT_AMONG),
        ("trials=0", "input should be greater than 0, got 0"),
        ("gpus=2", "input should be less than or equal to 1, got 2"),
        ("early_stopping.reduction=1", "input should be greater than or equal to 2"),
    ],
)
def test_each_mistake_of_the_search_is_said_once(file: Path, override: str, problem: str):
    space, (found,) = load_space(str(file), [f"search.{override}"])
    assert found.path == f"search.{'select' if problem == NOT_AMONG else override.partition('=')[0]}"
    assert found.problem.startswith(problem)
    assert space is not None  # with a stand-in, so that the plan can go on


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ([], "val/answer"),
        (["search.maximize=[val/recall50, val/answer]"], "val/recall50"),
        (["search.select=val/recall50"], "val/recall50"),
    ],
)
def test_students_that_answer_are_chosen_by_a_goal_of_theirs(words: list[str], chosen: str):
    assert load_space("vqa_demo", words)[0].search.select == chosen


def test_a_trial_reserves_its_share_of_a_gpu_in_one_way(file: Path):
    assert refused(file, "search.gpus=0.5", "search.trials_per_device=auto") == [
        (
            "search.trials_per_device",
            "stands beside search.gpus=0.5, and each says how many trials share a GPU; set one of them to null",
        )
    ]
    for words in (["search.gpus=0.5"], ["search.gpus=0.5", "search.trials_per_device=2", "search.gpus=null"]):
        assert load(file, *words).search.gpus in (0.5, None)


def test_a_search_that_is_no_mapping_is_a_mistake(file: Path):
    (found,) = refused(file, "search=3")
    assert str(found).startswith("search: input should be a valid dictionary")


def test_mistakes_are_gathered_and_the_rest_still_stands(file: Path):
    overrides = ["optimizer.lr={log_uniform: [0, 1]}", "arms.tabular.objectives.soft.logits.weight={uniform: [2, 1]}"]
    space, mistakes = load_space(str(file), [*overrides, "trials=no"])
    assert [mistake.path for mistake in mistakes] == [
        "search.trials",
        "optimizer.lr",
        "arms.tabular.objectives.soft.logits.weight",
    ]
    assert space is not None
    assert first(space)["optimizer"]["lr"] == 1


def test_trials_are_ranked_at_a_share_of_the_epochs_unless_an_epoch_is_named(file: Path):
    def rungs(epochs: int, *overrides: str) -> list[int]:
        stopping = load(file, *(f"search.early_stopping.{one}" for one in overrides)).search.early_stopping
        assert stopping is not None
        return stopping.rungs(epochs)

    assert [rungs(epochs) for epochs in (27, 10, 8, 1)] == [[9], [4], [3], []]
    assert rungs(10, "reduction=2") == [5]
    assert rungs(27, "grace=3") == [3, 9]


def test_relative_paths_are_made_absolute_wherever_they_stand(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(file.parent)
    here = str(file.parent)
    (file.parent / "minilm").mkdir()
    texts = "{t: {kind: text, params: {encoder: {choice: [minilm, org/name]}}}}"
    scans = "{scan: {kind: ensemble, params: {members: {a: {params: {network: {weights: d.pt}}}}}}}"
    space = load(
        file,
        "cohort.root=data",
        f"arms.text={{teachers: {texts}}}",
        f"arms.scan={{teachers: {scans}}}",
        "student={one_of: {own: {weights: {choice: [a.pt, /b.pt]}}, none: {depth: 2}}}",
        "arms.big={student: {weights: {maybe: c.pt}}, teachers: {t: {kind: tabular, params: {weights: as said}}}}",
    )
    assert space.raw["cohort"]["root"] == f"{here}/data"
    assert space.raw["student"]["one_of"]["own"]["weights"] == {"choice": [f"{here}/a.pt", "/b.pt"]}
    assert space.raw["arms"]["big"]["student"]["weights"] == {"maybe": f"{here}/c.pt"}
    assert space.raw["arms"]["big"]["teachers"]["t"]["params"]["weights"] == "as said"
    assert space.raw["arms"]["text"]["teachers"]["t"]["params"]["encoder"] == {"choice": [f"{here}/minilm", "org/name"]}
    members = space.raw["arms"]["scan"]["teachers"]["scan"]["params"]["members"]
    assert members["a"]["params"]["network"]["weights"] == f"{here}/d.pt"
    assert load(file, "student.weights=~/w.pt").raw["student"]["weights"] == os.path.expanduser("~/w.pt")
    assert load(file, "student.weights=null").raw["student"]["weights"] is None


def test_defaults_of_the_search_are_explicit():
    assert SearchConfig().model_dump() == {
        "maximize": None,
        "select": "val/auroc",
        "trials": 32,
        "budget_device_hours": None,
        "deadline": None,
        "plateau": None,
        "equal": "trials",
        "shares": {},
        "sampler": "gp",
        "warm_start": None,
        "points": (),
        "repeats": 1,
        "keep": "best",
        "trials_per_device": None,
        "early_stopping": {"grace": None, "reduction": 3},
        "cpus": None,
        "gpus": None,
        "at_a_time": None,
        "max_failures": 3,
    }
    assert SearchConfig.model_validate({"early_stopping": {}}).early_stopping == EarlyStopping()


def test_a_space_is_written_as_resolved_and_read_back_equal(file: Path, tmp_path: Path):
    space = load(file, "arms.none=false", "cohort.root=/data", "arms.tabular.optimizer={lr: {uniform: [1e-7, 1]}}")
    copy = tmp_path / "copy" / "mine.yaml"
    copy.parent.mkdir()
    copy.write_text(dump_space(space))
    assert load(copy) == space
    assert isinstance(space.arms["tabular"], type(space.base))
    assert Range("arms.tabular.optimizer.lr", 1e-7, 1, log=False, integer=False) in _leaves(load(copy))


def _leaves(space: Space) -> list[object]:
    optimizer = space.arms["tabular"].children["optimizer"]  # type: ignore[union-attr]
    return list(optimizer.children.values())


def test_show_has_every_distribution_and_branch(file: Path):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tree(load(file)))
    text = console.export_text()
    for part in (
        "every arm",
        "batch_size=16",
        "lr  log_uniform 1e-05 to 0.001",
        "arms.none  free dimensions: 1",
        "arms.tabular  free dimensions: soft 2, deep/absent 1, deep/present 2",
        'teachers.findings.params.columns=["shape", "age"]',
        "objectives  one_of",
        "features  maybe",
        "layer  int 1 to 3",
    ):
        assert part in text, f"{part!r} is not in\n{text}"


def test_shares_are_as_named_and_the_rest_equal(file: Path):
    assert load(file).shares == {"none": 0.5, "tabular": 0.5}
    three = ["arms.b={optimizer: {lr: {uniform: [1, 2]}}}"]
    assert load(file, *three, "search.shares={tabular: 0.6}").shares == {"none": 0.2, "tabular": 0.6, "b": 0.2}


@pytest.mark.parametrize(
    ("shares", "path", "problem"),
    [
        ("{tabular: 0.7, none: 0.4}", "search.shares", "add up to 1.1, and there is only 1 to share"),
        ("{tabular: 1}", "search.shares", "add up to 1, which leaves nothing for none; lower them"),
        ("{tabular: 0.5, none: 0.4}", "search.shares", "add up to 0.9; where every arm is named they make up 1"),
        ("{tabluar: 0.5}", "search.shares.tabluar", "no such arm (did you mean 'tabular'?)"),
    ],
)
def test_shares_that_cannot_be_kept_are_refused(file: Path, shares: str, path: str, problem: str):
    assert refused(file, f"search.shares={shares}") == [(path, problem)]


def test_a_point_implies_its_branches(file: Path):
    point = "{arm: tabular, objectives.soft.logits.weight: 4, optimizer.lr: 3e-4}"
    other = "{arm: tabular, objectives.features.params.layer: 2}"
    assert load(file, f"search.points=[{point}, {other}]").points_of("tabular") == [
        {
            "tabular/objectives": "soft",
            "tabular/objectives.soft.logits.weight": 4.0,
            "tabular/optimizer.lr": 0.0003,
        },
        {
            "tabular/objectives": "deep",
            "tabular/objectives.deep.features.maybe": "present",
            "tabular/objectives.deep.features.params.layer": 2,
        },
    ]


@pytest.mark.parametrize(
    ("point", "path", "problem"),
    [
        ("{optimizer.lr: 1e-4}", "0.arm", "missing"),
        ("{arm: tabluar}", "0.arm", "no such arm 'tabluar' (did you mean 'tabular'?)"),
        ("{arm: [1]}", "0.arm", "no such arm [1] (known: none, tabular)"),
        ("{arm: tabular, objectives: [soft]}", "0.objectives", "['soft'] is not in the branches soft, deep"),
        ("{arm: none, optimizer.rl: 1}", "0.optimizer.rl", "nothing is sampled there (did you mean 'optimizer.lr'?)"),
        ("{arm: none, optimizer.lr: 1}", "0.optimizer.lr", "1 is not in [1e-05, 0.001]"),
        (
            "{arm: tabular, objectives: deep, objectives.soft.logits.weight: 1}",
            "0.objectives.soft.logits.weight",
            "is drawn only where objectives is soft, but the point sets deep",
        ),
    ],
)
def test_a_point_that_the_space_does_not_hold_is_refused(file: Path, point: str, path: str, problem: str):
    assert refused(file, f"search.points=[{point}]") == [(f"search.points.{path}", problem)]


def test_a_file_extends_another_and_wins(file: Path):
    child = file.with_name("child.yaml")
    child.write_text("extends: mine.yaml\nepochs: 5\narms: {tabular: {optimizer: {lr: 1e-4}}, none: false}\n")
    space = load(child)
    assert (space.name, list(space.arms)) == ("child", ["tabular"])
    assert first(space, objectives="soft")["optimizer"] == {"lr": 1e-4, "batch_size": 16}
    assert first(space)["epochs"] == 5
    copy = file.with_name("copy.yaml")
    copy.write_text(dump_space(space))
    assert load(copy).arms == space.arms
    child.write_text("extends: chld.yaml\n")
    assert "'chld.yaml' is no file" in refused(child)[0].problem
    child.write_text("extends: child.yaml\n")
    assert refused(child) == [("extends", "goes in a circle: child.yaml -> child.yaml")]


def test_a_value_may_be_the_same_as_what_is_drawn_elsewhere(file: Path):
    space = load(file, "optimizer.weight_decay=${optimizer.lr}", "seed=3", "optimizer.batch_size=${seed}")
    for step in (0, 1):
        drawn = first(space, "none", step)["optimizer"]
        assert drawn["weight_decay"] == drawn["lr"] == (1e-5, 1e-3)[step]
        assert drawn["batch_size"] == 3
    copy = file.with_name("copy.yaml")
    copy.write_text(dump_space(space))
    assert load(copy).arms == space.arms


def test_a_reference_into_another_branch_is_refused(file: Path):
    other = "arms.tabular.objectives.deep.features.weight=${arms.tabular.objectives.soft.logits.weight}"
    (mistake,) = refused(file, other)
    assert mistake.path == "arms.tabular.objectives.deep.features.weight"
    assert "which is drawn only where objectives is soft; put the reference into the same branch" in mistake.problem


def test_two_branches_that_say_the_same_are_refused(file: Path):
    (mistake,) = refused(file, "optimizer.clip_norm={one_of: {a: {choice: [1, 2]}, b: {choice: [1, 2]}}}")
    assert mistake.path == "optimizer.clip_norm.b" and "equals branch a" in mistake.problem
