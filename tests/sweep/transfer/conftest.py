"""A bucket of a real S3 server, and the environment from which a user's process knows it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from s3_server import call, s3_server

NUMBERS = itertools.count()
SECRET = "a-planted-secret"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The server's host and port."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a new bucket, with credentials and the server's address in the environment."""
    name = f"bucket-{next(NUMBERS)}"
    call("PUT", f"http://{s3}/{quote(name)}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return f"s3://{name}"
