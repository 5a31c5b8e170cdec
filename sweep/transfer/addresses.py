"""Files on a disk or in an object store, by path or by address: `runs`, `s3://bucket/runs`, `gs://bucket/runs`.

A `Place` is a file or a folder at such an address. Amazon's protocol (S3) and Google's are spoken by pyarrow, all other
schemes by packages of fsspec, which the user installs. An address never holds credentials, because every user of a
machine can read its command lines. They come from the environment of each process.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qs, parse_qsl, urlsplit

from pyarrow import fs

from mmpkd.machine.files import write_atomically
from mmpkd.near_names import near
from mmpkd.types import ConfigError
from sweep.transfer.refusals import CREDENTIALS, OF_PACKAGE, explained, in_words, no_bucket

OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {  # what may follow the `?` of an address
    "s3": ("endpoint_override", "region", "scheme"),
    "gs": ("endpoint_override", "scheme"),
}
FSSPEC_SCHEMES: Final = ("abfs", "az", "oci", "oss")  # object stores whose packages fsspec names if they are missing
SILENT_SECONDS, CHUNK_BYTES = 10, 8 * 2**20  # a store is silent after these seconds; files are copied in such chunks
Method = TypeVar("Method", bound=Callable[..., Any])


def _explains(method: Method) -> Method:
    """Returns a method of `Place` that explains the errors of an object store."""

    @wraps(method)
    def explaining(place: Place, *arguments: Any) -> Any:
        try:
            return method(place, *arguments)
        except Exception as error:  # packages of fsspec raise errors of their own types
            if not place.is_local and getattr(error, "errno", None) is None:  # otherwise of a file on a disk
                raise explained(error, str(place)) from error
            if isinstance(error, OSError):  # pyarrow (25) names no file
                error.filename = error.filename or str(place)
            raise

    return cast(Method, explaining)


@dataclass(frozen=True)
class Place:
    """A file or a folder on a disk or in an object store.

    A place can be pickled, and used in any process that has the credentials. If a store does not answer or refuses, its
    methods raise an OSError with number, text and address (`refusals.explained`).

    Attributes:
        scheme: the scheme of the address. It is empty for a path on a disk.
        path: the path on the disk, or the bucket and the key.
        query: the options of the address without the `?`, such as 'region=eu-west-1'.
    """

    scheme: str
    path: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}{self.query and '?' + self.query}" if self.scheme else self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def bucket(self) -> str:
        """The bucket of a place in an object store."""
        return self.path.partition("/")[0]

    @property
    def is_local(self) -> bool:
        """Whether the place is on a disk."""
        return not self.scheme

    @property
    def local_path(self) -> Path:
        """The path of a place that is on a disk."""
        assert self.is_local, f"{self} is on no disk"
        return Path(self.path)

    def child(self, name: str) -> Place:
        """Returns the place of this name below this one. The name may contain slashes."""
        return replace(self, path=f"{self.path}/{name}")

    @_explains
    def exists(self) -> bool:
        """Returns whether there is a file or a folder."""
        return bool(self._type() != fs.FileType.NotFound)

    @_explains
    def names(self) -> list[str]:
        """Returns the names of the files and folders directly below this place, sorted. There are none if the place
        does not exist.
        """
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self._files.get_file_info(selector))

    @_explains
    def sizes(self) -> dict[str, int]:
        """Returns the size in bytes of every file below this place. The keys are paths relative to the place, sorted.
        There are none if the place does not exist.
        """
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        sizes = {info.path: info.size for info in self._files.get_file_info(selector) if info.is_file}
        start = len(self.path.strip("/")) + 1
        return {path.strip("/")[start:]: size for path, size in sorted(sizes.items())}

    @_explains
    def read_bytes(self, begin: int = 0) -> bytes:
        """Returns the content of the file from this byte on.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if self.is_local:
            return self.local_path.read_bytes()[begin:]
        with self._files.open_input_file(self.path) as file:
            file.seek(min(begin, file.size()))
            return bytes(file.read())

    @_explains
    def write_bytes(self, content: bytes) -> None:
        """Writes the file atomically: readers see the old content or the new, never a part of it."""
        if self.is_local:
            self.local_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.local_path, content)
            return
        with self._files.open_output_stream(self.path, compression=None) as stream:
            stream.write(content)

    @_explains
    def upload(self, path: Path, name: str) -> None:
        """Copies a file from a disk of this machine to the file `name` below this place.

        A reader sees an earlier copy or the new one, never a part of it. The file is read to its end first, so that a
        disk that fails does not cost the earlier copy. If it still breaks off, no copy is left.
        """
        target = self.child(name)
        if self.is_local:
            _copy_atomically(path, target.local_path)
            return
        with path.open("rb") as source:
            while source.read(CHUNK_BYTES):
                pass
            source.seek(0)
            stream = target._files.open_output_stream(target.path, compression=None)
            try:
                shutil.copyfileobj(source, stream, CHUNK_BYTES)
            except BaseException:
                with suppress(OSError):  # pyarrow (25) cannot abandon an upload: what was sent becomes the file
                    stream.close()
                    target.delete()
                raise
            stream.close()

    @_explains
    def download(self, name: str, path: Path) -> None:
        """Copies the file `name` below this place to a file on a disk of this machine, atomically.

        Raises:
            FileNotFoundError: there is no such file.
        """
        source = self.child(name)
        if self.is_local:
            _copy_atomically(source.local_path, path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.partial")
        with source._files.open_input_stream(source.path, compression=None) as stream, beside.open("wb") as target:
            shutil.copyfileobj(stream, target, CHUNK_BYTES)
        os.replace(beside, path)

    @_explains
    def delete(self) -> None:
        """Deletes the file, or the folder with everything below it. Does nothing if it does not exist."""
        with suppress(FileNotFoundError):
            if self._type() == fs.FileType.Directory:
                self._files.delete_dir(self.path)
            else:
                self._files.delete_file(self.path)

    def check(self, key: str = "storage") -> None:
        """Checks that the store of an address answers, accepts the credentials and has the bucket.

        Args:
            key: the key of the command line with this address, for the message.

        Raises:
            ConfigError: it does not.
        """
        if self.is_local:
            return
        try:
            is_missing = self._files.get_file_info(self.bucket).type == fs.FileType.NotFound
        except Exception as error:  # also of a package that is missing, or that lacks an option
            raise ConfigError.at(key, in_words(explained(error, str(self)))) from None
        if is_missing and self.scheme in OPTIONS:
            raise ConfigError.at(key, f"{self}: {no_bucket(self.bucket)}")

    def _type(self) -> fs.FileType:
        return self._files.get_file_info(self.path).type

    @property
    def _files(self) -> fs.FileSystem:
        return _file_system(self.scheme, self.bucket if self.scheme else "", self.query)


def place(address: str | Path, key: str = "storage") -> Place:
    """Returns the place at a path or an address. Nothing is read and no connection is made; `Place.check` does that.

    Args:
        key: the key of the command line with this address, for the message.

    Raises:
        ConfigError: it is neither a path nor an address that can be served.
    """
    text = str(address)
    scheme, colon, after = text.partition(":")
    if isinstance(address, Path) or not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return Place("", text)
    scheme, shown = scheme.lower(), _without_userinfo(text)
    name, _, query = after.lstrip("/").partition("?")
    num_slashes, path = len(after) - len(after.lstrip("/")), name.strip("/")
    schemes = (*OPTIONS, *FSSPEC_SCHEMES)
    if num_slashes < 2 and scheme not in schemes:
        return Place("", text)  # a folder with a colon in its name
    if scheme not in schemes:
        raise ConfigError.at(key, f"{shown!r} begins with the unknown scheme {scheme!r}{near(scheme, schemes)}")
    if num_slashes != 2 or not path:
        raise ConfigError.at(key, f"{shown!r} names no bucket; write {scheme}://BUCKET/FOLDER")
    if shown != text or "@" in query:
        advice = f"give them in the environment ({CREDENTIALS.get(scheme, OF_PACKAGE)})"
        problem = f"{shown.partition('?')[0]!r} holds credentials, which other users can read in command lines"
        raise ConfigError.at(key, f"{problem}; {advice}")
    for option, _ in parse_qsl(query, keep_blank_values=True):
        if option not in OPTIONS.get(scheme, ()):
            problem = f"{scheme}://{path} has the unknown option {option!r}{near(option, OPTIONS.get(scheme, ()))}"
            raise ConfigError.at(key, problem)
    return Place(scheme, path, query)


def _without_userinfo(text: str) -> str:
    """Returns an address without a user and a password, which may have slashes; no bucket's name has a colon."""
    return re.sub(r"^([^:]*:/*)(?:[^/?:]*:.*|[^/?]*)@", r"\1", text)


def _copy_atomically(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.partial")
    shutil.copyfile(source, beside)
    os.replace(beside, target)


@lru_cache(maxsize=16)
def _file_system(scheme: str, bucket: str, query: str) -> fs.FileSystem:
    """Returns the file system of an address. It connects to a store when it is first used."""
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    if not scheme:
        return fs.LocalFileSystem()
    if scheme == "s3":
        return _s3(bucket, options)
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=SILENT_SECONDS), **options)
    import fsspec

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))


def _s3(bucket: str, options: dict[str, str]) -> fs.S3FileSystem:
    """Returns the file system of an S3 store: Amazon's, or the one that the options or the environment name."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" not in options and endpoint:  # pyarrow (25) ignores these variables
        parts = urlsplit(endpoint)
        options = {"scheme": parts.scheme, "endpoint_override": parts.netloc} | options
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if "region" not in options:
        options["region"] = region or ("us-east-1" if "endpoint_override" in options else fs.resolve_s3_region(bucket))
    # Small files are sent in a single request, and a silent store costs seconds, not minutes.
    return fs.S3FileSystem(
        connect_timeout=SILENT_SECONDS / 2,
        request_timeout=SILENT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        allow_delayed_open=True,
        **options,
    )
