#!/bin/bash
# The head of the cluster: it knows all the others, and computes nothing.
#   PORT      where it listens (6379)
#   RAY_ARGS  further arguments of `ray start`
set -euo pipefail
exec ray start --head --port="${PORT:-6379}" --num-cpus=1 --num-gpus=0 --include-dashboard=false --disable-usage-stats \
    --block ${RAY_ARGS:-}
