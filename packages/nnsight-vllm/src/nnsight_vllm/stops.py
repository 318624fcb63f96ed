"""Stop strings of traced requests, found where requests are scheduled.

vLLM finds a stop string where text is made, in the front end. In an engine with a process of its own that is too late for
whoever looks into a request: by the time the scheduler hears that it is over, one step or two more are under way. So for
these requests the scheduler makes the text too, with vLLM's own means, and ends them with the step that ended the string.

relies on: `IncrementalDetokenizer.from_new_request(tokenizer, request).update(tokens, False)` returns the stop string that
the text has reached; vLLM 0.30 to 0.33.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.engine.detokenizer import IncrementalDetokenizer


class StopStrings:
    """The texts of requests that have stop strings.

    Args:
        model_config: says which tokenizer is theirs; it is loaded for the first of them.
    """

    def __init__(self, model_config: Any) -> None:
        self._config = model_config
        #: The text of each request that has such strings; None until its first token.
        self.wanted: dict[str, IncrementalDetokenizer | None] = {}

    def expect(self, request: Any) -> None:
        """Hear of a request."""
        params = request.sampling_params
        if params.stop and params.detokenize and not self._config.skip_tokenizer_init:
            self.wanted[request.request_id] = None

    def reached(self, request: Any, tokens: Sequence[int]) -> bool:
        """Say whether these tokens, the last of a request, end one of its stop strings."""
        if request.request_id not in self.wanted:
            return False
        text = self.wanted[request.request_id]
        if text is None:
            tokenizer = cached_tokenizer_from_config(self._config)
            text = self.wanted[request.request_id] = IncrementalDetokenizer.from_new_request(tokenizer, request)
        return text.update(list(tokens), False) is not None

    def keep(self, requests: Container[str]) -> None:
        """Forget the texts of all requests but these."""
        for request in [request for request in self.wanted if request not in requests]:
            del self.wanted[request]
