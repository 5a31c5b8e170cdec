#!/usr/bin/env bash
# One machine's part of slurm.sh: runs ray_node.sh with these words until the step is ended, and cleans up after it.
trap : TERM                                           # this shell outlives Ray, which gets the signal, too
deploy/ray_node.sh "$@" --block
if pid=$(cat "$MLFLOW_FOLDER/server.pid" 2> /dev/null) && kill -TERM "$pid" 2> /dev/null; then
    while kill -0 "$pid" 2> /dev/null; do sleep 0.2; done          # it makes its last copy
fi
rm -rf -- "$MMPKD_RAY_FOLDER"
