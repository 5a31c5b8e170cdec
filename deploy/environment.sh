# What every shell and every process on a machine of the cluster needs. ~/.bashrc and ray_node.sh source this file.
export PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin:$PATH"
export RAY_AUTH_MODE=token                                  # Ray refuses to start, and to answer, without the token
export RAY_TMPDIR="${MMPKD_RAY_FOLDER:-/tmp/mmpkd-$(id -u)}" # Ray's sessions; ray_node.sh keeps others out of it
