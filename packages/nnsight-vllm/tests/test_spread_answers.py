"""What counts among the answers of several workers, whichever way they came."""

from __future__ import annotations

import pytest
import torch

from nnsight.plugin import decode_error, decode_results, encode_error, encode_message, encode_results
from nnsight_vllm.spread import that_counts

SAVED = encode_results({"hidden": torch.arange(3)})
NOTHING = encode_message("caches", {})
FAILED, LATER = encode_error(LookupError("first")), encode_error(LookupError("second"))


@pytest.mark.parametrize("pair", [tuple, list], ids=["as it is", "after its way between processes"])
def test_a_trace_is_told_by_those_that_ran_it_to_its_end_and_errors_by_the_first(pair):
    bodies, printed = that_counts([pair(([NOTHING, FAILED, NOTHING], "")), pair(([SAVED, LATER, LATER], "said\n"))])
    assert torch.equal(decode_results(bodies[0])["hidden"], torch.arange(3))
    assert decode_error(bodies[1]).args == ("first",)
    assert decode_error(bodies[2]).args == ("second",)
    assert printed == "said\n"


def test_one_worker_is_right_and_of_several_whoever_knows():
    assert that_counts([([SAVED], "")]) == ([SAVED], "")
    assert that_counts([NOTHING, SAVED]) == SAVED
    assert that_counts([b"", b""]) == b""
    assert that_counts([[b"", b""], [b"", b"piece"]]) == [b"", b"piece"]
    assert that_counts([{}, {"trace": "said"}]) == {"trace": "said"}
