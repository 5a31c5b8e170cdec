#!/usr/bin/env bash
# Ends the Ray of this worker when its head has not answered for 30 seconds; ray_node.sh starts it:
#
#   end_with_head.sh HEAD PORT GROUP      GROUP is the process group of Ray's processes
#
# `ray down` stops only the head if the provider is `local`. Ray's own processes notice that after two minutes, and
# its log monitor never does (Ray 2.60). A head that was away for a shorter time changes nothing.
head=$1 port=$2 group=$3
answered=$SECONDS
while kill -0 -- "-$group" 2> /dev/null; do
    timeout 5 bash -c "exec 3<> /dev/tcp/$head/$port" 2> /dev/null && answered=$SECONDS
    if [ $((SECONDS - answered)) -gt 30 ]; then
        kill -TERM -- "-$group"
        for _ in $(seq 10); do sleep 1; kill -0 -- "-$group" 2> /dev/null || exit 0; done
        kill -KILL -- "-$group" 2> /dev/null
        exit 0
    fi
    sleep 3
done
