"""Jobs in the process that holds the model, one after another: for a model on a device, which cannot be forked.

The one idea: what a job may leave behind is looked for. After each, the weights are compared with what they were; if they
changed, the server is told, and starts this process anew before the next job. A job that has to be stopped takes the
process, and the loaded model, with it.
"""

from __future__ import annotations

import copy
import gc
import os
import signal
import sys
from typing import Any

import torch

from nnsight.plugin import NNsight

from .channel import Channel
from .confine import Confinement, Walls, lift_limits, limit_sizes
from .fingerprint import fingerprint
from .worker import Files, forget_secrets, print_to, run_job


def serve(channel: Channel, model: NNsight, confinement: Confinement, threads: int, ready: dict[str, Any]) -> None:
    """Run jobs until the server hangs up."""
    torch.set_num_threads(threads)
    on_cpu = all(tensor.device.type == "cpu" for tensor in model._module.state_dict(keep_vars=True).values())
    forget_secrets()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, and the worker can say why
    before = fingerprint(model._module)
    guard = Walls(confinement, devices=not on_cpu).close_in(limits_are_final=False)
    out, err, streams = os.dup(1), os.dup(2), (sys.stdout, sys.stderr)
    channel.send(ready)
    while received := channel.receive():
        order, handed = received
        if order.get("do") != "run":
            continue  # a stop that crossed the end of its job
        files, limit = Files(*handed), order["limit"]
        channel.send({"is": "begun", "job": order["job"]})
        print_to(files.log)
        limit_sizes(limit["memory_bytes"] if on_cpu else None, limit["result_bytes"], final=False)
        try:
            # A reference of its own, so that the edits that a block stores are gone with it.
            run_job(copy.copy(model), files, guard)
        finally:
            lift_limits()
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.stdout, sys.stderr = streams
            files.close()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        # A job that changed the weights must not answer the next user's question.
        channel.send({"is": "done", "job": order["job"], "status": 0, "spoilt": fingerprint(model._module) != before})
