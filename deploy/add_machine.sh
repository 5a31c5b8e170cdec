#!/usr/bin/env bash
# Adds a machine to the running cluster of cluster.yaml, while a sweep goes on; runs on the head:
#
#   ray exec cluster.yaml '~/mmpkd/deploy/add_machine.sh ADDRESS'
#
# Ray's launcher reads worker_ips only when it starts. Put the address there, too, for the next `ray up`.
set -euo pipefail
machine=${1:?say the address of the machine, which lets in the key of cluster.yaml}
head=$(sed -nE 's/.*"head_ip": "([^"]+)".*/\1/p' ~/ray_bootstrap_config.yaml)
user=$(sed -nE 's/.*"ssh_user": "([^"]+)".*/\1/p' ~/ray_bootstrap_config.yaml)
trust="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"      # as Ray's own ssh does
reach="ssh -i $HOME/ray_bootstrap_key.pem -o BatchMode=yes $trust"
$reach "$user@$machine" mkdir -p -m 700 .ray
rsync -a -e "$reach" ~/.ray/auth_token "$user@$machine:.ray/"
rsync -a -e "$reach" --exclude .venv --exclude '*.egg-info' --exclude __pycache__ ~/mmpkd "$user@$machine:"
$reach "$user@$machine" "make -C mmpkd install && mmpkd/deploy/ray_node.sh worker $head"
