"""The kinds of faults of the campaign: what is done to the rig, and how the campaign sees that the sweep goes on."""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from benchmarks.attempts import PATIENCE, Kill, attempts_of
from benchmarks.chaos.rig import FEWEST_NODES, SLOTS, Rig
from benchmarks.chaos.training import NAN, RAISE
from benchmarks.witness import descendants
from tests.sweep.nodes import Node


@dataclass
class Injection:
    """A fault that has been done.

    Attributes:
        text: what it was done to.
        hit: numbers of the trials that it disturbs.
        seconds: how long it lasts; meanwhile `keep` is called often, and then `undo` ends it.
        recovered: whether the sweep goes on, for a fault that disturbs no trial. By default every trial of `hit` must
            report a new epoch, or end.
        remedy: what a person would do if the sweep does not go on by itself.
        clean: what is done in the end, in both cases.
        kills: whether it ends the processes of these trials, which must then begin a new attempt.
        cuts: whether an epoch may be cut off without that, so that it is begun a second time.
        damages: whether epochs that have ended may be lost.
        family: commands of the processes that must end with it, by process id.
        allowed: seconds within which they must end.
    """

    text: str
    hit: tuple[int, ...] = ()
    seconds: float = 0.0
    keep: Callable[[], None] = lambda: None
    undo: Callable[[], None] = lambda: None
    recovered: Callable[[], bool] | None = None
    remedy: Callable[[], None] = lambda: None
    clean: Callable[[], None] = lambda: None
    kills: bool = False
    cuts: bool = False
    damages: bool = False
    family: dict[int, str] = field(default_factory=dict)
    allowed: float = PATIENCE


def kill_driver(rig: Rig, chance: random.Random) -> Injection | None:
    flying, pid = rig.in_flight(), rig.driver_pid()
    if not flying or pid is None:
        return None
    family = dict(descendants(pid)) | dict.fromkeys(flying.values(), "a worker")
    os.kill(pid, signal.SIGKILL)
    return Injection(f"process {pid}", tuple(flying), kills=True, family=family)


def terminate_group(rig: Rig, chance: random.Random) -> Injection | None:
    """As batch systems end a job, which they then queue again."""
    flying, pid = rig.in_flight(), rig.driver_pid()
    if not flying or pid is None:
        return None
    family = dict(descendants(rig.command.pid)) | dict.fromkeys(flying.values(), "a worker")
    rig.asked_to_end = True
    os.killpg(rig.command.pid, signal.SIGTERM)
    return Injection(f"group {rig.command.pid}", tuple(flying), kills=True, family=family)


def kill_worker(rig: Rig, chance: random.Random) -> Injection | None:
    if not (flying := rig.in_flight()):
        return None
    number = chance.choice(sorted(flying))
    os.kill(flying[number], signal.SIGKILL)
    return Injection(f"worker of trial {number}", (number,), kills=True, family={flying[number]: "a worker"})


def _busy_node(rig: Rig, chance: random.Random) -> tuple[Node, dict[int, str], tuple[int, ...]] | None:
    """Returns a node that trains, its processes and the numbers of its trials. If it were one of the last nodes, starts
    another one, as an autoscaler does, and returns None.
    """
    flying, nodes = rig.in_flight(), rig.workers()
    if len(nodes) <= FEWEST_NODES:
        rig.add_node()
        return None
    busy = []
    for node in nodes:
        processes = node.processes()
        if hit := tuple(number for number, pid in flying.items() if pid in processes):
            busy.append((node, processes, hit))
    return chance.choice(busy) if busy else None


def kill_raylet(rig: Rig, chance: random.Random) -> Injection | None:
    if (busy := _busy_node(rig, chance)) is None:
        return None
    node, processes, hit = busy
    for pid, command in processes.items():
        if "/raylet/raylet" in command:
            os.kill(pid, signal.SIGKILL)
    return Injection(f"raylet of {node.name}", hit, kills=True, family=processes)


def unplug_node(rig: Rig, chance: random.Random) -> Injection | None:
    """Stops every process of a node at once, so that nothing closes a connection, and kills them once the sweep goes on
    elsewhere.
    """
    if (busy := _busy_node(rig, chance)) is None:
        return None
    node, _, hit = busy
    node.send(signal.SIGSTOP)
    return Injection(node.name, hit, kills=True, clean=node.kill)


def remove_node(rig: Rig, chance: random.Random) -> Injection | None:
    """Ends a node in good order, as an autoscaler does."""
    if (busy := _busy_node(rig, chance)) is None:
        return None
    node, processes, hit = busy
    node.process.terminate()
    return Injection(node.name, hit, kills=True, family=processes, allowed=DRAIN_SECONDS + PATIENCE)


def add_node(rig: Rig, chance: random.Random) -> Injection | None:
    if not rig.in_flight() or rig.waiting() < SLOTS:
        return None
    earlier, node = len(rig.cluster.nodes), rig.add_node()

    def is_used() -> bool:
        new = {pid for node in rig.cluster.nodes[earlier:] for pid in node.processes()}
        return bool(new & set(rig.in_flight().values()))

    return Injection(node.name, recovered=is_used)


def raise_always(rig: Rig, chance: random.Random) -> Injection | None:
    return _order(rig, RAISE)


def diverge(rig: Rig, chance: random.Random) -> Injection | None:
    return _order(rig, NAN)


def _order(rig: Rig, order: str) -> Injection | None:
    """Orders a trial to fail that cannot end before it obeys: its epoch is not its last, or it is held back in it."""
    newest = {line.number: line for line in rig.lines()}
    lines = [newest[number] for number in rig.in_flight()]
    begun = [line for line in lines if line.word == "begins"]
    held = [line for line in begun if line.epoch not in rig.stops or line.time > rig.held_since]
    if not held:
        return None
    number = min(held, key=lambda line: (line.epoch, line.number)).number
    (rig.orders / f"{order}-{number}").touch()
    return Injection(f"trial {number}", (number,))


def stop_worker(rig: Rig, chance: random.Random) -> Injection | None:
    """Stops a worker that has reported, and whose epochs were short: from them follows how long silence is allowed."""
    flying, attempts = rig.in_flight(), attempts_of(rig.lines())
    regular = []
    for number in sorted(flying):
        lines = attempts[number][-1]
        longest = max((after.time - before.time for before, after in pairwise(lines)), default=math.inf)
        if any(line.word == "ends" for line in lines) and longest < SHORT_EPOCH:
            regular.append(number)
    if not regular:
        return None
    number = chance.choice(regular)
    pid = flying[number]
    os.kill(pid, signal.SIGSTOP)

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    return Injection(f"worker of trial {number}", (number,), kills=True, remedy=kill)


def corrupt_checkpoint(rig: Rig, chance: random.Random) -> Injection | None:
    """Overwrites a part of a trial's newest checkpoint, in the storage and on the disk of its node, and kills its
    worker, which would write a new one.
    """
    flying = rig.in_flight()
    saved = {number: copies for number in flying if (copies := rig.newest_checkpoints(number))}
    if not saved:
        return None
    number = chance.choice(sorted(saved))
    os.kill(flying[number], signal.SIGKILL)
    for path in saved[number]:
        with path.open("r+b") as file:
            file.seek(chance.randrange(path.stat().st_size // 2))
            file.write(chance.randbytes(100))
    family, text = {flying[number]: "a worker"}, f"{saved[number][0].parent.name} of trial {number}"
    return Injection(text, (number,), kills=True, damages=True, family=family)


def take_tracking_away(rig: Rig, chance: random.Random) -> Injection | None:
    server = rig.server
    if server is None or not rig.in_flight():
        return None
    server.kill()
    size: list[int] = []

    def has_caught_up() -> bool:
        size[:] = size or [rig.sweep.spool.stat().st_size]
        return int((rig.sweep.spool_sent.read_text() or "0").split()[0]) >= size[0]

    return Injection("the server", seconds=chance.uniform(3, 10), undo=server.start, recovered=has_caught_up)


def make_read_only(rig: Rig, chance: random.Random) -> Injection | None:
    if not (flying := rig.in_flight()):
        return None
    rig.disk.make_read_only()
    seconds = chance.uniform(3, 10)
    return Injection(f"for {seconds:.1f} s", tuple(flying), seconds, undo=rig.disk.make_writable, cuts=True)


def fill_disk(rig: Rig, chance: random.Random) -> Injection | None:
    if not (flying := rig.in_flight()):
        return None
    rig.disk.fill()
    seconds = chance.uniform(3, 10)
    what = f"for {seconds:.1f} s"
    return Injection(what, tuple(flying), seconds, keep=rig.disk.fill, undo=rig.disk.make_room, cuts=True)


TRACKING: Final = "MLflow away"
READ_ONLY, FULL = "storage read-only", "storage full"
ON_DISK: Final = {READ_ONLY, FULL}  # kinds that need a disk of their own
SHORT_EPOCH: Final = 35.0  # seconds
DRAIN_SECONDS: Final = 30.0  # for which Ray (2.60) lets the workers of a node go on that is asked to end
Inject = Callable[[Rig, random.Random], Injection | None]  # returns None while there is nothing to do it to
KINDS: Final[Mapping[str, Inject]] = {
    "driver killed": kill_driver,
    "worker killed": kill_worker,
    "raylet killed": kill_raylet,
    "node unplugged": unplug_node,
    "node removed": remove_node,
    "node added": add_node,
    TRACKING: take_tracking_away,
    READ_ONLY: make_read_only,
    FULL: fill_disk,
    "checkpoint corrupted": corrupt_checkpoint,
    "worker hangs": stop_worker,
    "trial always raises": raise_always,
    "loss is NaN": diverge,
    "SIGTERM to the group": terminate_group,
}


def as_kill(kind: str, injection: Injection, since: float, at: float) -> Kill:
    family, what = dict(injection.family), f"{kind} ({injection.text})"
    return Kill(0, 0.0, 0, injection.hit, since, at, family, allowed=injection.allowed, what=what)
