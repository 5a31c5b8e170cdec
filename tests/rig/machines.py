"""The rig of `shared/rig/cluster_rig.sh` for tests: machines that are namespaces of this one, and what runs on them."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT.parent / "shared" / "rig" / "cluster_rig.sh"
FOLDER = Path(os.environ.get("RIG", "/tmp/cluster_rig"))
ADDRESSES = {"laptop": "10.77.0.2", "head": "10.77.0.10", "w1": "10.77.0.11", "w2": "10.77.0.12", "w3": "10.77.0.13"}
CLUSTER = ("head", "w1", "w2", "w3")
BEGUN = time.monotonic()


def log(line: str) -> None:
    """Prints a line with the seconds since the beginning; `pytest -s` shows it."""
    print(f"[{time.monotonic() - BEGUN:6.1f} s] {line}", flush=True)


def rig(*words: str, text: str | None = None, seconds: float = 600) -> str:
    """Runs a command of the rig's script and returns what it printed.

    Raises:
        AssertionError: it failed.
    """
    done = subprocess.run(
        ["nice", "bash", str(SCRIPT), *words],
        env={**os.environ, "RIG": str(FOLDER)},
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def on(host: str, command: str, **options: str | float) -> str:
    """Runs a command line on a machine, as the user, and returns what it printed."""
    return rig("in", host, command, **options)  # type: ignore[arg-type]


def on_laptop(command: str, **options: str | float) -> str:
    """Runs a command line of the page in the checkout on the laptop."""
    log(f"laptop$ {command}")
    return on("laptop", f"cd checkout; source ~/mmpkd/.venv/bin/activate; {command}", **options)


def on_head(command: str) -> str:
    """Runs a command line on the head, with the cluster's environment."""
    return on("head", f"source ~/mmpkd/deploy/environment.sh; {command}")


def process_1(host: str) -> str:
    """Returns the number of the first process of a machine, as this machine sees it."""
    return (FOLDER / "hosts" / host / "pid").read_text().strip()


def processes(host: str) -> list[str]:
    """Returns the command lines of the user's processes on a machine, without those of ssh and of this call."""
    listed = rig("root", host, "ps -u 2000 -ww -o args= || true").splitlines()
    return [line for line in listed if not line.startswith(("sshd:", "ssh:", "ps -u"))]


def wait_until(what: str, condition: Callable[[], object], seconds: float) -> float:
    """Waits until a condition holds, and returns the seconds that it took.

    Raises:
        AssertionError: it does not come to hold in time.
    """
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"after {seconds:g} s still not: {what}"
        time.sleep(2)
    log(f"{what}: after {time.monotonic() - begun:.0f} s")
    return time.monotonic() - begun


def page_commands() -> list[str]:
    """Returns the commands of the section 'Your own machines' of the page on clusters, with the rig's addresses."""
    section = (ROOT / "docs" / "cluster.md").read_text().partition("\n## Your own machines\n")[2].partition("\n## ")[0]
    commands = []
    for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL):
        commands += [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip()]
    return [with_addresses(command) for command in commands]


def with_addresses(text: str) -> str:
    """Returns a text with the rig's addresses in place of those that are reserved for documentation."""
    return text.replace("192.0.2.", "10.77.0.")


def page_command(words: str) -> str:
    """Returns the only command of the page that contains these words."""
    (command,) = [command for command in page_commands() if words in command]
    return command


def ports_of_the_page() -> dict[str, tuple[str, str]]:
    """Returns who reaches each port of the page's table, and what protects it, by the column with its number."""
    section = (ROOT / "docs" / "cluster.md").read_text().partition("\n## Ports\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")
    ]
    return {row[0]: (row[2], row[3]) for row in rows[1:]}


def copy_code() -> None:
    """Copies this checkout into the rig's template, which must be down; installs the environment the first time."""
    target = FOLDER / "template" / "mmpkd"
    if not (target / ".venv" / ".installed").exists():
        log("installing the environment into the template")
        rig("template", str(ROOT), seconds=1800)
        return
    kept = ["--exclude=.git", "--exclude=.venv", "--exclude=/runs", "--exclude=/cache", "--exclude=*.egg-info"]
    subprocess.run(["rsync", "-a", "--delete", *kept, f"{ROOT}/", str(target)], check=True)
    (target / ".venv" / ".installed").touch()
    subprocess.run(["chown", "-R", "2000:2000", str(FOLDER / "template")], check=True)


def write_configuration(workers: list[str]) -> None:
    """Writes the laptop's cluster.yaml: the checkout's, with only its marked lines changed."""
    text = (ROOT / "cluster.yaml").read_text()
    addresses = ", ".join(ADDRESSES[host] for host in workers)
    for pattern, new in (
        (r"head_ip: \S+", f"head_ip: {ADDRESSES['head']}"),
        (r"worker_ips: \[[^]]*\]", f"worker_ips: [{addresses}]"),
        (r"(m(?:in|ax))_workers: \d+", rf"\1_workers: {len(workers)}"),
    ):
        text, count = re.subn(pattern, new, text)
        assert count, pattern
    on("laptop", "cat > checkout/cluster.yaml", text=text)
