"""Parses the command lines of the sweep commands, and checks the addresses of tracking servers.

`read_run_options` parses the command line of `sweep.run`. `read_sweep_options` parses the command lines of
`sweep.status`, `sweep.stop` and `sweep.clean`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Final
from urllib.parse import quote as quote_in_uri
from urllib.parse import unquote, urlsplit

from mmpkd.command import dashed_words, empty_words, expand_home, own_words
from mmpkd.machine.checksums import fingerprint
from mmpkd.near_names import near
from mmpkd.types import ConfigError, Mistake
from sweep.storage.layout import Storage, SweepFolder
from sweep.transfer.addresses import place
from sweep.transfer.scratch import scratch_folder

DEFAULT_STORAGE: Final = "runs"  # folder of all sweeps
DEFAULT_CACHE: Final = "cache"  # folder of prepared images and teachers' outputs
SWITCHES: Final = ("show", "schema", "plan", "extend", "repair")  # keys of sweep.run
CLUSTER_RESTARTS: Final = 20  # restarts of a driver on a cluster, unless `restarts=` names another number
RUN_KEYS: Final = (
    *("space", "name", "storage", "cache", "scratch", "scratch_gb", "tracking", "patience", "restarts"),
    *SWITCHES,
)
TRACKING_SCHEMES: Final = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")  # known to MLflow


# --- sweep.run ---


@dataclass(frozen=True)
class RunOptions:
    """The parsed command line of `sweep.run`: the command's own keys, and the overrides of leaves of the search
    space.
    """

    space: str = "demo"
    name: str = ""
    storage: str = DEFAULT_STORAGE
    cache: str = DEFAULT_CACHE
    scratch: str = ""
    scratch_gb: str = ""
    tracking: str = ""
    patience: str = "24h"
    restarts: str = ""
    show: bool = False
    schema: bool = False
    plan: bool = False
    extend: bool = False
    repair: bool = False
    overrides: tuple[str, ...] = ()
    words: tuple[str, ...] = ()  # the whole command line, with passwords removed
    part_of: str = ""  # the command line whose part this sweep is, such as that of a confirmation; empty for a user's

    @property
    def num_restarts(self) -> int:
        """How often the driver is started again after a crash, at most."""
        return int(self.restarts) if self.restarts else CLUSTER_RESTARTS if self.cluster else 0

    @property
    def all_sweeps(self) -> Storage:
        """The folder of all sweeps, with an absolute path."""
        return storage_at(self.storage, self.scratch)

    @property
    def folder(self) -> SweepFolder:
        """The sweep's folder, with an absolute path."""
        return self.all_sweeps.sweep(self.name)

    @property
    def scratch_gigabytes(self) -> float:
        """The value of `scratch_gb=`, or 0 for half of the disk."""
        return float(self.scratch_gb or 0)

    @property
    def tracking_uri(self) -> str:
        """Address of the tracking server: the value of `tracking=`, else of MLFLOW_TRACKING_URI, else the SQLite file
        in the folder of all sweeps.
        """
        named = self.tracking or os.environ.get("MLFLOW_TRACKING_URI")
        return named or sqlite_uri(self.all_sweeps.mlflow_database)

    @property
    def command(self) -> str:
        """The command line that continues this sweep alone."""
        return run_command(self.words, self.cluster)

    @property
    def continuing(self) -> str:
        """The command line with which a user continues: that of the whole if this sweep is a part of something."""
        return on_cluster(self.part_of, self.cluster) if self.part_of else self.command

    @property
    def cluster(self) -> str:
        """The address of the Ray cluster; empty if the sweep runs on this machine alone."""
        address = os.environ.get("RAY_ADDRESS", "").strip()
        return "" if address == "local" else address


def read_run_options(words: Sequence[str], leaves: Iterable[str] = ()) -> tuple[RunOptions, list[Mistake]]:
    """Returns the options of `sweep.run`, and all mistakes in the command line.

    Args:
        leaves: paths of the leaves of the space that a word may override. If the user writes `--key value`, the key is
            compared with these paths, so that the error message names the right key.

    Raises:
        ConfigError: a word is written as `--key value`. Parsing stops there, because it is uncertain which of the other
            words are values of such keys.
    """
    defaults = {key: getattr(RunOptions, key) for key in RUN_KEYS} | dict.fromkeys(SWITCHES, "false")
    values, overrides = own_words(words, defaults, leaves, addresses=("storage", "cache"))
    mistakes = list[Mistake]()
    for key in ("storage", "cache", "scratch"):
        mistakes += address_mistakes(values[key], key)
        if not (path := str(Path(values[key]).absolute())).isprintable():
            problem = "line breaks, control characters and bytes that are no UTF-8 cannot be written to tables"
            mistakes.append(Mistake(key, f"{problem}; name another folder than {path!r}"))
    name = values["name"] or Path(values["space"]).stem
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        wanted = "letters, digits, '-', '_' and '.' only, at most 100"
        mistakes.append(Mistake("name", f"{wanted}, got {name!r}"))
    mistakes += _switch_mistakes(values, SWITCHES)
    if "://" in values["scratch"]:
        mistakes.append(Mistake("scratch", f"a folder on the disk of every machine, got {values['scratch']!r}"))
    gigabytes = values["scratch_gb"]
    if gigabytes and not (re.fullmatch(r"\d+(\.\d+)?", gigabytes, re.ASCII) and float(gigabytes)):
        mistakes.append(Mistake("scratch_gb", f"a number of gigabytes such as 500, got {gigabytes!r}"))
    if seconds_of(values["patience"]) is None:
        mistakes.append(Mistake("patience", f"a duration such as 30min, 12h or 7d, got {values['patience']!r}"))
    if values["restarts"] and not re.fullmatch(r"\d{1,4}", values["restarts"], re.ASCII):
        mistakes.append(Mistake("restarts", f"a number from 0 to 9999, got {values['restarts']!r}"))
    run_options = RunOptions(
        space=values["space"],
        name=name,
        storage=values["storage"],
        cache=values["cache"],
        scratch=values["scratch"],
        scratch_gb=values["scratch_gb"],
        tracking=values["tracking"],
        patience=values["patience"],
        restarts=values["restarts"],
        overrides=tuple(overrides),
        words=tuple(map(redact_passwords, words)),
        part_of="",
        **{key: values[key] == "true" for key in SWITCHES},
    )
    try:
        if not address_mistakes(values["storage"], "storage"):
            check_tracking_uri(run_options.tracking_uri)
    except ConfigError as error:
        mistakes += error.mistakes
    return run_options, mistakes


def seconds_of(duration: str) -> float | None:
    """Returns the seconds of a duration such as `90s`, `30min`, `12h` or `7d`, or None if the text is no duration."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d)", duration, re.ASCII)
    return float(match[1]) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[match[2]] if match else None


def address_mistakes(address: str, key: str) -> Sequence[Mistake]:
    """Returns the mistakes in a path or an address. Nothing is read and no connection is made."""
    try:
        place(address, key)
    except ConfigError as error:
        return error.mistakes
    return ()


def storage_at(address: str, scratch: str = "") -> Storage:
    """Returns the folder of all sweeps at a path or an address.

    A driver keeps the files of sweeps in an object store in a folder of this machine whose name contains a hash of the
    address.

    Args:
        scratch: the value of `scratch=`.

    Raises:
        ConfigError: the address cannot be served, or the folder cannot be made.
    """
    where = place(address)
    if where.is_local:
        return Storage(where.local_path.absolute())
    readable = re.sub(r"\W+", "-", where.path, flags=re.ASCII)[:50]
    return Storage(scratch_folder(scratch) / "sweeps" / f"{readable}-{fingerprint([str(where)])}", where)


def run_command(words: Iterable[str], cluster: str = "") -> str:
    """Returns the command line that runs `sweep.run` with these words, quoted for a shell.

    Args:
        cluster: address of the Ray cluster on which the sweep runs; empty for one machine.
    """
    return on_cluster(" ".join(["python -m sweep.run", *map(quote, words)]), cluster)


def on_cluster(command: str, cluster: str) -> str:
    """Returns a command line that runs on this Ray cluster; an empty address is this machine alone."""
    return f"RAY_ADDRESS={quote(cluster)} {command}" if cluster else command


# --- sweep.status, sweep.stop, sweep.clean ---


def read_sweep_options(words: Sequence[str], defaults: Mapping[str, str]) -> tuple[dict[str, str], list[Mistake]]:
    """Parses words of the form `[NAME] [key=value ...]`; returns the values by key, and all mistakes in the words.

    Args:
        defaults: the default value of each key of the command, the key `name` included. A key with the default 'false'
            is a boolean switch.
    """
    values: dict[str, str] = dict(defaults)
    mistakes = [*dashed_words(words, defaults)]
    for word in [word for word in words if not word.startswith("-")]:
        key, equals, value = word.partition("=")
        if equals and key in defaults:
            values[key] = expand_home(value)
        elif equals:
            mistakes.append(Mistake(key, f"unknown word{near(key, defaults)}"))
        elif word in defaults:
            mistakes.append(Mistake(word, f"expected key=value{near(word, defaults)}"))
        elif values["name"]:
            mistakes.append(Mistake(word, f"one sweep at a time, and {values['name']!r} is named already"))
        else:
            values["name"] = word
    mistakes += _switch_mistakes(values, [key for key, default in defaults.items() if default == "false"])
    mistakes += (empty := [*empty_words(values, defaults)])
    return values | {mistake.path: defaults[mistake.path] for mistake in empty}, mistakes


def _switch_mistakes(values: Mapping[str, str], switches: Iterable[str]) -> list[Mistake]:
    wrong_keys = [key for key in switches if values[key] not in ("true", "false")]
    return [Mistake(key, f"true or false, got {values[key]!r}") for key in wrong_keys]


# --- addresses of tracking servers ---


def check_tracking_uri(uri: str) -> str:
    """Returns a tracking address in the form that MLflow accepts. The path of a SQLite file is made absolute.

    Raises:
        ConfigError: MLflow accepts no address of this form.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in TRACKING_SCHEMES:
        wanted = (
            f"sqlite:///{Storage(Path(uri)).mlflow_database}" if not scheme else "sqlite:///FILE or http://HOST:PORT"
        )
        problem = f"{redact_passwords(uri)!r} is no address of a tracking server; write {wanted}"
        raise ConfigError.at("tracking", problem)
    if scheme == "sqlite":
        if "?" in uri or not sqlite_file(uri).name:
            wanted = "wanted is sqlite:///FILE, with %3F for a '?' in its path and %25 for a '%'"
            raise ConfigError.at("tracking", f"{uri!r} names no SQLite file; {wanted}")
        # MLflow (3.17) writes the working directory into a new database, quoted as in Python and not as in SQL.
        working_directory = os.getcwd()
        if "'" in working_directory and '"' in working_directory and not sqlite_file(uri).exists():
            problem = f"MLflow cannot make a SQLite file from within {working_directory}"
            why = "the name of that folder holds both kinds of quotes"
            raise ConfigError.at("tracking", f"{problem}: {why}; start the command in another folder")
        return sqlite_uri(sqlite_file(uri))
    return uri


def sqlite_uri(path: Path) -> str:
    """Returns the `sqlite:` address of a file, with its path percent-quoted. Unquoted, a `?` in the path would begin a
    query, and `%20` would be read as a blank.
    """
    return f"sqlite:///{quote_in_uri(os.fsencode(path.absolute()))}"


def sqlite_file(uri: str) -> Path:
    """Returns the path of the file that a `sqlite:` address names."""
    return Path(unquote(uri.partition("://")[2].removeprefix("/"), errors="surrogateescape"))


def redact_passwords(text: str) -> str:
    """Returns the text with the password in every URL replaced."""
    return re.sub(r"(://[^:/@]*):[^@\s]*@", r"\1:***@", text)
