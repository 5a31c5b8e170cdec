"""Attempts in logs made by hand: what was lost, and which kill ended which attempt."""

from __future__ import annotations

from benchmarks.attempts import Kill, Line, attempts_of, cut_attempts, losses_of, unexplained_cuts

SECONDS = 10.0  # of an epoch


def attempt(index: int, start: float, resumed: int, ended: int, number: int = 0) -> list[Line]:
    """An attempt that begins at `start`, ends so many epochs, begins another one, and is then cut off."""
    lines = [Line(start, "found", number, index, resumed, 100 + index)]
    for count in range(ended + 1):
        moment, epoch = start + count * SECONDS, resumed + count
        lines += [Line(moment, "ends", number, index, epoch, 100 + index)] if count else []
        lines.append(Line(moment, "begins", number, index, epoch + 1, 100 + index))
    return lines


def kill(at: float, what: str = "worker killed") -> Kill:
    return Kill(0, 0.0, 0, (0,), at - 0.1, at, what=what)


def test_epochs_of_an_attempt_before_the_last_are_lost_too() -> None:
    """The second attempt goes on from the checkpoint of the first and ends no epoch. Then this checkpoint is damaged,
    so that the third one trains what the first had trained.
    """
    lines = [*attempt(1, 0, 0, 4), *attempt(2, 50, 4, 0), *attempt(3, 60, 0, 5)]
    (loss,) = losses_of(lines)
    assert (loss.attempt, loss.epochs, loss.first, loss.last) == (1, 4, 10, 40)
    assert cut_attempts(attempts_of(lines)[0]) == [0, 1]
    assert unexplained_cuts(lines, [kill(45), kill(55)]) == []


def test_a_loss_is_told_by_the_attempts_that_had_trained() -> None:
    lines = [*attempt(1, 0, 0, 2), *attempt(2, 25, 2, 2), *attempt(3, 60, 1, 0)]
    first, second = losses_of(lines)
    assert (first.attempt, first.epochs, first.seconds) == (1, 1, 0)
    assert (second.attempt, second.epochs, second.seconds) == (2, 2, 10)
    # On another node an attempt knew less, but what it did not have it cannot lose.
    lines = [*attempt(1, 0, 0, 4), *attempt(2, 50, 2, 0), *attempt(3, 60, 2, 0)]
    assert [(loss.attempt, loss.epochs) for loss in losses_of(lines)] == [(1, 2)]


def test_each_attempt_that_was_cut_off_needs_a_kill_of_its_own() -> None:
    lines = [*attempt(1, 0, 0, 1), *attempt(2, 20, 1, 1), *attempt(3, 40, 2, 1)]
    assert unexplained_cuts(lines, [kill(15), kill(38)]) == []
    assert unexplained_cuts(lines, [kill(15), kill(19.9)]) == [], "the worker that was just starting lived on"
    (wrong,) = unexplained_cuts(lines, [kill(38, "raylet killed (node-1)")])
    assert wrong == (
        "trial 0: no kill explains the end of attempt 1 ("
        "attempt 1 in process 101 found epoch 0 at 0.0, last begins 2 at 10.0, cut off by nothing known; "
        "attempt 2 in process 102 found epoch 1 at 20.0, last begins 3 at 30.0, cut off by raylet killed (node-1); "
        "attempt 3 in process 103 found epoch 2 at 40.0, last begins 4 at 50.0, not cut off; "
        "done: raylet killed (node-1) 38.0)"
    )


def test_a_kill_elsewhere_in_the_life_of_a_trial_explains_nothing() -> None:
    """As many kills as cuts, but both came before the first attempt was cut off."""
    lines = [*attempt(1, 0, 0, 1), *attempt(2, 20, 1, 1), *attempt(3, 40, 2, 1)]
    (wrong,) = unexplained_cuts(lines, [kill(5), kill(9)])
    assert wrong.startswith("trial 0: no kill explains the end of attempt 2 (")


def test_an_attempt_that_ended_its_epoch_needs_no_kill() -> None:
    saved = attempt(1, 0, 0, 2)[:-1]  # it was asked to end after its second epoch
    assert unexplained_cuts([*saved, *attempt(2, 30, 2, 1)], []) == []
