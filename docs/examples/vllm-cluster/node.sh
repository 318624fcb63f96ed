#!/bin/bash
# A machine of the cluster: `node.sh` gives it all of its devices, and stays; `node.sh client` joins with none, and returns.
#   HEAD      host:port of the head
#   GPUS      how many devices it gives, if Ray should not count them itself
#   RAY_ARGS  further arguments of `ray start`
set -euo pipefail
if [ "${1:-}" = client ]; then
    exec ray start --address="$HEAD" --num-cpus=1 --num-gpus=0 --disable-usage-stats ${RAY_ARGS:-}
fi
exec ray start --address="$HEAD" ${GPUS:+--num-gpus="$GPUS"} --disable-usage-stats --block ${RAY_ARGS:-}
