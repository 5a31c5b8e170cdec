#!/usr/bin/env bash
# Runs a sweep on the cluster, as a job on its head: ray job submit -- ~/mmpkd/deploy/sweep.sh space=demo storage=...
#
# Passwords do not belong on this command line: Ray shows it to everybody who has the token, and `ps` shows it to
# everybody on the head. They stand in the head's file ~/.mmpkd/environment (mode 0600), one NAME=VALUE a line, for
# example MLFLOW_TRACKING_URI or AWS_SECRET_ACCESS_KEY.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/passwords.sh
export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-http://127.0.0.1:${MLFLOW_PORT:-5000}}"
exec .venv/bin/python -m sweep.run "$@"
