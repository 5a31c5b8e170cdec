"""Skips the tests of the rig unless they are asked for, and where the machine cannot run them."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.rig.machines import SCRIPT


def missing() -> str:
    """Returns what this machine lacks for the rig, in words, or nothing."""
    if os.geteuid() != 0:
        return "the rig needs root"
    if not SCRIPT.exists():
        return f"the rig needs {SCRIPT}"
    absent = [name for name in ("/usr/sbin/sshd", "rsync", "ip", "nft", "ssh-keygen") if shutil.which(name) is None]
    if not absent:
        return ""
    return f"the rig needs {', '.join(absent)}: apt-get install openssh-server rsync iproute2 nftables"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks every test of this folder with `rig`, and with the reason why it is skipped."""
    for item in items:
        if item.path.parent.name == "rig":
            item.add_marker(pytest.mark.rig)
            reason = "asked for by -m rig" if "rig" not in config.option.markexpr else missing()
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
