"""A kubelet's way of using CRI, for minutes, and what must hold meanwhile."""

from .node import Node, prefer
from .report import report


def soak(stack, pods, minutes, probe_seconds, probe_limit, handler=None):
    """The report of a run against a stack that has started. `handler`: another than the stack's, as a yardstick."""
    prefer(stack.cgroup)
    # What the first use leaves, such as connections, is there before.
    with stack.pod(handler) as pod:
        pod.shell()
    before = stack.snapshot()
    node = Node(stack, pods, replaced_every=max(30, min(120, minutes * 60 / 4)), probe_seconds=probe_seconds, handler=handler or stack.handler)
    times = node.run(minutes * 60)
    try:
        stack.check_unchanged(before)
    except AssertionError as error:
        node.faults.add(str(error))
    return report(node, *times, probe_limit)
