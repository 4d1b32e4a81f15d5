"""A worker killed in the middle of a trial: another one goes on, and the bits are the same."""

from __future__ import annotations

import os
import signal

import pytest
from taking_over import check_taken_over, quiet

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")


@pytest.mark.slow
def test_a_killed_workers_trial_goes_on_from_its_checkpoint_in_the_same_bits(
    lives, worker, sweep_file, template, tmp_path
):
    path = sweep_file(template, trials=1)
    cache = os.environ["DREAMBOOTH_CACHE"]
    status, said = lives.run(["sweep", path], cache, die_at="step-000002:1")
    assert status == -signal.SIGKILL, said
    one = worker(job=template, trials=1)
    one.reporter = quiet()
    one.work()
    check_taken_over(worker, one, template, tmp_path)
