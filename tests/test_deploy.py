"""The files of deploy/: scripts that start Ray, the Slurm job, KubeRay's manifest and MLflow's server. Offline."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))


def make_command(path, body):
    """Makes an executable bash script that stands for a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def make_checkout(folder, **commands):
    """Makes a checkout that has the scripts of deploy/, and stand-ins for commands of its environment."""
    shutil.copytree(DEPLOY, folder / "deploy")
    for name, body in commands.items():
        make_command(folder / ".venv" / "bin" / name, body)


# --- starting Ray on a machine ---


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_can_read_it(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def start_node(tmp_path, *words, **environment):
    """Runs ray_node.sh with a stand-in for `ray`, which prints its words, umask and environment. Returns the exit
    status, the lines and the message.
    """
    make_checkout(tmp_path, ray='printf "%s\\n" "$@"; umask; env')
    result = subprocess.run(
        ["bash", tmp_path / "deploy" / "ray_node.sh", *words],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MMPKD_RAY_FOLDER": str(tmp_path / "ray"), **environment},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout.splitlines(), result.stderr


def test_every_port_is_fixed_and_nothing_stays_open_that_can_be_closed(tmp_path):
    status, words, _ = start_node(tmp_path, "head", "--autoscaling-config=x", FIRST_PORT="30000", WORKER_PORTS="5")
    assert status == 0
    assert words[:2] == ["start", "--head"]
    ports = dict(
        re.fullmatch(r"--([\w-]*port)=(\d+)", word).groups() for word in words if re.match(r"--[\w-]*port=", word)
    )
    assert ports == {
        "port": "30000",
        "node-manager-port": "30001",
        "object-manager-port": "30002",
        "runtime-env-agent-port": "30003",
        "dashboard-agent-listen-port": "30004",
        "dashboard-agent-grpc-port": "30005",
        "min-worker-port": "30010",
        "max-worker-port": "30014",
        "dashboard-port": "8265",
    }
    assert {"--dashboard-host=127.0.0.1", "--num-cpus=0", "--disable-usage-stats", "--autoscaling-config=x"} <= {*words}
    assert {"RAY_AUTH_MODE=token", "RAY_START_HOOK=ray_start.close_client_server", "0077"} <= {*words}
    assert (tmp_path / "ray").stat().st_mode & 0o777 == 0o700


def test_a_worker_joins_the_head_on_the_same_ports(tmp_path):
    status, words, _ = start_node(tmp_path, "worker", "192.0.2.10", "--block")
    assert status == 0
    assert words[:2] == ["start", "--address=192.0.2.10:20000"]
    assert {"--node-manager-port=20001", "--block", "RAY_AUTH_MODE=token", "0077"} <= {*words}
    assert not any(
        word.startswith(("--head", "--port", "--dashboard-host")) for word in words
    )  # `ray start` refuses them


def test_trials_get_the_keys_of_the_storage(tmp_path):
    (tmp_path / ".mmpkd").mkdir()
    (tmp_path / ".mmpkd" / "environment").write_text("AWS_SECRET_ACCESS_KEY='hidden word'\n")
    _, words, _ = start_node(tmp_path, "worker", "192.0.2.10", "--block")
    assert "AWS_SECRET_ACCESS_KEY=hidden word" in words
    assert stat.S_IMODE((tmp_path / ".mmpkd" / "environment").stat().st_mode) == 0o600
    assert not any("hidden" in word for word in words[: words.index("--block") + 1])


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ray").symlink_to(tmp_path / "elsewhere")
    status, words, message = start_node(tmp_path, "worker", "192.0.2.10", "--block")
    assert (status, words) == (2, [])
    assert "belongs to somebody else. Set MMPKD_RAY_FOLDER" in message


@pytest.mark.parametrize("words", [[], ["worker"], ["haed"]])
def test_what_to_start_must_be_said(tmp_path, words):
    status, output, message = start_node(tmp_path, *words)
    assert (status, output) == (2, [])
    assert "say 'head' or 'worker ADDRESS'" in message


# --- Slurm ---

# Each step of the stand-in runs on "its machine" in a process of its own, as srun does; SIGTERM to it ends the step.
SRUN = """echo "srun $*" >> "$RECORD"
while [[ "$1" == --* ]]; do shift; done
"$@" &
child=$!
trap 'kill -TERM $(pgrep -P $child) $child 2> /dev/null' TERM
while kill -0 $child 2> /dev/null; do wait $child; done"""
# Listens on the head's port, as Ray does, and blocks until it is ended.
RAY = """echo "ray $* token=$(cat "$RAY_AUTH_TOKEN_PATH")" >> "$RECORD"
for word in "$@"; do case $word in --port=*) exec python3 -c "
import socket, time
server = socket.create_server(('127.0.0.1', int('${word#*=}')))
time.sleep(60)" ;; esac; done
exec sleep 60"""
SCONTROL = """echo "scontrol $*" >> "$RECORD"
[ "$1 $2" = "show hostnames" ] && printf "localhost\\nother1\\nother2\\n"
true"""
DRIVER = """case "$*" in *secrets*) echo secret ;; *mlflow_server.py*) echo "$*" >> "$RECORD" ;; *sweep.run*)
echo "driver $* $RAY_ADDRESS" >> "$RECORD"
trap 'echo stopped >> "$RECORD"; exit 130' TERM
until [ "$(grep -c ^ray "$RECORD")" = 2 ]; do sleep 0.1; done
[ "$ENDS" = "" ] || exit "$ENDS"
touch "$RECORD.ready"
while true; do sleep 0.1; done ;; esac"""


@pytest.fixture
def slurm_job(tmp_path):
    """Starts slurm.sh in an allocation of three machines, with stand-ins for everything that it calls."""
    make_checkout(tmp_path, ray=RAY, python=DRIVER)
    make_command(tmp_path / "bin" / "srun", SRUN)
    make_command(tmp_path / "bin" / "scontrol", SCONTROL)
    record = tmp_path / "record"
    begun = []

    def start(ends=""):
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            job = free.getsockname()[1]  # any number will do
        environment = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "RECORD": str(record),
            "ENDS": ends,
            "SLURM_JOB_ID": str(job),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_NODELIST": "whatever",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_GPUS_ON_NODE": "2",
        }
        words = ["bash", tmp_path / "deploy" / "slurm.sh", "space=demo", "storage=/shared"]
        interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where these tests are not
        process = subprocess.Popen(words, env=environment, start_new_session=True, preexec_fn=interruptible)
        begun.append(process)
        return process, job

    yield start, record
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition, seconds=60):
    """Waits until a condition holds."""
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition did not come to hold")


def test_slurm_job_starts_head_and_workers_on_ports_and_with_a_token_of_its_own(slurm_job):
    start, record = slurm_job
    process, job = start(ends="0")
    assert process.wait(60) == 0
    first = 20000 + job % 120 * 100
    lines = record.read_text().splitlines()
    srun = [line for line in lines if line.startswith("srun")]
    assert ["--nodelist=localhost" in srun[0], "--nodelist=other1,other2" in srun[1]] == [True, True]
    assert ["--nodes=1 " in srun[0], "--nodes=2 " in srun[1]] == [True, True]
    head, *workers = sorted((line for line in lines if line.startswith("ray")), key=lambda line: "--head" not in line)
    assert f"--port={first} " in head
    assert head.index("--num-cpus=0") < head.index("--num-cpus=8")  # the later one counts: trials run there, too
    assert "--num-gpus=2" in head
    assert all(f"--address=localhost:{first} " in line and "--block" in line for line in workers)
    assert f"driver -m sweep.run space=demo storage=/shared localhost:{first}" in lines
    assert all("token=secret" in line for line in [head, *workers])
    assert any(f"--port={first + 7} --while-port={first}" in line for line in lines if "mlflow_server.py" in line)
    assert not any(line.startswith("scontrol requeue") for line in lines)
    assert not alive(process)
    token = record.parent / ".mmpkd" / "slurm" / str(job) / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    script = (record.parent / "deploy" / "slurm.sh").read_text()
    assert "secret" not in script.replace("import secrets; print(secrets.", "")


def test_slurm_job_near_its_end_stops_the_sweep_and_is_queued_again(slurm_job):
    start, record = slurm_job
    process, job = start()
    wait_until(Path(f"{record}.ready").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 130
    lines = record.read_text().splitlines()
    assert [line for line in lines if line in ("stopped", f"scontrol requeue {job}")] == [
        "stopped",
        f"scontrol requeue {job}",
    ]
    assert not alive(process)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_cancelled_slurm_job_stops_the_sweep_and_is_not_queued_again(slurm_job, how):
    start, record = slurm_job
    process, _ = start()
    wait_until(Path(f"{record}.ready").exists)
    process.send_signal(how)
    assert process.wait(60) == 130
    lines = record.read_text().splitlines()
    assert "stopped" in lines
    assert not any(line.startswith("scontrol requeue") for line in lines)
    assert not alive(process)


def test_failed_sweep_gives_the_slurm_job_its_status(slurm_job):
    start, _ = slurm_job
    process, _ = start(ends="2")
    assert process.wait(60) == 2


def alive(process):
    """Returns the processes that are left of the session that a process had begun."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "-s", str(process.pid)], capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if "<defunct>" not in line]


# --- KubeRay ---

# The part of KubeRay's types (v1.5, ray.io/v1) that the manifest uses, written by hand from the reference of its
# custom resources, and of Kubernetes' own types as far as they are used.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required=(), **properties):
    """Returns the schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT, WHOLE, SWITCH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9.]+(m|Mi|Gi)?$"}}
CONTAINER = closed(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    command={"type": "array", "items": TEXT},
    envFrom={"type": "array", "items": closed(["secretRef"], secretRef=closed(["name"], name=TEXT))},
    env={"type": "array", "items": closed(["name", "value"], name=TEXT, value=TEXT)},
    resources=closed(["limits", "requests"], limits=QUANTITIES, requests=QUANTITIES),
    securityContext=closed(
        allowPrivilegeEscalation=SWITCH,
        runAsNonRoot=SWITCH,
        capabilities=closed(drop={"type": "array", "items": TEXT}),
    ),
    volumeMounts={"type": "array", "items": closed(["name", "mountPath"], name=TEXT, mountPath=TEXT, readOnly=SWITCH)},
)
VOLUME = closed(
    ["name", "persistentVolumeClaim"],
    name=TEXT,
    persistentVolumeClaim=closed(["claimName"], claimName=TEXT, readOnly=SWITCH),
)
POD = closed(
    ["spec"],
    metadata=closed(labels=TEXTS),
    spec=closed(
        ["containers"],
        restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={"type": "array", "items": VOLUME},
        tolerations={"type": "array", "items": closed(key=TEXT, operator=TEXT, effect=TEXT)},
    ),
)
RAY_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(["name"], name=TEXT),
    spec=closed(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=WHOLE,
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=WHOLE,
        rayClusterSpec=closed(
            ["headGroupSpec"],
            rayVersion=TEXT,
            authOptions=closed(mode={"enum": ["disabled", "token"]}),
            enableInTreeAutoscaling=SWITCH,
            autoscalerOptions=closed(idleTimeoutSeconds=WHOLE),
            headGroupSpec=closed(["template"], rayStartParams=TEXTS, template=POD),
            workerGroupSpecs={
                "type": "array",
                "items": closed(
                    ["groupName", "template"],
                    groupName=TEXT,
                    replicas=WHOLE,
                    minReplicas=WHOLE,
                    maxReplicas=WHOLE,
                    rayStartParams=TEXTS,
                    template=POD,
                ),
            },
        ),
    ),
)
JOB, POLICY = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())


def test_kuberay_would_accept_the_manifest():
    jsonschema.validate(JOB, RAY_JOB)


@pytest.mark.parametrize(
    "path",
    [
        "spec.rayClusterSpec.headGroupSpecs",
        "spec.entrypiont",
        "spec.rayClusterSpec.headGroupSpec.template.spec.contaniers",
    ],
)
def test_kuberay_would_drop_a_misspelt_field(path):
    """Shows that the test above can fail."""
    *parents, leaf = path.split(".")
    broken = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text().partition("\n---\n")[0])
    node = broken
    for key in parents:
        node = node[key]
    node[leaf] = []
    with pytest.raises(jsonschema.ValidationError, match=leaf):
        jsonschema.validate(broken, RAY_JOB)


def test_manifest_is_what_the_page_promises():
    cluster = JOB["spec"]["rayClusterSpec"]
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert cluster["rayVersion"] == pins["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (gpu,) = cluster["workerGroupSpecs"]
    assert [gpu["minReplicas"], gpu["replicas"]] == [0, 0]
    assert not any("nvidia.com/gpu" in container["resources"]["limits"] for container in containers("headGroupSpec"))
    images = {
        container["image"] for container in [*containers("headGroupSpec"), *gpu["template"]["spec"]["containers"]]
    }
    assert len(images) == 1
    assert not next(iter(images)).endswith(":latest")
    assert [word for word in JOB["spec"]["entrypoint"].split() if "s3://" in word] == [
        "storage=s3://BUCKET/runs",
        "cache=s3://BUCKET/cache",
    ]


def test_policy_covers_every_pod_and_lets_only_the_cluster_in():
    cluster = JOB["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    assert {pod["metadata"]["labels"]["app"] for pod in pods} == {POLICY["spec"]["podSelector"]["matchLabels"]["app"]}
    inside, operator = POLICY["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": {"app": "mmpkd"}}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]


def containers(group):
    """Returns the containers of the head's pods."""
    return JOB["spec"]["rayClusterSpec"][group]["template"]["spec"]["containers"]


# --- MLflow's server ---


@pytest.fixture(scope="module")
def mlflow_server():
    sys.path.insert(0, str(DEPLOY))
    import mlflow_server

    sys.path.remove(str(DEPLOY))
    return mlflow_server


def write_database(folder, value):
    """Writes an SQLite file with one value, as MLflow's stand-in."""
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("create table if not exists runs (value)")
        database.execute("insert into runs values (?)", [value])


def read_database(folder):
    """Returns the values in the file that `write_database` wrote."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return [value for (value,) in database.execute("select value from runs")]


def test_a_new_head_begins_with_the_copy(tmp_path, mlflow_server):
    old, copies, new = tmp_path / "old", mlflow_server.place(tmp_path / "copies"), tmp_path / "new"
    write_database(old, 1)
    (old / "artifacts" / "1").mkdir(parents=True)
    (old / "artifacts" / "1" / "report.html").write_text("first")
    mlflow_server.copy(old, copies)
    write_database(old, 2)
    (old / "artifacts" / "1" / "report.html").write_text("second")
    mlflow_server.copy(old, copies)
    new.mkdir()
    mlflow_server.restore(new, copies)
    assert read_database(new) == [1, 2]
    assert (new / "artifacts" / "1" / "report.html").read_text() == "second"


def test_a_head_that_has_a_database_keeps_it(tmp_path, mlflow_server):
    copies = mlflow_server.place(tmp_path / "copies")
    write_database(tmp_path / "old", 1)
    mlflow_server.copy(tmp_path / "old", copies)
    write_database(tmp_path / "here", 2)
    mlflow_server.restore(tmp_path / "here", copies)
    assert read_database(tmp_path / "here") == [2]


def test_a_copy_is_whole_while_somebody_writes(tmp_path, mlflow_server):
    """A half-done transaction is not in the copy: SQLite's own backup is used, no copy of bytes."""
    write_database(tmp_path / "here", 1)
    with closing(sqlite3.connect(tmp_path / "here" / "mlflow.db")) as writer:
        writer.execute("pragma journal_mode = wal")
        writer.execute("insert into runs values (2)")
        mlflow_server.copy(tmp_path / "here", mlflow_server.place(tmp_path / "copies"))
        writer.rollback()
    assert read_database(tmp_path / "copies") == [1]


def test_storage_that_is_away_ends_nothing(tmp_path, mlflow_server, capsys):
    write_database(tmp_path / "here", 1)
    (tmp_path / "copies").write_text("a file where the folder should be")
    mlflow_server.copy(tmp_path / "here", mlflow_server.place(tmp_path / "copies"))
    assert "the next one is tried later" in capsys.readouterr().out


def test_an_unreadable_copy_is_not_replaced_by_an_empty_database(tmp_path, mlflow_server, monkeypatch):
    def refuse(self):
        raise OSError("no answer")

    monkeypatch.setattr(mlflow_server.Place, "exists", refuse)
    with pytest.raises(SystemExit, match="MLflow is not started"):
        mlflow_server.restore(tmp_path, mlflow_server.place(tmp_path / "copies"))


def test_mlflow_ends_when_ray_has_ended(tmp_path, mlflow_server, monkeypatch):
    monkeypatch.setattr(mlflow_server, "RAY_SECONDS", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as ray:
        port = ray.getsockname()[1]
        assert mlflow_server.answers(port)
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        mlflow_server.watch(server, tmp_path, mlflow_server.place(tmp_path / "copies"), port, 300)
    finally:
        mlflow_server.end_group(server)
    assert server.returncode == -signal.SIGTERM


def test_a_second_server_takes_over(tmp_path, mlflow_server):
    program = (
        f"import sys, time; sys.path.insert(0, {str(DEPLOY)!r}); import mlflow_server, pathlib, signal;"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0));"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "with mlflow_server.only_server(folder):\n    print('has it', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert first.stdout.readline() == "has it\n"
        with mlflow_server.only_server(tmp_path):
            assert first.wait(30) == 0
            assert (tmp_path / "server.pid").read_text() == str(os.getpid())
    finally:
        first.kill()
        first.stdout.close()
