# Exports what the user's file ~/.mmpkd/environment says (NAME=VALUE lines); sweep.sh and ray_node.sh source this.
if [ -e ~/.mmpkd/environment ]; then
    chmod 600 ~/.mmpkd/environment
    set -a; source ~/.mmpkd/environment; set +a
fi
