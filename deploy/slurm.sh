#!/usr/bin/env bash
#SBATCH --job-name=mmpkd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --dependency=singleton
#SBATCH --no-kill
#SBATCH --open-mode=append
#
# A sweep on the machines of one Slurm allocation, from the folder of the checkout, with the words of sweep.run:
#
#   sbatch --job-name=cbis --nodes=8 deploy/slurm.sh space=cbis cohort.root=/data storage=/shared/runs cache=/shared/cache
#
# The first machine is the head of a Ray cluster and runs trials, too; the others join it. The ports come from the
# number of the job and the token is made for the job, so jobs that share a machine do not meet. Five minutes before
# its time is up (USR1), the job ends the sweep in good order and asks Slurm to run it again; Slurm does so by itself
# when it takes the machines away (--requeue). The sweep then goes on where it was. --no-kill: a lost machine does
# not end the job. The home folder must be the same on all machines.
#
# MLflow runs on the first machine, on loopback. Copies of its database lie in ~/.mmpkd/slurm/mlflow, one for each name
# of a job; so jobs of the same name run one after the other (singleton): give each sweep a name of its own.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?this script runs in a Slurm job: sbatch deploy/slurm.sh ...}"
[ -x deploy/ray_node.sh ] && [ -x .venv/bin/python ] || {
    echo "$SLURM_SUBMIT_DIR is no checkout with an environment. Run make install and sbatch in that folder." >&2; exit 2; }

umask 077
private=$HOME/.mmpkd/slurm/$SLURM_JOB_ID
mkdir -p "$private"
[ -s "$private/token" ] || .venv/bin/python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$private/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
export MMPKD_RAY_FOLDER=/tmp/mmpkd-$(id -u)-$SLURM_JOB_ID
export FIRST_PORT=$((20000 + SLURM_JOB_ID % 120 * 100)) WORKER_PORTS=90
export DASHBOARD_PORT=$((FIRST_PORT + 6)) MLFLOW_PORT=$((FIRST_PORT + 7))
export MLFLOW_FOLDER=$MMPKD_RAY_FOLDER/mlflow MLFLOW_COPIES=$HOME/.mmpkd/slurm/mlflow/${SLURM_JOB_NAME:-mmpkd}
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-http://127.0.0.1:$MLFLOW_PORT}

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
gpus=${SLURM_GPUS_ON_NODE:-0}

# Starts a step in the background: the number of its machines, their names, then the words for ray_node.sh.
steps=()
step() {
    local count=$1 names=$2; shift 2
    srun "--nodes=$count" "--ntasks=$count" --ntasks-per-node=1 "--nodelist=$names" "--cpus-per-task=$cpus" \
        --no-kill --kill-on-bad-exit=0 --wait=0 \
        deploy/slurm_step.sh "$@" &
    steps+=($!)
}
end_steps() {
    kill -TERM "${steps[@]}" 2> /dev/null || true
    for _ in $(seq 150); do kill -0 "${steps[@]}" 2> /dev/null || break; sleep 0.2; done
    kill -KILL "${steps[@]}" 2> /dev/null || true
    wait "${steps[@]}" 2> /dev/null || true
}
trap end_steps EXIT

step 1 "$head" head "--num-cpus=$cpus" "--num-gpus=$gpus"
for try in $(seq 900); do
    bash -c "exec 3<> /dev/tcp/$head/$FIRST_PORT" 2> /dev/null && break
    kill -0 "${steps[0]}" 2> /dev/null && [ "$try" -lt 900 ] || {
        echo "Ray did not start on $head at port $FIRST_PORT. The lines above say why." >&2; exit 1; }
    sleep 0.2
done
if [ "${#machines[@]}" -gt 1 ]; then
    others=$(IFS=,; echo "${machines[*]:1}")
    step $((${#machines[@]} - 1)) "$others" worker "$head" "--num-cpus=$cpus"
fi

echo "MLflow, from your machine: ssh -L 5000:127.0.0.1:$MLFLOW_PORT -J LOGIN_NODE $head    then http://127.0.0.1:5000"

# Bash runs a trap between two commands, so the driver runs in the background and `wait` is interrupted.
requeue=
driver=
trap 'requeue=yes; kill -TERM "$driver" 2> /dev/null || true' USR1
trap 'kill -TERM "$driver" 2> /dev/null || true' TERM INT
RAY_ADDRESS=$head:$FIRST_PORT .venv/bin/python -m sweep.run "$@" &
driver=$!
while true; do
    status=0
    wait "$driver" || status=$?
    kill -0 "$driver" 2> /dev/null || break
done
trap - USR1 TERM INT
end_steps
trap - EXIT
if [ -n "$requeue" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
