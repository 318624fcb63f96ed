"""Trace a model that is spread over the nodes of a Ray cluster.

MODEL says which, HEAD (or RAY_ADDRESS) where the cluster is, OPTIONS what else the engine is started with, as JSON.
"""

import json
import os


def main() -> None:
    os.environ.setdefault("RAY_ADDRESS", os.environ["HEAD"])
    from nnsight import VLLM

    options = {"tensor_parallel_size": 2, "cluster_seconds": 300, **json.loads(os.environ.get("OPTIONS", "{}"))}
    model = VLLM(os.environ["MODEL"], distributed_executor_backend="ray", **options)
    layer = model.model.layers[len(model.model.layers) // 2]
    with model.trace("The Eiffel Tower is in the city of", temperature=0, max_tokens=3) as tracer:
        hidden = layer.mlp.down_proj.output[0].save()
        text = tracer.result.outputs[0].text.save()
    # All of it, though each node has a half of the layer: [tokens, hidden]
    print("shape", tuple(hidden.shape), "norm", round(float(hidden.float().norm()), 3))
    print("text", text)


if __name__ == "__main__":  # an engine may be started in a process of its own, which imports this file
    main()
