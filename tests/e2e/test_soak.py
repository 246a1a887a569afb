"""A minute of what tests/soak/run does for ten, with fewer pods."""

import pathlib
import sys

import pytest

from harness.stackfixture import Stack

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "soak"))

from soak import soak  # noqa: E402
from soak.pods import PROBE_TIMEOUT  # noqa: E402

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_minute_of_a_kubelets_calls():
    stack = Stack(daemon_settings={"log_level": "info"})
    try:
        stack.start()
        # How fast a probe is depends on the machine.
        result = soak(stack, pods=3, minutes=1, probe_seconds=3, probe_limit=PROBE_TIMEOUT)
        print(result.text)
        if result.faults:
            stack.keep_logs("soak")
    finally:
        stack.close()
    assert not result.faults
