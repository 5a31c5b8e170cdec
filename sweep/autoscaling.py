"""Reads what a Ray cluster may become, from the file with which its autoscaler was started.

Ray (2.60) has a place for this in its control store (`ClusterConfig`), but neither of its two autoscalers writes it.
The autoscaler runs on the head, and its command names the file (`ray up` puts `~/ray_bootstrap_config.yaml` there). A
driver that runs on the head, as `ray job submit` arranges, can read the file. Elsewhere, and under KubeRay, nothing is
known, and `search.at_a_time` says how many trials are requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

CONFIG_WORD: Final = "--autoscaling-config="
ADDRESS_WORD: Final = "--gcs-address="


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that a cluster may have.

    Attributes:
        resources: its cores and GPUs as Ray counts them, such as `{"CPU": 16, "GPU": 4}`. Empty if the file does not
            say, as for machines of one's own.
        most: the largest number of machines of this kind.
    """

    resources: Mapping[str, float]
    most: int


@dataclass(frozen=True)
class Growth:
    """What a cluster may become: kinds of machines beside the head, and the largest number of all of them together."""

    types: tuple[NodeType, ...] = ()
    most: int = 0

    @property
    def has_gpus(self) -> bool:
        """Whether a machine with a GPU may join the cluster."""
        return any(kind.resources.get("GPU") for kind in self.types if min(kind.most, self.most) > 0)


def growth_of(config: Mapping[str, Any]) -> Growth:
    """Returns what the content of an autoscaler's file allows. An entry that is missing counts as Ray counts it: a kind
    of machine without `max_workers` is limited by the cluster's `max_workers`, which is 2 by default.
    """
    most = int(config.get("max_workers", 2))
    head = config.get("head_node_type")
    types = [
        NodeType(
            {name: float(amount) for name, amount in (kind.get("resources") or {}).items() if name in ("CPU", "GPU")},
            int(kind.get("max_workers", 0 if name == head else most)),
        )
        for name, kind in (config.get("available_node_types") or {}).items()
    ]
    return Growth(tuple(kind for kind in types if kind.most > 0), most)


def read_growth(gcs_address: str, processes: Path = Path("/proc")) -> Growth:
    """Returns what the cluster with this address may become. The result is empty if no autoscaler of the cluster runs
    on this machine, or if its file cannot be read.
    """
    for command in processes.glob("[0-9]*/cmdline"):
        with suppress(OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
            words = command.read_bytes().decode(errors="replace").split("\0")
            files = [word.removeprefix(CONFIG_WORD) for word in words if word.startswith(CONFIG_WORD)]
            if files and f"{ADDRESS_WORD}{gcs_address}" in words:
                return growth_of(yaml.safe_load(Path(files[0]).expanduser().read_text()))
    return Growth()
