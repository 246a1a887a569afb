"""A VM that is killed under calls, and what has to be the case afterwards."""

import os
import signal
import time

import grpc

from stack.services import wait_dead, wait_until

# From the VM's death to the answer of a call that was under way.
ANSWER_SECONDS = 15


def kill(vmm):
    """Returns when it was done; a stopped process takes a KILL, too."""
    os.kill(vmm, signal.SIGKILL)
    assert wait_dead(vmm, 10)
    return time.monotonic()


def left(killed):
    """Seconds for an answer."""
    return max(0.1, killed + ANSWER_SECONDS - time.monotonic())


def answer(name, call, killed):
    """How a gRPC call has been answered in time: (code, message)."""
    try:
        call.result(left(killed))
    except grpc.FutureTimeoutError:
        raise AssertionError(f"{name} is not answered {ANSWER_SECONDS} s after the VM's death") from None
    except grpc.RpcError as error:
        assert error.details(), name
        return error.code().name, error.details()
    return "OK", ""


def removed(pod):
    """containerd notes the ends of a dead pod's containers by and by, and until then it has them running."""
    wait_until(lambda: pod.remove(check=False).returncode == 0, 30, "the pod cannot be removed")


def finish(stack, pod, before):
    wait_until(lambda: pod.status()["state"] == "SANDBOX_NOTREADY", 30, "the pod is still ready")
    pod.stop()
    removed(pod)
    stack.check_unchanged(before)
