#!/usr/bin/env bash
# Starts Ray on this machine, as part of a cluster: with the token, on fixed ports, in a folder that nobody else reads.
#
#   deploy/ray_node.sh head [OPTION ...]             the machine of the driver; it runs no trials
#   deploy/ray_node.sh worker ADDRESS [OPTION ...]   a machine that runs trials; ADDRESS is the head's name or address
#
# Every OPTION goes on to `ray start`. cluster.yaml, cluster.cloud.yaml and slurm.sh start Ray by this file only.
# The environment changes what is fixed here:
#
#   FIRST_PORT     20000   the cluster uses FIRST_PORT to FIRST_PORT + 9 + WORKER_PORTS, the same on each machine
#   WORKER_PORTS    1000   one for each process of Ray on a machine: trials, the driver, idle workers
#   DASHBOARD_PORT  8265   on the head's loopback
#   MLFLOW_PORT     5000   on the head's loopback
#   MLFLOW_FOLDER          folder of MLflow's database, on a disk of the head itself: ~/.mmpkd/mlflow
#   MLFLOW_COPIES          folder or address (s3://...) for copies of MLflow's database; no MLflow is started without it
set -euo pipefail

FIRST_PORT=${FIRST_PORT:-20000}
WORKER_PORTS=${WORKER_PORTS:-1000}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kind=${1:-}
[ "$kind" = head ] || { [ "$kind" = worker ] && [ -n "${2:-}" ]; } ||
    { echo "$0: say 'head' or 'worker ADDRESS', got '$*'" >&2; exit 2; }
shift

source "$here/environment.sh"
source "$here/passwords.sh"                           # trials and MLflow's copies may need keys of an object store
umask 077                                             # what Ray and its processes write is the user's own
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true         # every connection and every file of Ray counts

# Ray makes its folders readable and writable for everyone (mode 0777), so they lie inside one that is not.
mkdir -p -m 700 "$RAY_TMPDIR"
if [ -L "$RAY_TMPDIR" ] || [ ! -O "$RAY_TMPDIR" ]; then
    echo "$0: $RAY_TMPDIR belongs to somebody else. Set MMPKD_RAY_FOLDER to a short path of your own." >&2
    exit 2
fi
chmod 700 "$RAY_TMPDIR"

# ray_start.py keeps Ray's client server from being started. The two exporters of metrics cannot be kept to loopback
# (Ray 2.60); a port that does not exist keeps them from opening one, and Ray notes that in its log and goes on.
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" RAY_START_HOOK=ray_start.close_client_server
export AUTOSCALER_METRIC_PORT=65536 DASHBOARD_METRIC_PORT=65536

common=(
    --disable-usage-stats
    --object-store-memory=268435456                   # bytes; trials share little through Ray, which would take 30 %
    "--node-manager-port=$((FIRST_PORT + 1))"
    "--object-manager-port=$((FIRST_PORT + 2))"
    "--runtime-env-agent-port=$((FIRST_PORT + 3))"
    "--dashboard-agent-listen-port=$((FIRST_PORT + 4))"
    "--dashboard-agent-grpc-port=$((FIRST_PORT + 5))"
    "--min-worker-port=$((FIRST_PORT + 10))"
    "--max-worker-port=$((FIRST_PORT + 9 + WORKER_PORTS))"
)
if [ "$kind" = worker ]; then
    head=$1; shift
    case " $* " in *" --block "*) exec ray start "--address=$head:$FIRST_PORT" "${common[@]}" "$@" ;; esac
    set -m                                            # Ray's processes become a process group of their own
    ray start "--address=$head:$FIRST_PORT" "${common[@]}" "$@" &
    group=$!
    set +m
    wait "$group"
    setsid nohup bash "$here/end_with_head.sh" "$head" "$FIRST_PORT" "$group" > /dev/null 2>&1 < /dev/null &
    exit
fi

# A machine that does not answer is given up after at most 3 x (3 + 5) = 24 seconds.
config='{"health_check_initial_delay_ms": 3000, "health_check_period_ms": 3000, "health_check_timeout_ms": 5000,'
config+=' "health_check_failure_threshold": 3, "enable_metrics_collection": false}'

if [ -n "${MLFLOW_COPIES:-}" ]; then
    folder=${MLFLOW_FOLDER:-$HOME/.mmpkd/mlflow}
    mkdir -p "$folder"
    setsid nohup python "$here/mlflow_server.py" "--folder=$folder" "--copies=$MLFLOW_COPIES" \
        "--port=${MLFLOW_PORT:-5000}" "--while-port=$FIRST_PORT" >> "$folder/server.log" 2>&1 < /dev/null &
fi
exec ray start --head "--port=$FIRST_PORT" "${common[@]}" --num-cpus=0 --num-gpus=0 "--system-config=$config" \
    --dashboard-host=127.0.0.1 "--dashboard-port=${DASHBOARD_PORT:-8265}" "$@"
