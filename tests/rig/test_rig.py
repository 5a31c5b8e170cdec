"""The page on clusters, followed word for word on machines that are namespaces of this one: pytest -m rig -n 0 -s.

The tests build on each other, in their order, on one cluster: it is started, a sweep runs into trouble, ports are tried
from inside and outside, secrets are looked for, and the cluster is ended. It takes about ten minutes on two cores.
"""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig.machines import (
    ADDRESSES,
    CLUSTER,
    FOLDER,
    copy_code,
    log,
    on,
    on_head,
    on_laptop,
    page_command,
    page_commands,
    ports_of_the_page,
    processes,
    rig,
    wait_until,
    write_configuration,
)

ROOT = Path(__file__).parents[2]
TRIALS, EPOCHS = 6, 20
SECRETS = {kind: secrets.token_hex(16) for kind in ("environment", "address", "key")}  # planted to be searched for
OUTSIDE = "10.77.0.200"
END_SECONDS = 75  # in which every process has gone; Ray's two agents of a machine end up to a minute after its raylet


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[None]:
    """Five machines that are ready for the page's first step, and are ended whatever happens."""
    rig("down")
    copy_code()
    rig("up")
    log("five machines are up")
    on(
        "laptop",
        f"for name in {' '.join(ADDRESSES.values())}; do ssh-keyscan $name; done > ~/.ssh/known_hosts 2> /dev/null",
    )
    write_configuration(["w1", "w2"])
    yield
    rig("down")
    log("the machines are gone")


@contextmanager
def in_background(command: str) -> Iterator[None]:
    """Runs a command line on the laptop as long as the block lasts."""
    log(f"laptop$ {command} &")
    begin = "cd checkout; source ~/mmpkd/.venv/bin/activate; exec setsid bash -c"
    written = f"{begin} {shlex.quote('echo $$ > ~/background; exec ' + command)}"
    process = subprocess.Popen(
        ["bash", str(ROOT.parent / "shared" / "rig" / "cluster_rig.sh"), "in", "laptop", written],
        env={"RIG": str(FOLDER), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        on("laptop", "kill -- -$(cat ~/background) || true")  # with its ssh, as Ctrl-C does
        process.wait(30)


def active_nodes() -> int:
    """Returns how many machines `ray status` lists as active, by the page's command."""
    status = on_laptop(page_command("ray status"))
    active = status.partition("Active:")[2].partition("Pending:")[0]
    return sum(int(count) for count in re.findall(r"^ *(\d+) ", active, re.MULTILINE))


def is_alive(host: str) -> bool:
    """Returns whether Ray lists a machine as alive, by the page's command."""
    return any(ADDRESSES[host] in line and "ALIVE" in line for line in on_head("ray list nodes").splitlines())


# --- Steps 1 to 5 ---


def test_the_first_steps_of_the_page_lead_to_a_cluster():
    plant_keys()
    for command in page_commands():
        if "ray status" in command:
            break
        on_laptop(command if "source" not in command else "true")
    plant_secrets()
    wait_until("head and two workers are listed", lambda: active_nodes() == 3, 180)


def test_firewall_of_the_page_closes_the_machines():
    rules = (ROOT / "deploy" / "firewall.nft").read_text()
    elements = ", ".join(ADDRESSES[host] for host in CLUSTER)
    rules, count = re.subn(r"elements = \{[^}]*\}", f"elements = {{ {elements} }}", rules)
    assert count == 1
    with outside() as scan:
        assert {22, 20000, 20001} <= {*scan("head")["head"]}  # shows that the scan below would find them
        for host in CLUSTER:
            rig("root", host, "cat > /tmp/firewall.nft; nft -f /tmp/firewall.nft", text=rules)
        open_ports = scan(*CLUSTER)
        log(f"ports that answer to a machine outside the cluster: {open_ports}")
        assert open_ports == {host: [22] for host in CLUSTER}


@contextmanager
def outside() -> Iterator:
    """A machine on the same wire that is not of the cluster; yields a function that scans others from there."""
    name = "rig-outside"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in (
            f"ip link add {name} type veth peer name eth0 netns {name}",
            f"ip link set {name} master rigbr up",
            f"ip -n {name} addr add {OUTSIDE}/24 dev eth0",
            f"ip -n {name} link set eth0 up",
        ):
            subprocess.run(shlex.split(command), check=True)

        def scan(*hosts: str) -> dict[str, list[int]]:
            words = ["ip", "netns", "exec", name, "nice", "python3", str(ROOT / "tests" / "rig" / "scan.py")]
            begun = {
                host: subprocess.Popen([*words, ADDRESSES[host]], stdout=subprocess.PIPE, text=True) for host in hosts
            }
            return {host: [int(port) for port in process.communicate()[0].split()] for host, process in begun.items()}

        yield scan
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


# --- Steps 6 and 7, with trouble ---


def plant_secrets() -> None:
    """Puts a secret into the environment of the job, and another into the address of the tracking server."""
    lines = (
        f"PLANTED_SECRET={SECRETS['environment']}\n"
        f"MLFLOW_TRACKING_URI=http://planted:{SECRETS['address']}@127.0.0.1:5000\n"
    )
    on("head", "mkdir -p -m 700 ~/.mmpkd; umask 077; cat > ~/.mmpkd/environment", text=lines)


def plant_keys() -> None:
    """Puts a secret into the environment of the trials, as keys of an object store would be, before `ray up`."""
    line = f"PLANTED_KEY={SECRETS['key']}\n"
    for host in ("w1", "w2", "w3"):
        on(host, "mkdir -p -m 700 ~/.mmpkd; umask 077; cat > ~/.mmpkd/environment", text=line)


def jobs() -> str:
    """Returns what the page's command prints about jobs."""
    return on_laptop(page_command("job list"))


def job_log() -> str:
    """Returns what the drivers of all jobs printed."""
    logs = sorted((FOLDER / "hosts" / "head" / "tmp").glob("mmpkd-2000/ray/session_2*/logs/job-driver-*.log"))
    return "".join(path.read_text() for path in logs)


def loss_is_noticed() -> bool:
    """Returns whether Ray's control service has given a machine up."""
    logs = (FOLDER / "hosts" / "head" / "tmp").glob("mmpkd-2000/ray/session_2*/logs/gcs_server.out")
    return any("dead because the health check failed" in path.read_text() for path in logs)


def trains(host: str) -> bool:
    """Returns whether a trial runs on a machine."""
    return any("ray::" in line and "train" in line for line in processes(host))


def driver() -> str:
    """Returns the number of the driver's process on the head, or nothing."""
    listed = rig("root", "head", "pgrep -u 2000 -f 'python -m sweep.run' | tail -n 1 || true")
    return listed.strip()


def test_sweep_goes_on_through_every_trouble():
    command = page_command("job submit").replace("/shared/cache", f"/shared/cache trials={TRIALS} epochs={EPOCHS}")
    on_laptop(command)
    wait_until("trials run on w2", lambda: trains("w2"), 400)
    time.sleep(10)

    log("w2 is unplugged")
    rig("off", "w2")
    wait_until("the loss of w2 is noticed", loss_is_noticed, 30)

    log("w3 is added")
    on_laptop("ssh-copy-id -i ~/.ssh/mmpkd_cluster.pub researcher@10.77.0.13")
    on_laptop(page_command("add_machine.sh"))
    wait_until("w3 is alive", lambda: is_alive("w3"), 120)

    log("/shared is read-only for a minute")
    rig("ro")
    time.sleep(60)
    rig("rw")

    number = driver()
    assert number
    log("the driver is killed")
    rig("root", "head", f"kill -9 {number}")

    log("w2 is switched on again")
    rig("on", "w2")
    wait_until("w2 has joined again", lambda: is_alive("w2"), 180)
    wait_until("the job has ended", lambda: "RUNNING" not in jobs() and "PENDING" not in jobs(), 900)
    log(job_log()[-3000:])
    assert "SUCCEEDED" in jobs()
    assert (FOLDER / "shared" / "runs" / "demo" / "report.html").exists()


def test_mlflow_answers_through_the_tunnel_of_the_page():
    with in_background(page_command("ray dashboard")):
        ask = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:5000/ || true"
        wait_until("MLflow answers 200 on the laptop", lambda: on("laptop", ask) == "200", 60)
        search = "http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=5"
        assert '"name": "demo"' in on("laptop", f"curl -s '{search}'")


# --- Ports ---


def knock(host: str, address: str, ports: list[int], token: str = "") -> dict[int, str]:
    """Returns the answers of ports, as asked from a machine."""
    text = (ROOT / "tests" / "rig" / "knock.py").read_text()
    words = " ".join([address, *map(str, ports), *(["--token", token] if token else [])])
    lines = on(host, f"cat > /tmp/knock.py; mmpkd/.venv/bin/python /tmp/knock.py {words} 2>&1", text=text)
    pairs = [line.partition(" ") for line in lines.splitlines() if line[:1].isdigit()]
    return {int(port): answer for port, _, answer in pairs}


def listening(host: str) -> set[tuple[str, int]]:
    """Returns the addresses and ports on which a machine listens."""
    lines = rig("root", host, "ss -Hltn").splitlines()
    return {(address, int(port)) for address, _, port in (line.split()[3].rpartition(":") for line in lines)}


@pytest.mark.parametrize("host", ["head", "w1"])
def test_a_machine_listens_on_the_ports_of_the_page_only(host):
    rows = ports_of_the_page()
    on_loopback = {int(port) for port, (reach, _) in rows.items() if reach == "loopback"}
    for address, port in listening(host):
        of_a_worker = 20010 <= port <= 21009
        assert of_a_worker or str(port) in rows, f"{host} listens on {address}:{port}"
        if port in on_loopback:
            assert address == "127.0.0.1"


def test_every_port_of_the_page_refuses_without_the_token():
    open_ports = {port for address, port in listening("head") if address != "127.0.0.1"} - {22}
    workers = {port for port in open_ports if port > 20009}
    table = {int(port) for port, (reach, _) in ports_of_the_page().items() if "cluster" in reach and port.isdigit()}
    assert table == open_ports - workers
    answers_by_host = {
        "the head from w1": knock("w1", ADDRESSES["head"], sorted(open_ports)),
        "w1 from w3": knock("w3", ADDRESSES["w1"], sorted(port for _, port in listening("w1") if port > 20000)),
        "the dashboard on the head": knock("head", "127.0.0.1", [8265]),
    }
    for where, answers in answers_by_host.items():
        log(f"{where}: {answers}")
        for port, answer in answers.items():
            assert re.match("401|403|UNAUTHENTICATED", answer), f"{where}, port {port}: {answer}"
    with_token = knock("w1", ADDRESSES["head"], [20000, 20001, 20004], token="~/.ray/auth_token")
    assert with_token[20000] == "OK"  # shows that it was the token that was missing
    assert not any(re.match("401|403|UNAUTHENTICATED", answer) for answer in with_token.values()), with_token


# --- Secrets ---


def test_secrets_stay_where_they_were_put():
    token = on("head", "cat ~/.ray/auth_token").strip()
    places = {token: ("/.ray/auth_token",), **{secret: ("/.mmpkd/environment",) for secret in SECRETS.values()}}
    for secret, homes in places.items():
        done = subprocess.run(
            ["grep", "-rlaF", "--devices=skip", secret, str(FOLDER / "hosts"), str(FOLDER / "shared")],
            capture_output=True,
            text=True,
        )
        assert done.stdout, "the search finds the place where the secret was put"
        elsewhere = [path for path in done.stdout.splitlines() if not path.endswith(homes)]
        assert elsewhere == []
        for host in ("laptop", *CLUSTER):
            assert not any(secret in line for line in processes(host))
    modes = on("head", "stat -c %a ~/.ray/auth_token ~/.mmpkd/environment ~/.mmpkd /tmp/mmpkd-$(id -u)").split()
    assert modes == ["600", "600", "700", "700"]


# --- Step 8 ---


def no_process_is_left() -> bool:
    """Returns whether the cluster's machines run nothing of the user's; prints what they run."""
    left = {host: processes(host) for host in CLUSTER}
    log(f"processes: { {host: [line[:80] for line in lines] for host, lines in left.items() if lines} }")
    return not any(left.values())


def test_ray_down_leaves_no_process():
    on_laptop(page_command("ray down"))
    wait_until("no process is left", no_process_is_left, END_SECONDS)
    assert on("head", "ls /shared/mlflow").split() == ["artifacts", "mlflow.db"]


# --- Slurm, with stand-ins for its commands, on the machines of the ended cluster ---

# Runs a command on each machine of --nodelist, by ssh, and waits for all. SIGTERM goes to its processes there.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do case $1 in --nodelist=*) names=${1#*=} ;; esac; shift; done
remote() { ssh -i ~researcher/bin/key -o StrictHostKeyChecking=no -o LogLevel=ERROR "$@"; }
environment=$(export -p | grep -E ' (SLURM|RAY|MMPKD|MLFLOW|FIRST_|WORKER_|DASHBOARD_|HOME=)')
children=()
for name in ${names//,/ }; do
    remote $name "$environment; cd '$PWD'; echo \\$\\$ > /tmp/step; exec $(printf '%q ' "$@")" & children+=($!)
done
trap 'for name in ${names//,/ }; do
    remote $name "pkill -TERM -P \\$(cat /tmp/step); kill -TERM \\$(cat /tmp/step)"; done' TERM
while kill -0 "${children[@]}" 2> /dev/null; do wait "${children[@]}"; done
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && printf 'head\\nw1\\nw3\\n' || echo "scontrol $*" >> /shared/home/scontrol
"""
JOB = (
    "mkdir -p /shared/home; cd ~/mmpkd; HOME=/shared/home PATH=~/bin:$PATH SLURM_JOB_ID=4711 SLURM_JOB_NAME=demo "
    "SLURM_SUBMIT_DIR=$PWD SLURM_JOB_NODELIST=head,w1,w3 SLURM_CPUS_PER_TASK=2 "
    f"deploy/slurm.sh space=demo storage=/shared/slurm cache=/shared/cache trials={TRIALS} epochs={EPOCHS}"
)


def test_slurm_script_stops_in_good_order_is_queued_again_and_goes_on():
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        on("head", f"mkdir -p ~/bin; cat > ~/bin/{name}; chmod +x ~/bin/{name}", text=text)
    on("head", "umask 077; cat > ~/bin/key", text=(FOLDER / "key").read_text())
    log("the job runs on head, w1 and w3")
    on("head", f"(setsid nohup bash -c '{JOB}; echo status $?' > /tmp/job.log 2>&1 < /dev/null &)")
    wait_until("trials of the job run on w3", lambda: trains("w3"), 400)
    on("head", "pkill -USR1 -f '^[^ ]*bash deploy/slurm.sh'")
    job = FOLDER / "hosts" / "head" / "tmp" / "job.log"
    wait_until("the job has ended", lambda: "\nstatus " in job.read_text(), 120)
    log(job.read_text()[-1500:])
    assert job.read_text().endswith("status 130\n")
    assert (FOLDER / "shared" / "home" / "scontrol").read_text() == "scontrol requeue 4711\n"
    wait_until("no process is left", no_process_is_left, END_SECONDS)
    assert on("w3", "ls /tmp/mmpkd-2000-4711 2> /dev/null || echo removed") == "removed\n"

    log("the job runs again")
    done = on("head", f"{JOB}; echo status $?", seconds=900)
    log(done[-1500:])
    assert done.endswith("status 0\n")
    assert (FOLDER / "shared" / "slurm" / "demo" / "report.html").exists()
    wait_until("no process is left", no_process_is_left, END_SECONDS)
