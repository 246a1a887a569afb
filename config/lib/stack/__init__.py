"""A private containerd with Magnetar beside it, for the quickstart, the tests and the benchmarks.

Everything lives under one run directory, one data directory and one network namespace of its own,
so a containerd that the host already runs is never touched, and teardown.remove() leaves nothing.
"""
