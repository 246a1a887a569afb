"""The whole crictl flow, on each containerd that the tests know."""

from harness import settings


def test_crictl_flow(any_stack):
    """runp, create, start, logs, exec, execsync, stats, ps, inspect, stop, rm, stopp, rmp."""
    crictl = any_stack.crictl
    pod = any_stack.new_pod()
    container = pod.run("/bin/sh", "-c", "echo out; echo err >&2; exec sleep infinity")

    container.wait_log("out")
    container.wait_log("err")
    logs = container.logs()
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")

    assert container.output("echo", "hello") == "hello\n"
    assert crictl.run("exec", "-s", container.id, "echo", "hello").stdout.rstrip() == "hello"
    assert container.id in crictl.run("ps", "-q").stdout
    assert container.status()["state"] == "CONTAINER_RUNNING"
    assert pod.status()["state"] == "SANDBOX_READY"
    stats = crictl.json("stats", "--id", container.id)["stats"][0]
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    pod_stats = crictl.json("statsp", "--id", pod.id)["stats"][0]
    assert int(pod_stats["linux"]["memory"]["workingSetBytes"]["value"]) > 0

    container.stop(1)
    assert container.wait_exit() == 137
    crictl.run("rm", container.id)
    pod.stop()
    assert pod.status()["state"] == "SANDBOX_NOTREADY"
    crictl.run("rmp", pod.id)
    assert pod.id not in crictl.run("pods", "-q").stdout


def test_container_runs_in_a_guest(any_stack):
    """The container's kernel is not the host's, unless this is a run with plain containers."""
    with any_stack.pod() as pod:
        container = pod.shell()
        boot_id = container.output("cat", "/proc/sys/kernel/random/boot_id")
        host = open("/proc/sys/kernel/random/boot_id").read()
        assert (boot_id != host) == settings.IS_VM
