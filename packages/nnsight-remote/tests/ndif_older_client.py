"""nnsight 0.7's own client, as it is, at a server whose address is its argument: so that the server of the tests is one.

Nothing of this repository can be imported here but the model of `ndif_older_peer.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from nnsight.intervention.backends.remote import RemoteBackend, RemoteException

from nnsight import CONFIG, LanguageModel

sys.path.insert(0, str(Path(__file__).parent))
from ndif_older_peer import tiny  # noqa: E402

KEY = 'nnsight.modeling.language.LanguageModel:{"repo_id": "tests/tiny-gpt2", "revision": null}'


def main(url: str) -> None:
    """Run a block there and here, and say whether they are the same."""
    CONFIG.APP.REMOTE_LOGGING = False
    CONFIG.API.APIKEY = "a-key"  # it cannot ask for a job without one
    module, tokenizer = tiny()
    model = LanguageModel(module, tokenizer=tokenizer)
    with model.trace("w1 w2 w3"):
        here = model.transformer.h[1].output.save()
    with model.trace("w1 w2 w3", backend=RemoteBackend(KEY, host=url)):
        there = model.transformer.h[1].output.save()
    print("trace", torch.equal(here, there))

    with model.generate("w1 w2", max_new_tokens=2, do_sample=False, backend=RemoteBackend(KEY, host=url)) as tracer:
        ids = tracer.result.save()
    print("generate", tuple(ids.shape))

    later = RemoteBackend(KEY, host=url, blocking=False)
    with model.trace("w1 w2 w3", backend=later):
        there = model.transformer.h[1].output.save()
    result = None
    while result is None:
        result = later(None)
    print("later", torch.equal(here, result["there"]))

    try:
        with model.trace("w1", backend=RemoteBackend(KEY, host=url)):
            1 / 0  # noqa: B018
    except RemoteException as error:
        print("error", "ZeroDivisionError" in str(error))


if __name__ == "__main__":
    main(sys.argv[1])
