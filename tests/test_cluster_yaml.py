"""`cluster.yaml` against Ray's own schema, and against what Ray does not check. Offline."""

from __future__ import annotations

import copy
import ipaddress
import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text())
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
COMMAND_LISTS = (*STARTS, "setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")


def problems(cluster: dict) -> list[str]:
    """Returns the mistakes that Ray accepts but we refuse."""
    result = []
    for commands in STARTS:
        starts = [command for command in cluster.get(commands, []) if re.search(r"\bray start\b", command)]
        if not starts:
            result.append(f"{commands}: none starts Ray, so its default would, without a token")
        for command in starts:
            if not re.search(r"RAY_AUTH_MODE=token \S*ray start", command):
                result.append(f"{commands}: starts Ray without RAY_AUTH_MODE=token")
            if "--disable-usage-stats" not in command:
                result.append(f"{commands}: sends usage statistics")
            if "ulimit -n" not in command:
                result.append(f"{commands}: leaves the limit of open files as it is")
            host = re.search(r"--dashboard-host[= ](\S+)", command)
            if "--head" in command and (host is None or host[1] != "127.0.0.1"):
                result.append(f"{commands}: the dashboard does not stay on 127.0.0.1")
    if "~/.ray/auth_token" not in cluster.get("file_mounts", {}):
        result.append("file_mounts: the token does not reach the machines")
    bound = cluster.get("max_workers", 2)
    if "worker_ips" in cluster["provider"]:
        bound = min(bound, len(cluster["provider"]["worker_ips"]))
    types = [
        kind for name, kind in cluster.get("available_node_types", {}).items() if name != cluster["head_node_type"]
    ]
    for kind in [cluster, *types]:
        if not kind.get("min_workers", 0) <= kind.get("max_workers", bound) <= bound:
            result.append(f"workers: {kind.get('min_workers', 0)} to {kind.get('max_workers', bound)} of {bound}")
    return result


def test_ray_accepts_it():
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


@pytest.mark.parametrize("misspelt", ["max_worker", "head_start_ray_command", "rsync_exlude"])
def test_ray_would_refuse_a_misspelt_key(misspelt):
    """Shows that the test above can fail: Ray's schema is present and strict."""
    with pytest.raises(Exception, match=misspelt):
        validate_config(prepare_config({**copy.deepcopy(CLUSTER), misspelt: 1}))


def test_we_accept_it():
    assert problems(CLUSTER) == []


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"worker_start_ray_commands": ["ray start --address=x --disable-usage-stats"]}, "without RAY_AUTH_MODE"),
        ({"worker_start_ray_commands": ["ray stop"]}, "none starts Ray"),
        (
            {"head_start_ray_commands": [CLUSTER["head_start_ray_commands"][-1].replace("127.0.0.1", "0.0.0.0")]},
            "dashboard",
        ),
        ({"file_mounts": {}}, "token does not reach"),
        ({"max_workers": 3}, "0 to 3 of 2|2 to 3 of 2"),
        ({"min_workers": 3}, "3 to 2 of 2"),
        (
            {
                "provider": {"type": "aws", "region": "x"},
                "head_node_type": "head",
                "available_node_types": {"head": {}, "gpu": {"max_workers": 9}},
            },
            "0 to 9 of 2",
        ),
    ],
)
def test_we_refuse_mistakes_that_ray_accepts(broken, complaint):
    assert any(re.search(complaint, problem) for problem in problems({**CLUSTER, **broken}))


def test_every_path_into_the_repository_exists():
    """The start commands use the environment that `make install` builds."""
    commands = [command for name in COMMAND_LISTS for command in CLUSTER.get(name, [])]
    assert "make -C ~/mmpkd install" in commands
    used = {path for command in commands for path in re.findall(r"~/mmpkd/(\S+)/bin/ray", command)}
    assert used == {".venv"}
    assert CLUSTER["file_mounts"]["~/mmpkd"] == "."


def test_no_address_is_real():
    documentation = ipaddress.ip_network("192.0.2.0/24")  # RFC 5737
    provider = CLUSTER["provider"]
    for address in [provider["head_ip"], *provider["worker_ips"]]:
        assert ipaddress.ip_address(address) in documentation
