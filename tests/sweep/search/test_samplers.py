"""Who comes next: samplers by name, points first, and what a sampler is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmpkd.config import TrialConfig
from sweep.search.choosers import Even, Replay
from sweep.search.samplers import SAMPLERS, STARTUP, Proposal, Sampling, Sight
from sweep.space.draw import draw
from sweep.space.space import Space, load_space
from sweep.types import Values

SPACE = """
cohort: {reader: synthetic}
optimizer:
  lr: {log_uniform: [1e-4, 1e-2]}
  batch_size: {int: [8, 11]}
  label_smoothing: {maybe: {uniform: [0, 0.1]}}
arms:
  none: {}
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        soft: {logits: {weight: {log_uniform: [0.1, 10]}, params: {temperature: {choice: [1, 2, 4]}}}}
        deep: {features: {params: {layer: {log_int: [1, 4]}}}}
"""
# 2 x 2 + 2 = 6 configurations of the arm `tabular`.
SMALL = """
cohort: {reader: synthetic}
arms:
  none: false
  tabular:
    teachers: {findings: {kind: tabular}}
    objectives:
      one_of:
        soft: {logits: {weight: {choice: [1, 2]}, params: {temperature: {int: [1, 2]}}}}
        deep: {features: {maybe: {params: {layer: 1}}}}
"""
# One number, so that it is plain what a sampler leans to.
SINGLE = "{cohort: {reader: synthetic}, optimizer: {lr: {log_uniform: [1e-4, 1e-2]}}}"


def space_of(tmp_path: Path, content: str, *overrides: str) -> Space:
    (tmp_path / "space.yaml").write_text(content)
    space, mistakes = load_space(str(tmp_path / "space.yaml"), overrides)
    assert space is not None and not mistakes
    return space


def sight_of(space: Space, arm: str = "tabular", num_goals: int = 2) -> Sight:
    return Sight(space, arm, ("val/auroc", "val/pointing")[:num_goals])


def results(proposal: Proposal, num_goals: int = 2) -> Values:
    """Two goals that pull apart, or the first of them."""
    lr = proposal.config.optimizer.lr
    return (lr, -lr * proposal.config.optimizer.batch_size)[:num_goals]


def run(sight: Sight, numbers: Sequence[int], told: int | None = None, num_goals: int = 2) -> list[Proposal]:
    """Proposals, each of the first `told` with its result known before the next is asked for."""
    proposals = []
    for index, number in enumerate(numbers):
        proposal = sight.propose(number)
        assert proposal is not None
        proposals.append(proposal)
        if told is None or index < told:
            sight.learn(proposal.config.fingerprint(), results(proposal, num_goals))
    return proposals


def made(space: Space, **values: Any) -> Proposal:
    """A proposal with given values, as it comes out of the storage."""
    params = {f"none/{path.replace('__', '.')}": value for path, value in values.items()}
    replay = Replay(params)
    drawn = draw(space.arms["none"], replay, "none")
    return Proposal("none", drawn, TrialConfig.model_validate(drawn.config), params, replay.distributions, {})


@pytest.fixture(autouse=True)
def few_last_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six configurations a hundred draws miss none."""
    monkeypatch.setattr("sweep.search.samplers.LAST_TRIES", 100)


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """The Gaussian process is a small one: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what is proposed ---


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_stays_inside_the_space(tmp_path: Path, sampler: str) -> None:
    space = space_of(tmp_path, SPACE, f"search.sampler={sampler}")
    proposals = run(sight_of(space), range(STARTUP + (2 if sampler == "gp" else 12)))
    seen: dict[str, set[Any]] = {}
    for one in proposals:
        # The same answers give the same configuration, and each is within what was asked.
        assert draw(space.arms["tabular"], Replay(one.params), "tabular").config == one.drawn.config
        optimizer = one.config.optimizer
        assert 1e-4 <= optimizer.lr <= 1e-2 and optimizer.batch_size in (8, 9, 10, 11)
        assert 0 <= optimizer.label_smoothing <= 0.1
        (kind,) = one.config.objectives
        if kind == "logits":
            assert 0.1 <= one.config.objectives[kind].weight <= 10
            assert one.config.objectives[kind].params["temperature"] in (1, 2, 4)
        else:
            assert one.config.objectives[kind].params["layer"] in (1, 2, 3, 4)
            assert "tabular/objectives.soft.logits.weight" not in one.params, "leaves of other branches are not drawn"
        for name in ("tabular/objectives", "tabular/optimizer.label_smoothing.maybe"):
            seen.setdefault(name, set()).add(one.params[name])
    assert set(map(frozenset, seen.values())) == {frozenset({"soft", "deep"}), frozenset({"absent", "present"})}
    assert len({one.config.fingerprint() for one in proposals}) == len(proposals)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_and_history_give_the_same_proposal(tmp_path: Path, sampler: str) -> None:
    space = space_of(tmp_path, SPACE, f"search.sampler={sampler}")
    goals = 1 if sampler == "gp" else 2  # which thinks for seconds about two
    num = STARTUP + 3
    whole = sight_of(space, num_goals=goals)
    history = run(whole, range(num), num - 2, goals)
    restarted = sight_of(space, num_goals=goals)
    for index, one in enumerate(history):
        running = index >= num - 2
        restarted.recall(one, None if running else results(one, goals), running)
    for number in (num, num + 1):  # the first is the sampler's own, the second of the even sequence
        next_one, its_own = whole.propose(number), restarted.propose(number)
        assert next_one is not None and its_own is not None
        assert next_one.params == its_own.params and next_one.internal == its_own.internal
    other = sight_of(space_of(tmp_path, SPACE, f"search.sampler={sampler}", "seed=1"))
    assert run(other, [0])[0].params != history[0].params


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_configuration_comes_twice_and_none_is_left_out(tmp_path: Path, sampler: str) -> None:
    sight = sight_of(space_of(tmp_path, SMALL, f"search.sampler={sampler}"))
    proposals = []
    for number in range(6):
        proposal = sight.propose(number)
        assert proposal is not None
        proposals.append(proposal)
        sight.learn(proposal.config.fingerprint(), None if number % 3 == 2 else (0.5 + number / 100, 0.1))
    assert len({one.config.fingerprint() for one in proposals}) == 6
    assert sight.propose(6) is None


def test_draws_are_not_repeated_where_there_is_no_end_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.search.samplers.TRIES", 1)
    monkeypatch.setattr("sweep.search.samplers.LAST_TRIES", 0)
    proposals = run(sight_of(space_of(tmp_path, SPACE, "search.sampler=random")), range(5))
    assert len({one.params["tabular/optimizer.lr"] for one in proposals}) == 5
    proposals = run(sight_of(space_of(tmp_path, SPACE, "search.sampler=qmc")), range(5))
    assert [one.internal for one in proposals] == [{}] * 5, "how Optuna was asked is no part of what it answered"


def test_what_was_run_before_is_not_run_again_but_what_another_sweep_ran_is(tmp_path: Path) -> None:
    space = space_of(tmp_path, SMALL)
    history = run(sight_of(space), range(6))
    ours, foreign = sight_of(space), sight_of(space)
    for one in history:
        ours.recall(one, (0.5, 0.5))
        foreign.recall(Proposal(**{**vars(one), "foreign": True}), (0.5, 0.5))
    assert ours.propose(6) is None
    again = {one.config.fingerprint() for one in run(foreign, range(6))}
    assert again == {one.config.fingerprint() for one in history}
    assert foreign.propose(6) is None


# --- points ---

POINTS = (
    "search.points=[{arm: tabular, optimizer.lr: 1e-3, objectives.deep.features.params.layer: 2},"
    " {arm: tabular, objectives: deep}, {arm: none, optimizer.lr: 5e-3}, {arm: tabular, optimizer.batch_size: 9}]"
)


def test_points_come_first_in_their_order(tmp_path: Path) -> None:
    space = space_of(tmp_path, SPACE, POINTS)
    first, second, third, fourth = run(sight_of(space), range(4))
    assert (first.config.optimizer.lr, first.config.objectives["features"].params) == (1e-3, {"layer": 2})
    assert 8 <= first.config.optimizer.batch_size <= 11, "what it leaves out is sampled"
    assert list(second.config.objectives) == ["features"]
    assert third.config.optimizer.batch_size == 9
    even = Even(space.arms["tabular"], "tabular", space.seed).point(3)
    assert fourth.params == even, "then those of the even sequence, by how many have been"
    (only,) = run(sight_of(space, "none"), range(1))
    assert only.config.optimizer.lr == 5e-3


def test_a_restarted_driver_takes_up_the_points_where_they_were_left(tmp_path: Path) -> None:
    # The second point says less than the first: the trial of the first fits both, and has had one.
    space = space_of(tmp_path, SPACE, POINTS)
    whole = run(sight_of(space), range(5))
    for done in range(5):
        restarted = sight_of(space)
        for one in whole[:done]:
            restarted.recall(one, results(one))
        assert restarted.propose(done).params == whole[done].params, done  # type: ignore[union-attr]


def test_a_point_that_another_sweep_has_run_is_still_tried_here(tmp_path: Path) -> None:
    space = space_of(tmp_path, SPACE, POINTS)
    (theirs,) = run(sight_of(space), range(1))
    sight = sight_of(space)
    sight.recall(Proposal(**{**vars(theirs), "foreign": True}), (0.5, 0.5))
    (first,) = run(sight, range(1))
    assert (first.config.optimizer.lr, first.config.objectives["features"].params) == (1e-3, {"layer": 2})


# --- what a sampler is told ---


@pytest.mark.parametrize("learned", [0.9, 0.5])
def test_a_pruned_trial_informs_by_what_it_would_have_reached(tmp_path: Path, learned: float) -> None:
    below = 0
    for seed in range(5):
        space = space_of(tmp_path, SINGLE, f"seed={seed}")
        sight = sight_of(space, "none", num_goals=1)
        for index in range(22):  # evenly from 1e-4 to 1e-2; those below 1e-3 were pruned
            lr = 10 ** (-4 + index / 10.5)
            sight.recall(made(space, optimizer__lr=lr), (learned if lr < 1e-3 else 0.7,))
        (proposal,) = run(sight, [22], told=0)  # the 23rd: the sampler's own, not of the even sequence
        below += proposal.config.optimizer.lr < 1e-3
    assert below >= 4 if learned > 0.7 else below <= 1


def test_a_trial_that_says_nothing_leaves_the_sampler_as_it_was(tmp_path: Path) -> None:
    space = space_of(tmp_path, SINGLE)
    proposals = []
    for lost in (False, True):
        sight = sight_of(space, "none", num_goals=1)
        for index in range(22):
            sight.recall(made(space, optimizer__lr=10 ** (-4 + index / 10.5)), (0.5 + index / 100,))
        for lr in (2e-3, 3e-3, 4e-3) if lost else ():  # a lost worker's; three, so that it is the sampler's turn still
            sight.recall(made(space, optimizer__lr=lr))
        proposals += run(sight, [22], told=0)
    assert proposals[0].params == proposals[1].params


# --- in a thread of its own ---


@pytest.fixture
def sampling(tmp_path: Path) -> Iterator[Sampling]:
    space = space_of(tmp_path, SPACE)
    made = Sampling({arm: sight_of(space, arm) for arm in space.arms})
    yield made
    made.close()


def test_one_question_at_a_time_and_answers_in_order(sampling: Sampling) -> None:
    assert sampling.asked is None
    arms = list(itertools.islice(itertools.cycle(("none", "tabular")), 4))
    for number, arm in enumerate(arms):
        sampling.ask(arm, number)
        assert sampling.asked == arm
        there, proposal = sampling.answer(wait=True)
        assert there and proposal is not None and proposal.arm == arm
        assert sampling.asked is None
        sampling.learn(proposal, results(proposal))


def test_what_a_sampler_raises_is_raised_at_the_next_answer(sampling: Sampling) -> None:
    sampling.ask("none", 0)
    _, proposal = sampling.answer(wait=True)
    assert proposal is not None
    for _ in range(2):  # the second time is a mistake of ours
        sampling.learn(proposal, (0.5, 0.5))
    sampling.ask("none", 1)
    sampling.answer(wait=True)
    sampling.ask("none", 2)
    with pytest.raises(ValueError, match="Cannot tell a COMPLETE trial"):
        sampling.answer(wait=True)
