"""Connects to the cluster at RAY_ADDRESS or starts Ray on this machine, and computes the resources of each trial."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import grpc
import ray

# Ray (2.60) documents no function for the address behind `auto` or `localhost:PORT`, and none for the token. Without
# these two, `ray.init` would wait for up to minutes for a cluster that does not answer, or that refuses the token.
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # a compiled module

from mmpkd.machine.resources import cores
from mmpkd.types import ConfigError, UserError
from sweep import interrupt
from sweep.autoscaling import Growth, read_growth
from sweep.local_ray import make_socket_folder, one_line, start_ray

if TYPE_CHECKING:  # workers import this module, and need none of the samplers, which load SciPy
    from sweep.space.search_config import SearchConfig

ANSWER_SECONDS: Final = 5.0  # time within which a cluster has to answer
ROUNDING: Final = 1e-9  # so that 3 x 1/3 of a device counts as one device


# --- what a trial reserves ---


@dataclass(frozen=True)
class Reservation:
    """The CPU cores and the share of a GPU that one trial reserves in a Ray cluster."""

    cpus: float
    gpus: float

    @property
    def devices(self) -> float:
        """The device-seconds that the trial uses in one second: its share of a GPU, or its number of cores if it has no
        GPU.
        """
        return self.gpus or self.cpus

    @property
    def per_device(self) -> int:
        """The number of trials that share a GPU, or the cores of a machine if the trials have no GPU."""
        return int((1 / self.gpus if self.gpus else largest_machine_cores() / self.cpus) + ROUNDING)

    def doubled(self) -> Reservation | None:
        """Returns a larger reservation, with which half the number of trials (rounded down) run on a device. Returns
        None if a trial already has a device to itself.
        """
        trials = self.per_device
        if self.gpus:  # a trial that is alone on a GPU may still have reserved only a part of its memory
            return replace(self, gpus=1 / max(trials // 2, 1)) if self.gpus < 1 else None
        machine_cores = largest_machine_cores()
        return replace(self, cpus=machine_cores / (trials // 2)) if trials > 1 else None


def wanted_per_device(search: SearchConfig) -> int | Literal["auto"] | None:
    """Returns the number of trials that shall share a device of the running cluster: a number, `auto` if the best
    number is to be measured, or None if `search.cpus` and `search.gpus` set what a trial reserves.

    Only this function decides what happens if a space sets neither `trials_per_device` nor `gpus`: in a cluster with
    GPUs, or with GPUs to come, the number is measured, otherwise a trial reserves cores.
    """
    if search.trials_per_device is None and search.gpus is None and expects_gpus():
        return "auto"
    return search.trials_per_device


def reservation_for(search: SearchConfig, threads: int, per_device: int | None) -> Reservation:
    """Returns the cores and the share of a GPU that each trial reserves.

    Args:
        per_device: number of trials that share a GPU. Without a GPU it is the number of trials that share the cores of
            a machine. If None, `search.cpus` and `search.gpus` of the space set the reservation.
    """
    if per_device is None:
        return Reservation(search.cpus or float(threads), search.gpus or 0.0)
    if expects_gpus():
        return Reservation(search.cpus or float(threads), 1 / per_device)
    return Reservation(largest_machine_cores() / per_device, 0.0)


def largest_machine_cores() -> float:
    """Returns the number of cores of the largest machine in the cluster."""
    return max((machine["CPU"] for machine in living_machines() if machine.get("CPU")), default=1.0)


def cores_per_device() -> float:
    """Returns the number of cores that a machine of the cluster has for each of its GPUs, at most. Without GPUs it is
    the number of cores of the largest machine.
    """
    machines = [machine for machine in living_machines() if machine.get("GPU")]
    return max((machine.get("CPU", 0.0) / machine["GPU"] for machine in machines), default=largest_machine_cores())


def expects_gpus() -> bool:
    """Whether the cluster has GPUs, or its configuration says that machines with GPUs may join it."""
    return bool(ray.cluster_resources().get("GPU", 0)) or configured_growth().has_gpus


def configured_growth() -> Growth:
    """Returns what the running cluster may become, as far as this machine knows."""
    return read_growth(ray.get_runtime_context().gcs_address) if cluster_address() else Growth()


def living_machines() -> list[Mapping[str, float]]:
    """Returns the resources of each machine of the cluster that is alive. Without a running Ray there is none."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []


def count_slots(reservation: Reservation) -> int:
    """Returns the number of trials that can run at the same time in the whole cluster.

    Raises:
        ConfigError: Ray runs on this machine alone, and the machine is too small for a single trial. In a cluster this
            is no error, because a cluster may grow.
    """
    available = ray.cluster_resources()
    fitting = _count_fitting(available, reservation)
    if not fitting and not cluster_address():
        if available.get("CPU", 0.0) + ROUNDING < reservation.cpus:
            raise _too_few_cores(reservation.cpus, "search.cpus")
        problem = f"a trial wants {reservation.gpus:g} GPUs, and {available.get('GPU', 0):g} GPUs are here"
        raise ConfigError.at("search.gpus", f"{problem}; set search.gpus=...")
    return max(fitting, 1)


def trials_at_a_time(reservation: Reservation, at_a_time: int | None, growth: Growth) -> int:
    """Returns the number of trials that may be requested at once, running trials included.

    It is `at_a_time` if that is set. Otherwise it is the number of trials that can run when the cluster is as large as
    it is or may become, plus one that waits for a place, so that a free worker need not wait for a proposal. A cluster
    that grows is thus asked for all its machines at once.

    Raises:
        ConfigError: see `count_slots`.
    """
    slots = count_slots(reservation)
    return at_a_time or max(slots, count_future_slots(reservation, growth)) + 1


def count_future_slots(reservation: Reservation, growth: Growth) -> int:
    """Returns the number of trials that can run at the same time on all machines that may join the cluster. A machine
    whose resources are not known counts as the largest machine that is there, and as one trial if none is there.
    """
    slots, machines = 0, growth.most
    on_each = [
        (_count_fitting(kind.resources, reservation) if kind.resources else count_machine_slots(reservation), kind.most)
        for kind in growth.types
    ]
    for trials, most in sorted(on_each, reverse=True):
        slots, machines = slots + trials * min(most, machines), machines - min(most, machines)
    return slots


def count_machine_slots(reservation: Reservation) -> int:
    """Returns the number of trials that can run at the same time on the largest machine of the cluster."""
    on_largest = max((_count_fitting(machine, reservation) for machine in living_machines()), default=1)
    return max(min(count_slots(reservation), on_largest), 1)


def _count_fitting(resources: Mapping[str, float], reservation: Reservation) -> int:
    trials = int(resources.get("CPU", 0.0) / reservation.cpus + ROUNDING)
    if reservation.gpus:  # the share of a trial lies on a single GPU
        trials = min(trials, int(resources.get("GPU", 0.0)) * reservation.per_device)
    return trials


def refuse_too_many_cores(search: SearchConfig, threads: int) -> None:
    """Checks, before Ray is started, that this process may use the cores that a trial reserves.

    Raises:
        ConfigError: this process may use fewer cores than a trial reserves. The message says what limits them. If
            RAY_ADDRESS names a cluster, nothing is checked, because the cluster knows its own cores.
    """
    if cluster_address() or search.trials_per_device is not None:
        return
    if (search.cpus or threads) > cores().amount:
        raise _too_few_cores(search.cpus or threads, "search.cpus" if search.cpus else "threads")


def _too_few_cores(needed: float, leaf: str) -> ConfigError:
    allowed = cores()
    return ConfigError.at(
        leaf,
        f"a trial wants {needed:g} cores, and the sweep may use {allowed.amount} here "
        f"(what sets this: {allowed.source}); set {leaf}={allowed.amount}, or start the sweep with more cores",
    )


# --- starting and joining ---


def cluster_address() -> str:
    """Returns the address of the running cluster. It is empty if Ray is started on this machine for this driver
    alone.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


@contextmanager
def cluster() -> Iterator[None]:
    """Connects to a running Ray cluster, or starts Ray on this machine. At the end it disconnects, or stops the Ray
    that it started.

    Raises:
        UserError: the cluster at RAY_ADDRESS does not answer, or Ray cannot be started on this machine.
        KeyboardInterrupt: the driver was asked to end while Ray was being started.
    """
    if ray.is_initialized():  # the tests share one Ray
        yield
        return
    folder = None if cluster_address() else make_socket_folder()
    try:
        try:
            if folder is None:
                _join()
            else:
                start_ray(folder)
        except SystemExit:  # Ray installs a handler for SIGTERM that raises this, until our handler is installed again
            interrupt.record_request("SIGTERM")
            raise KeyboardInterrupt from None
        finally:
            interrupt.install_handlers()
        yield
    finally:
        with interrupt.deferred():
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _join() -> None:
    refuse_silent_cluster()
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        raise UserError(
            f"RAY_ADDRESS={cluster_address()}: the Ray cluster there cannot be used ({one_line(error)}).\n"
            "  Both sides need the same versions of Ray and Python; without RAY_ADDRESS it runs on this machine alone."
        ) from error


def refuse_silent_cluster() -> None:
    """Checks that the cluster at RAY_ADDRESS answers. Without this check Ray would wait for minutes and then end the
    process.

    Raises:
        UserError: the cluster does not answer within ANSWER_SECONDS or refuses the token, or the address is not the
            address of a Ray cluster.
    """
    address = cluster_address()
    if not address:
        return
    advice = "Give the head's HOST:PORT (ray start prints it; 6379 is the usual port), or unset RAY_ADDRESS"
    if "://" in address:
        kind = "Ray client" if address.startswith("ray://") else "web"
        raise UserError(
            f"RAY_ADDRESS={address}: a sweep's driver cannot work through a {kind} address. "
            f"{advice}, or send the command to the cluster: ray job submit -- python -m sweep.run ..."
        )
    try:
        head = canonicalize_bootstrap_address_or_die(address)  # 'auto' is the cluster last started on this machine
        host, _, port = head.rpartition(":")
        socket.getaddrinfo(host.strip("[]"), int(port))
    except socket.gaierror as error:
        raise UserError(f"RAY_ADDRESS={address}: no machine has that name ({error.strerror}). {advice}") from error
    except (ConnectionError, ValueError, OverflowError) as error:
        raise UserError(f"RAY_ADDRESS={address}: {one_line(error)}. {advice}") from error
    if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
        _ask_head(address, head, advice)


def _ask_head(address: str, head: str, advice: str) -> None:
    token = tuple(AuthenticationTokenLoader.instance().get_token_for_http_header().items())  # () without the mode
    with grpc.insecure_channel(head) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", ANSWER_SECONDS, token)
        except grpc.FutureTimeoutError as error:
            problem = f"nothing at {head} answered as a Ray cluster does within {ANSWER_SECONDS:g} s"
            raise UserError(f"RAY_ADDRESS={address}: {problem}. {advice}") from error
        except grpc.RpcError as error:
            problem = f"what answers at {head} is not the head of a Ray cluster ({error.code().name})"
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                problem = f"the cluster asks for its token, and this process sends {'another' if token else 'none'}"
                advice = "Set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from the head; or unset RAY_ADDRESS"
            raise UserError(f"RAY_ADDRESS={address}: {problem}. {advice}") from error
