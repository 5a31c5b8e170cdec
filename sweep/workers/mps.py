"""Runs NVIDIA's Multi-Process Service (MPS) on this machine for as long as this process lives.

Without MPS, processes that share a GPU take turns on it. With MPS, their kernels run at the same time.

A daemon of MPS must not outlive its sweep. So a shell, the watcher, owns the daemon. It reads from a pipe whose other
end this process holds. The pipe closes when this process ends in whatever way, and then the watcher ends the daemon,
removes its folder and ends itself.

Source: https://docs.nvidia.com/deploy/mps and the manual page nvidia-cuda-mps-control(1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

CONTROL: Final = "nvidia-cuda-mps-control"
PIPES: Final = "CUDA_MPS_PIPE_DIRECTORY"  # the variable by which the daemon and its clients find each other
LOGS: Final = "CUDA_MPS_LOG_DIRECTORY"
START_SECONDS: Final = 10.0  # time within which a daemon has to answer
CLIENT_SECONDS: Final = 60.0  # time within which a process has to use CUDA through MPS
# Ray kills the children of a worker that ends, so the watcher runs in the background of a shell that ends at once and
# belongs to no worker. `quit -t` waits up to 10 s for trials that are still connected, because a sweep ends its MPS
# before its workers. The last command ends the process group: whatever the daemon has left, and the watcher itself.
WATCHER: Final = """
exec 3<&0
(
    trap '' HUP INT TERM
    nvidia-cuda-mps-control -f </dev/null >"$0/log" 2>&1 3<&- &
    cat <&3 >/dev/null
    echo quit -t 10 | timeout 20 nvidia-cuda-mps-control
    rm -rf "$0"
    kill -KILL 0
) &
"""
# Python code that creates a CUDA context, as a trial does. It fails if CUDA cannot be used, or is used without MPS.
# CUDA works without MPS if it does not reach the daemon, which then has no server.
CLIENT: Final = f"""
import ctypes, subprocess, sys
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
failed = cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
servers = subprocess.run(["{CONTROL}"], input=b"get_server_list\\n", capture_output=True).stdout.split()
sys.exit(bool(failed or not servers))
"""


class Mps:
    """MPS on this machine. It ends when this object's process ends, or with `stop`.

    Args:
        folder: folder for the pipes of MPS, which is made and removed. Its path must be short, because a socket's path
            may have 107 bytes.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._pipe: IO[bytes] | None = None  # the watcher waits until this end of the pipe closes

    def start(self, gpus: int, client: str = CLIENT) -> str:
        """Starts MPS. Returns an empty text, or the reason why MPS cannot be used on this machine.

        Args:
            gpus: number of GPUs of this machine that the sweep may use.
            client: Python code that uses CUDA, by which MPS is tried.
        """
        if problem := _obstacle(gpus):
            return problem
        try:
            self._folder.mkdir(mode=0o700)
        except OSError as error:
            return f"{self._folder}: {error.strerror}"
        environment = _environment(self._folder)
        watcher = subprocess.Popen(
            ["sh", "-c", WATCHER, str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        self._pipe = watcher.stdin
        watcher.wait()
        # A trial sees one GPU, by a number that Ray gives it.
        if problem := _trial_of(client, environment | {"CUDA_VISIBLE_DEVICES": str(gpus - 1)}):
            self.stop()
        return problem

    def stop(self) -> None:
        """Ends MPS, and waits until its folder is removed."""
        if self._pipe is not None:
            self._pipe.close()
            _wait_until(lambda: not self._folder.exists())


def join(folder: Path) -> None:
    """Lets this process use the MPS with this folder if it runs. It must be called before the process uses CUDA."""
    if folder.exists():
        os.environ.update({PIPES: str(folder), LOGS: str(folder)})


def _obstacle(gpus: int) -> str:
    """Returns why MPS must not be started on this machine, or an empty text."""
    if shutil.which(CONTROL) is None:
        return f"{CONTROL} is not on the PATH"
    if os.environ.get(PIPES):
        return f"{PIPES} names another one"
    if _has_daemon(dict(os.environ)):
        return "another one serves this machine"
    command = ["nvidia-smi", "--query-gpu=compute_mode,mig.mode.current", "--format=csv,noheader"]
    try:
        modes = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not tell the compute mode of the GPUs"
    lines = modes.strip().splitlines()
    if len(lines) != gpus:
        return f"the sweep has {gpus} of the {len(lines)} GPUs of the machine"
    if "Prohibited" in modes or "Enabled" in modes:
        return "the compute mode of a GPU is Prohibited, or MIG is enabled"
    return ""


def _trial_of(client: str, environment: dict[str, str]) -> str:
    """Returns an empty text if a process can use CUDA through MPS, or what goes wrong."""
    if not _wait_until(lambda: _has_daemon(environment)):
        return f"its daemon did not answer within {START_SECONDS:g} s"
    try:
        command = [sys.executable, "-c", client]
        subprocess.run(command, env=environment, capture_output=True, timeout=CLIENT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return "a process could not use CUDA through it"
    return ""


def _has_daemon(environment: dict[str, str]) -> bool:
    """Returns whether a daemon answers at the place that the environment names, or at NVIDIA's own."""
    question = b"get_server_list\n"
    try:
        subprocess.run(
            [CONTROL], input=question, env=environment, capture_output=True, timeout=START_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _wait_until(condition: Callable[[], bool]) -> bool:
    """Waits until the condition holds, for at most START_SECONDS, and returns whether it does."""
    deadline = time.monotonic() + START_SECONDS
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


def _environment(folder: Path) -> dict[str, str]:
    # The daemon serves every GPU. Were it started with CUDA_VISIBLE_DEVICES, it would number them anew for its clients.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return environment | {PIPES: str(folder), LOGS: str(folder)}
