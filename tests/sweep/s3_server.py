"""A real S3 server (moto) in a process of its own, for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

START_SECONDS = 30


@contextmanager
def s3_server() -> Iterator[str]:
    """Starts a server on a free port of the loopback interface, and yields its address without the scheme.

    The server is in an environment of its own (`make install`), because its libraries want an older python-dateutil
    than ours.
    """
    program = shutil.which("moto_server", path=f"{Path(sys.prefix) / 'moto' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs moto_server; `make install` installs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = subprocess.DEVNULL
    process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    address = f"127.0.0.1:{port}"
    try:
        _wait_until_it_answers(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urlopen(f"http://{address}/moto-api/", timeout=2).close()
            return
        except (URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("moto_server does not start")
            time.sleep(0.05)


def call(method: str, url: str, content: bytes | None = None) -> None:
    """Sends a request to the server, for example `PUT http://HOST/BUCKET`, which makes a bucket."""
    headers = {"Content-Type": "text/plain"}  # moto ignores the content of a form
    urlopen(Request(url, data=content, method=method, headers=headers), timeout=10).close()
