"""Requests whose bodies are alike are served together by vLLM's engine, and each is what it is in transformers, and alone."""

from __future__ import annotations

import pytest
import torch

import nnsight

PROMPTS = [[4 + (7 * n + at) % 80 for at in range(1 + 5 * n)] for n in range(6)]


def options(number):
    return {"temperature": 0, "max_tokens": 3 + 2 * (number % 3), "ignore_eos": True}


def in_transformers(pair, number, vector):
    """The tokens of one request, and what its second layer gave at each position, a vector added."""
    kept = []

    def look(module, given, output):
        kept.append(output[0] + vector)
        return (output[:1] + vector) if isinstance(output, torch.Tensor) else (output[0] + vector, *output[1:])

    ids = torch.tensor([PROMPTS[number]])
    hook = pair.plain.model.layers[1].register_forward_hook(look)
    try:
        found = pair.plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options(number)["max_tokens"],
            do_sample=False,
        )
    finally:
        hook.remove()
    return found[0, ids.shape[1] :].tolist(), torch.cat([one.reshape(-1, one.shape[-1]) for one in kept])


def stage_of(model):
    return model.dispatch().__dict__["_engine"].engine.model_executor.driver_worker.worker.model_runner.nnsight


def run(model, vector):
    with model.trace() as tracer:
        found = nnsight.save({})
        for number, prompt in enumerate(PROMPTS):
            with tracer.invoke(prompt, **options(number)):
                kept = nnsight.save([])
                for _ in tracer.iter[:]:
                    change, residual = model.model.layers[1].output
                    change += vector
                    kept.append(change + residual)
                found[number] = list(tracer.result.outputs[0].token_ids), kept
    return found


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_requests_served_together_are_what_they_are_alone_and_in_transformers(llama, scale, monkeypatch):
    model, forwards = llama.served, stage_of(llama.served).forwards
    vector = torch.full((llama.plain.config.hidden_size,), scale)
    begun, admit = [], forwards.admit
    monkeypatch.setattr(forwards, "admit", lambda run: (begun.append(run), admit(run)))
    together = run(model, vector)
    assert len({run.membership.likeness for run in begun}) == 1 < len(begun)
    forwards.serves_together = False
    try:
        alone = run(model, vector)
    finally:
        del forwards.serves_together
    for number in range(len(PROMPTS)):
        tokens, values = in_transformers(llama, number, vector)
        assert together[number][0] == alone[number][0] == tokens
        assert all(map(torch.equal, together[number][1], alone[number][1]))
        torch.testing.assert_close(torch.cat(together[number][1]), values, atol=1e-4, rtol=1e-4)
