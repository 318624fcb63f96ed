"""torchrun --nproc-per-node 2 tensor_parallel_example.py FOLDER"""

import os
import sys

import torch

from nnsight import LanguageModel

rank = int(os.environ["RANK"])
model = LanguageModel(sys.argv[1], tp_plan="auto")  # the weights are loaded at the first run, each rank's part of them
prompt = "the cat sat on the red"

with torch.no_grad(), model.trace(prompt):
    attention = model.model.layers[0].self_attn
    queries = attention.q_proj.output  # whole on every rank: [1, 6, heads * size]
    heads = attention.o_proj.input.unflatten(-1, (model.config.num_attention_heads, -1))
    heads[:, :, 2] = 0  # an edit in place: every rank takes its part of it
    logits = model.lm_head.output[:, -1]

if rank == 0:  # choose what to do with a value after the block, never whether to ask for it
    print("queries", tuple(queries.shape))
    print("without head 2", logits.argmax(-1).tolist())

with model.generate(prompt, max_new_tokens=3, do_sample=False) as tracer:
    for _step in tracer.iter[:3]:
        model.model.layers[1].mlp.act_fn.output[..., :8] = 0
    tokens = tracer.result

if rank == 0:
    print("tokens", tokens[0].tolist())

weight = model.lm_head.weight  # whole too, outside a trace as well
model.lm_head.weight = torch.nn.Parameter(weight.detach() * 2)  # and assigned whole: each rank takes its part
