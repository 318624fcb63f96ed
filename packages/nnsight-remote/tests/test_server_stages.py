"""Where the time of a job went, as the server tells it."""

from __future__ import annotations

import math
import time

import pytest
import torch
from serving import SECONDS

from nnsight_remote.server.stages import STAGES, of_run

X = torch.ones(2, 4)


def test_what_a_process_says_fills_the_time_that_its_job_ran():
    divided = of_run(1.0, {"decode": 0.1, "run": 0.5, "encode": 0.2})
    assert divided["handling"] == pytest.approx(0.2) and sum(divided.values()) == pytest.approx(1.0)
    assert divided["run"] == 0.5


@pytest.mark.parametrize(
    "said",
    [
        {"run": 1.5},
        {"decode": 0.6, "run": 0.6},
        {"run": -1.0},
        {"run": math.nan},
        {"run": math.inf},
        {"run": "long"},
        {"run": True},
    ],
)
def test_what_cannot_be_is_not_believed(said):
    divided = of_run(1.0, said)
    assert sum(divided.values()) == pytest.approx(1.0) and "run" not in divided


def test_a_job_shows_where_its_time_went(model, user):
    with model.trace(X, backend=user):
        model.output.save()
    # The way out is over, and written down, a moment after the result is here.
    deadline = time.monotonic() + SECONDS
    while "send" not in (job := user.get(user.job["id"]))["stages"] and time.monotonic() < deadline:
        pass
    assert list(job["stages"]) == list(STAGES)
    inside = [job["stages"][name] for name in ("handling", "decode", "run", "encode")]
    assert all(seconds >= 0 for seconds in job["stages"].values()) and job["stages"]["run"] > 0
    assert sum(inside) == pytest.approx(job["finished"] - job["started"], abs=1e-6)
    assert job["stages"]["queue"] == pytest.approx(job["started"] - job["submitted"], abs=1e-6)
    numbers = user.http.get("/metrics").text
    for stage in STAGES:
        assert f'nnsight_stage_seconds_count{{model="served_models:mlp",stage="{stage}"}}' in numbers


def test_a_job_that_failed_shows_how_far_it_came(model, user):
    with pytest.raises(ZeroDivisionError):
        with model.trace(X, backend=user):
            model.output.save()
            1 / 0
    assert user.job["stages"]["run"] > 0 and "encode" not in user.job["stages"]
