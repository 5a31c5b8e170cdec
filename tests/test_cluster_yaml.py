"""The cluster files against Ray's own schema, and against what Ray does not check. Offline."""

from __future__ import annotations

import copy
import ipaddress
import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
OWN = yaml.safe_load((ROOT / "cluster.yaml").read_text())
CLOUD = yaml.safe_load((ROOT / "cluster.cloud.yaml").read_text())
BOTH = pytest.mark.parametrize("cluster", [OWN, CLOUD], ids=["cluster.yaml", "cluster.cloud.yaml"])
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
COMMAND_LISTS = (*STARTS, "setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands")


def problems(cluster: dict) -> list[str]:
    """Returns the mistakes that Ray accepts but we refuse."""
    result = []
    for commands, kind in zip(STARTS, ("head", "worker"), strict=True):
        starts = cluster.get(commands, [])
        if not any(f"~/mmpkd/deploy/ray_node.sh {kind}" in command for command in starts):
            result.append(f"{commands}: none starts Ray by ray_node.sh {kind}, so nothing sets token, ports and folder")
        if not any("ray start" in command for command in starts):
            result.append(f"{commands}: without the words 'ray start' Ray warns that it will not be started")
        if any(re.search(r"(?<!echo \")\bray start --", command) for command in starts):
            result.append(f"{commands}: starts Ray beside ray_node.sh")
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


@BOTH
def test_ray_accepts_it(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))


@pytest.mark.parametrize("misspelt", ["max_worker", "head_start_ray_command", "rsync_exlude"])
@BOTH
def test_ray_would_refuse_a_misspelt_key(cluster, misspelt):
    """Shows that the test above can fail: Ray's schema is present and strict."""
    with pytest.raises(Exception, match=misspelt):
        validate_config(prepare_config({**copy.deepcopy(cluster), misspelt: 1}))


@BOTH
def test_we_accept_it(cluster):
    assert problems(cluster) == []


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"worker_start_ray_commands": ["ray start --address=x"]}, "by ray_node.sh worker"),
        ({"worker_start_ray_commands": [*OWN["worker_start_ray_commands"], "ray start --address=x"]}, "beside"),
        ({"head_start_ray_commands": ["~/mmpkd/deploy/ray_node.sh head"]}, "without the words 'ray start'"),
        ({"head_start_ray_commands": ["ray stop"]}, "by ray_node.sh head"),
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
    assert any(re.search(complaint, problem) for problem in problems({**OWN, **broken}))


@BOTH
def test_every_path_into_the_repository_exists(cluster):
    commands = [command for name in COMMAND_LISTS for command in cluster.get(name, [])]
    assert any("make -C ~/mmpkd install" in command for command in commands)
    used = {path for command in commands for path in re.findall(r"~/mmpkd/([\w./-]+)", command)}
    assert {"deploy/environment.sh", "deploy/ray_node.sh"} <= used
    assert [path for path in used if not (ROOT / path).exists()] == []
    assert cluster["file_mounts"]["~/mmpkd"] == "."


def test_no_address_is_real():
    documentation = ipaddress.ip_network("192.0.2.0/24")  # RFC 5737
    provider = OWN["provider"]
    for address in [provider["head_ip"], *provider["worker_ips"]]:
        assert ipaddress.ip_address(address) in documentation


def test_key_is_not_the_one_that_opens_everything():
    """Ray copies the key to the head, so it must not be the user's own."""
    assert OWN["auth"]["ssh_private_key"] == "~/.ssh/mmpkd_cluster"
