"""Files by path and by address: on a disk, in a real S3 server, and every address that is refused."""

from __future__ import annotations

import errno
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from s3_server import call

from mmpkd.types import ConfigError
from sweep.patience import is_of_store
from sweep.transfer import addresses
from sweep.transfer.addresses import Place, place


@pytest.fixture(params=["a folder", "a bucket", "fsspec"])
def somewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "a folder":
        return place(tmp_path / "runs")
    if request.param == "fsspec":
        return Place("memory", f"{tmp_path.name}/runs")  # a scheme that only this process sees, so users cannot name it
    return place(request.getfixturevalue("bucket")).child("runs")


def test_files_are_written_read_listed_and_deleted(somewhere: Place) -> None:
    assert not somewhere.exists() and somewhere.names() == [] and somewhere.sizes() == {}
    somewhere.child("demo/plan.json").write_bytes(b"plan")
    somewhere.child("demo/errors/3.txt").write_bytes(b"error of trial 3")
    somewhere.child("demo/plan.json").write_bytes(b"another plan")
    assert somewhere.exists() and somewhere.child("demo/plan.json").exists()
    assert somewhere.child("demo/plan.json").read_bytes() == b"another plan"
    assert somewhere.names() == ["demo"]
    assert somewhere.child("demo").names() == ["errors", "plan.json"]
    assert somewhere.sizes() == {"demo/errors/3.txt": 16, "demo/plan.json": 12}

    somewhere.child("demo/plan.json").delete()
    assert somewhere.sizes() == {"demo/errors/3.txt": 16}
    somewhere.child("demo").delete()
    assert somewhere.sizes() == {} and somewhere.names() == []
    somewhere.child("demo").delete()  # nothing is there any more


def test_a_missing_file_is_no_empty_file(somewhere: Place, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        somewhere.child("nothing").read_bytes()
    with pytest.raises(FileNotFoundError):
        somewhere.download("nothing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_large_files_travel_whole(somewhere: Place, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2**16  # 16 MiB: more than a part of an upload, and than a chunk of a copy
    (tmp_path / "source").write_bytes(content)
    somewhere.upload(tmp_path / "source", "demo/last.pt")
    assert somewhere.sizes() == {"demo/last.pt": len(content)}
    somewhere.download("demo/last.pt", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == content
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


def test_a_copy_that_breaks_off_is_not_left(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(b"whole")

    def copy_half(source: object, target: object, length: int) -> None:
        target.write(b"who")  # type: ignore[attr-defined]
        raise OSError("the disk is gone")

    monkeypatch.setattr("shutil.copyfileobj", copy_half)
    with pytest.raises(OSError, match="the disk is gone"):
        place(bucket).upload(tmp_path / "source", "last.pt")
    assert place(bucket).names() == []


def test_a_disk_that_fails_does_not_cost_the_earlier_copy(bucket: str) -> None:
    class Failing:
        """A file whose second part cannot be read."""

        def __init__(self) -> None:
            self.reads = iter([b"half", OSError(errno.EIO, "Input/output error", "last.pt")])

        def open(self, mode: str) -> Any:
            return self

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *ignored: object) -> None:
            pass

        def read(self, length: int) -> bytes:
            content = next(self.reads)
            if isinstance(content, OSError):
                raise content
            return content

    folder = place(bucket).child("runs/disk")
    folder.child("last.pt").write_bytes(b"earlier")
    with pytest.raises(OSError, match="Input/output error"):
        folder.upload(cast(Path, Failing()), "last.pt")
    assert folder.child("last.pt").read_bytes() == b"earlier"


def test_a_place_works_in_another_process(bucket: str) -> None:
    pickled = pickle.dumps(place(bucket).child("runs"))
    assert b"planted" not in pickled
    program = f"import pickle; pickle.loads({pickled!r}).child('hello').write_bytes(b'from there')"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert place(f"{bucket}/runs/hello").read_bytes() == b"from there"


def test_the_server_can_stand_in_the_address(bucket: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place(bucket).child("runs/hello").write_bytes(b"hello")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    folder = place(f"{bucket}/runs/?endpoint_override={s3}&scheme=http&region=eu-west-1")
    assert folder.child("hello").read_bytes() == b"hello"
    assert str(folder.child("hello")) == f"{bucket}/runs/hello?endpoint_override={s3}&scheme=http&region=eu-west-1"


@pytest.mark.parametrize("text", ["runs", "/shared/runs", "./s3:/bucket", "a:b", "with space: 3", "runs@home", ""])
def test_paths_stay_paths(text: str) -> None:
    assert place(text).is_local and str(place(text)) == text and place(text).local_path == Path(text)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3:/bucket/runs", ["'s3:/bucket/runs' names no bucket", "write s3://BUCKET/FOLDER"]),
        ("s3:bucket/runs", ["names no bucket", "write s3://BUCKET/FOLDER"]),
        ("s3:///bucket/runs", ["names no bucket", "write s3://BUCKET/FOLDER"]),
        ("S3:", ["names no bucket", "write s3://BUCKET/FOLDER"]),
        ("s3://", ["names no bucket", "write s3://BUCKET/FOLDER"]),
        ("gs:/bucket", ["names no bucket", "write gs://BUCKET/FOLDER"]),
        ("s4://bucket/runs", ["unknown scheme 's4'", "did you mean 's3'?"]),
        ("sss3://bucket/runs", ["unknown scheme 'sss3'", "did you mean 's3'"]),
        ("http://host/runs", ["unknown scheme 'http'"]),
        ("file:///shared/runs", ["unknown scheme 'file'"]),
        ("s3://bucket/runs?regoin=eu-west-1", ["unknown option 'regoin'", "did you mean 'region'"]),
        ("s3://bucket/runs?secret_key=planted", ["unknown option 'secret_key'"]),
        ("s3://key:planted@bucket/runs", ["'s3://bucket/runs' holds credentials", "AWS_SECRET_ACCESS_KEY"]),
        ("s3://bucket/runs?endpoint_override=me:planted@host", ["'s3://bucket/runs' holds credentials"]),
        ("s3://key:with/planted@bucket/runs", ["'s3://bucket/runs' holds credentials", "AWS_SECRET_ACCESS_KEY"]),
        ("s5://key:planted@bucket/runs", ["unknown scheme 's5'"]),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(address: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        place(address, "cache")
    message = str(caught.value)
    assert message.startswith("cache: ") and all(word in message for word in words), message
    assert "planted" not in message


def test_a_missing_bucket_is_named(bucket: str) -> None:
    place(bucket).check()
    with pytest.raises(ConfigError, match="there is no bucket 'elsewhere'; make it, or name another"):
        place("s3://elsewhere/runs").check()


def test_a_store_that_does_not_answer_is_named(bucket: str) -> None:
    with socket.socket() as silent:  # a port at which nobody listens
        silent.bind(("127.0.0.1", 0))
        address = f"s3://bucket/runs?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http"
        with pytest.raises(ConfigError, match=r"the store does not answer .*Could not connect to server"):
            place(address).check()


def test_an_error_of_a_store_is_as_one_of_a_disk(bucket: str) -> None:
    with pytest.raises(OSError, match="there is no bucket") as caught:
        place("s3://elsewhere/runs/file").write_bytes(b"")
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, "s3://elsewhere/runs/file")
    assert is_of_store(caught.value)
    with pytest.raises(FileNotFoundError) as missing:
        place(bucket).child("file").read_bytes()
    assert not is_of_store(missing.value) and missing.value.filename == f"{bucket}/file"


def test_refused_credentials_are_named(bucket: str, s3: str) -> None:
    call("POST", f"http://{s3}/moto-api/reset-auth", b"0")  # from now on the server checks the credentials
    try:
        with pytest.raises(ConfigError, match=r"access is refused; check the credentials .AWS_ACCESS_KEY_ID") as caught:
            place(bucket).check()
        assert "planted" not in str(caught.value)
    finally:
        call("POST", f"http://{s3}/moto-api/reset-auth", b"inf")


def test_errors_of_all_types_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of fsspec raise errors of their own types, such as azure.core.exceptions.ServiceRequestError."""

    class ServiceRequestError(Exception):
        pass

    class Silent:
        def get_file_info(self, selected: object) -> object:
            raise ServiceRequestError("Cannot connect to host")

    monkeypatch.setattr(addresses, "_file_system", lambda *ignored: Silent())
    with pytest.raises(OSError, match="Cannot connect to host") as caught:
        place("az://container/runs").exists()
    assert caught.value.filename == "az://container/runs" and is_of_store(caught.value)
    with pytest.raises(ConfigError, match="storage: az://container/runs: Cannot connect to host"):
        place("az://container/runs").check()


def test_a_scheme_without_its_package_names_the_package() -> None:
    with pytest.raises(ConfigError, match=r"[Ii]nstall adlfs"):
        place("az://container/runs").check()
