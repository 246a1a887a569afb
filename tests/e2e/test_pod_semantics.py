"""What a pod's fields mean where critest does not look: for execs and for containers that come later, in what a container finds
when it is given nothing, and what is told of it."""

import json
import os

import pytest

from harness import spec, testimages
from harness.cri import Cri
from harness.taskapi import TaskApi
from stack.crictl import CrictlError


@pytest.fixture
def cri(stack):
    cri = Cri(stack.containerd.socket)
    yield cri
    cri.close()


def identity(container, process="self"):
    """Fields of a process's /proc/.../status."""
    text = container.output("cat", f"/proc/{process}/status")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: fields[name].split() for name in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")}


CONTEXTS = {
    "plain": {},
    "user": {"run_as_user": {"value": 1234}, "run_as_group": {"value": 2345}, "supplemental_groups": [3456, 4567]},
    "by name": {"run_as_username": "nobody"},
    "few rights": {"no_new_privs": True, "capabilities": {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_RAW"]}, "seccomp": {"profile_type": 0}},
    "privileged": {"privileged": True},
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_an_exec_is_what_the_container_is(stack, name):
    context = {"linux": {"security_context": CONTEXTS[name]}}
    with stack.pod(**({"linux": {"security_context": {"privileged": True}}} if name == "privileged" else {})) as pod:
        container = pod.shell(**context)
        own, execed = identity(container, "1"), identity(container)
        if name == "user":
            assert own["Uid"] == ["1234"] * 4 and own["Gid"] == ["2345"] * 4 and {"3456", "4567"} <= set(own["Groups"])
        if name == "by name":
            assert own["Uid"] == ["65534"] * 4
        if name == "few rights":
            assert own["NoNewPrivs"] == ["1"] and own["Seccomp"] == ["2"] and own["CapBnd"] == [f"{1 << 13:016x}"]
        # containerd gives an exec of a privileged container what the container has.
        assert own == execed
        limits = "grep -v address /proc/%s/limits"
        assert container.output("sh", "-c", limits % "1") == container.output("sh", "-c", limits % "self")


def test_groups_of_a_user_by_name(pod):
    """The image's groups of the user that it names."""
    container = pod.run("/bin/sleep", "infinity", image=testimages.USER)
    assert container.output("id", "-u", "-n") == "app\n"
    assert set(identity(container, "1")["Groups"]) == {"1000", "2000", "2001"}
    assert identity(container)["Groups"] == identity(container, "1")["Groups"]


def test_a_user_that_does_not_exist(pod):
    with pytest.raises(CrictlError, match="no users found"):
        pod.shell(linux={"security_context": {"run_as_username": "no-such-user"}})
    assert pod.shell().output("echo", "fine") == "fine\n"


# As the kubelet names them, which leaves none to the runtime's defaults.
MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
READ_ONLY = ["/proc/sys", "/proc/bus", "/proc/irq"]


@pytest.mark.parametrize("privileged", [False, True])
def test_paths_that_are_masked_or_read_only(stack, privileged):
    context = {"linux": {"security_context": {"privileged": privileged}}}
    paths = {"linux": {"security_context": {"privileged": privileged, "masked_paths": MASKED, "readonly_paths": READ_ONLY}}}
    with stack.pod(**context) as pod:
        container = pod.shell(**paths)
        mounts = {line.split()[1]: line.split() for line in container.output("cat", "/proc/mounts").splitlines()}
        present = [path for path in MASKED + READ_ONLY if container.exec("test", "-e", path, check=False).returncode == 0]
        assert {"/proc/kcore", "/proc/sys"} <= set(present)
        for path in present:
            assert (path in mounts) != privileged, path
            if path in mounts and path in READ_ONLY:
                assert "ro" in mounts[path][3].split(","), mounts[path]


def test_limits_of_a_container(pod):
    """Each in the file of its cgroup that it is, in the kernel that the container has."""
    container = pod.shell(linux={"resources": {
        "cpu_shares": 512, "cpu_period": 50000, "cpu_quota": 20000, "memory_limit_in_bytes": 96 << 20, "memory_swap_limit_in_bytes": 96 << 20,
        "oom_score_adj": 985, "unified": {"memory.high": str(80 << 20), "pids.max": "77"}}})
    wanted = {"cpu.weight": "20", "cpu.max": "20000 50000", "memory.max": str(96 << 20), "memory.swap.max": "0", "memory.high": str(80 << 20),
              "pids.max": "77"}
    found = container.output("sh", "-c", f"cd /sys/fs/cgroup; for file in {' '.join(wanted)}; do echo $file $(cat $file); done")
    assert dict(line.split(" ", 1) for line in found.splitlines()) == wanted
    assert container.output("cat", "/proc/1/oom_score_adj") == "985\n"


DEVICES = ("null", "zero", "full", "random", "urandom")


@pytest.mark.vm
def test_devices_that_every_kernel_has(pod):
    """By the names that are asked for, and the guest's."""
    container = pod.shell(devices=[{"host_path": f"/dev/{name}", "container_path": f"/dev/my/{name}", "permissions": "rw"} for name in DEVICES])
    for name in DEVICES:
        number = os.stat(f"/dev/{name}").st_rdev
        assert container.output("stat", "-c", "%F %t:%T", f"/dev/my/{name}") == (
            f"character special file {os.major(number):x}:{os.minor(number):x}\n")
    for name in ("zero", "random", "urandom"):
        assert container.output("sh", "-c", f"head -c 1000 /dev/my/{name} | tee /dev/my/null | wc -c") == "1000\n"
    assert "No space left" in container.exec("sh", "-c", "echo > /dev/my/full", check=False).stderr


@pytest.mark.vm
def test_a_privileged_container_has_no_device_that_it_did_not_ask_for(stack):
    """The host's are not to be had, and the guest's own disks are not the container's."""
    context = {"linux": {"security_context": {"privileged": True}}}
    with stack.pod(**context) as pod:
        kinds = ("find", "/dev", "-type", "b", "-o", "-type", "c")
        usual = set(pod.shell().output(*kinds).split())
        assert "/dev/null" in usual and set(pod.shell(**context).output(*kinds).split()) == usual


def test_shared_memory_of_the_pod(stack):
    """One for all of its containers, of the size that runc's have, and it outlives each of them."""
    with stack.pod() as pod:
        first, second = pod.shell(), pod.shell()
        assert first.output("sh", "-c", "df -k /dev/shm | awk 'END { print $2 }'") == "65536\n"
        first.output("sh", "-c", "echo kept > /dev/shm/file")
        assert second.output("cat", "/dev/shm/file") == "kept\n"
        first.stop(0)
        first.remove()
        third = pod.shell()
        assert third.output("cat", "/dev/shm/file") == "kept\n"
        assert third.exec("sh", "-c", "head -c 70000000 /dev/zero > /dev/shm/big", check=False).returncode != 0
        assert third.output("sh", "-c", "rm /dev/shm/big; stat -c %a /dev/shm") == "1777\n"


def test_a_container_is_started_again_in_its_pod(stack):
    """As the kubelet does it: another container of the same name beside the dead one. The pod stays what it was."""
    with stack.pod(hostname="lasting", linux={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "7"}}) as pod:
        facts = "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/random/boot_id; ip -o addr show eth0"
        other, addresses, seen, dead = pod.shell(), pod.addresses(), set(), []
        for attempt in range(4):
            container = pod.create("/bin/sh", "-c", f"echo attempt {attempt}; echo > /local; {{ {facts}; }} > /dev/shm/facts; exit {attempt}",
                                   name="app", metadata={"name": "app", "attempt": attempt}, log_path=f"app-{attempt}.log")
            container.start()
            assert container.wait_exit() == attempt
            assert pod.stack.crictl.run("logs", container.id).stdout == f"attempt {attempt}\n"
            seen.add(other.output("cat", "/dev/shm/facts"))
            dead.append(container)
        assert len(seen) == 1 and seen.pop().startswith("lasting\n7\n")
        assert pod.addresses() == addresses
        # The dead ones are told of until they are removed.
        assert [container.status()["exitCode"] for container in dead] == [0, 1, 2, 3]
        for container in dead:
            container.remove()
        assert pod.containers() == [other.id]


def test_name_resolution_of_the_pod(stack):
    """With nothing said, the host's; else just what is said, in its order."""
    with stack.pod(dns_config={"servers": ["10.96.0.10", "fd00::a"], "searches": ["a.example", "b.example"], "options": ["ndots:5", "timeout:1", "edns0"]}) as pod:
        lines = pod.shell().output("cat", "/etc/resolv.conf").splitlines()
        assert [line for line in lines if line.startswith("nameserver")] == ["nameserver 10.96.0.10", "nameserver fd00::a"]
        assert "search a.example b.example" in lines and "options ndots:5 timeout:1 edns0" in lines
    with stack.pod() as pod:
        container = pod.shell()
        assert container.output("cat", "/etc/resolv.conf") == open("/etc/resolv.conf").read()
        # The node's own names are none of the pod's business.
        hosts = [line.split() for line in container.output("cat", "/etc/hosts").splitlines()]
        assert ["127.0.0.1", "localhost"] in hosts and {line[0] for line in hosts[-len(pod.addresses()):]} == set(pod.addresses())
        container.output("sh", "-c", "echo 10.1.1.1 added >> /etc/hosts")
        # The host's own file stays as it is.
        assert "added" not in open("/etc/hosts").read()


def test_a_host_name_of_the_longest_kind(stack):
    with stack.pod(hostname="h" * 63) as pod:
        container = pod.shell()
        assert container.output("hostname") == "h" * 63 + "\n"
        assert container.output("cat", "/etc/hostname") == "h" * 63 + "\n"


def test_several_sysctls(stack):
    values = {"net.core.somaxconn": "1000", "kernel.shmmax": "67108864", "kernel.msgmax": "16384", "net.ipv4.tcp_keepalive_time": "600"}
    with stack.pod(linux={"sysctls": values}) as pod:
        container = pod.shell()
        for name, value in values.items():
            assert container.output("cat", "/proc/sys/" + name.replace(".", "/")) == f"{value}\n", name


@pytest.mark.vm
@pytest.mark.parametrize("name, value", [("kernel.no_such_thing", "1"), ("../../etc/passwd", "x"), ("net.core.somaxconn", "lots"), ("", "1")])
def test_sysctls_that_are_none(stack, name, value):
    with pytest.raises(CrictlError) as error:
        stack.new_pod(linux={"sysctls": {name: value}})
    assert "sysctl" in str(error.value) and (not name or name in str(error.value)), error.value


def test_annotations_and_labels_are_told(stack, cri):
    """All of them, of pod and container, whatever is in them; to the runtime only those that it is configured for go."""
    odd = {"io.magnetar.test": "value", "example.com/empty": "", "example.com/text": "ä \"quoted\"\nlines\t\\", "example.com/long": "x" * 20_000}
    labels = {"io.kubernetes.pod.name": "told", "empty": ""}
    with stack.pod(annotations=odd, labels=labels) as pod:
        container = pod.shell(annotations=odd, labels=labels)
        status = cri.call("PodSandboxStatus", pod_sandbox_id=pod.id).status
        assert dict(status.annotations) == odd and dict(status.labels) == labels
        assert dict(cri.call("ContainerStatus", container_id=container.id).status.annotations) == odd
        listed = next(item for item in stack.pods() if item["id"] == pod.id)
        assert listed["annotations"] == odd


def test_environment_of_an_exec(stack):
    with stack.pod(hostname="named") as pod:
        check_environment(pod)


def check_environment(pod):
    container = pod.shell(envs=[{"key": "GREETING", "value": "hello"}, {"key": "EMPTY", "value": ""}], working_dir="/tmp")
    told = dict(line.split("=", 1) for line in container.output("env").splitlines())
    assert told["GREETING"] == "hello" and told["EMPTY"] == "" and told["HOSTNAME"] == "named" == container.output("hostname").strip()
    assert container.output("pwd") == "/tmp\n"


def test_limits_of_processes_are_runcs(stack):
    """RLIMIT_NOFILE and the others: what an application counts on does not depend on the handler."""
    if stack.handler == "runc":
        pytest.skip("it is compared with runc")
    told = {}
    for handler in (stack.handler, "runc"):
        with stack.pod(handler=handler) as pod:
            lines = pod.shell().output("cat", "/proc/1/limits").splitlines()[1:]
            told[handler] = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    ours, theirs = told[stack.handler], told["runc"]
    assert ours.keys() == theirs.keys()
    # These two follow from the memory of the kernel that is asked, and the files from what containerd itself may open.
    differing = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
    assert set(differing) <= {"Max processes", "Max pending signals", "Max open files"}, differing
    # containerd's unit file gives it this.
    assert ours["Max open files"] == ["1048576", "1048576"]


LIMITS = [{"type": "RLIMIT_NOFILE", "soft": 321, "hard": 654}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
          {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": (1 << 64) - 1}]
GIVEN = {"Max open files": ["321", "654"], "Max core file size": ["0", "4096"], "Max stack size": ["1048576", "unlimited"]}


@pytest.mark.vm
def test_limits_of_a_containers_own(pod):
    """Which CRI has no field for, and `ctr run --rlimit-nofile` sets; an exec may have others."""
    container = pod.create("/bin/sleep", "infinity")
    spec.change(pod.stack.containerd.socket, container.id, lambda it: it["process"].update(rlimits=LIMITS))
    container.start()
    for process in ("1", "self"):
        lines = container.output("cat", f"/proc/{process}/limits").splitlines()[1:]
        told = {line[:26].strip(): line[26:].split()[:2] for line in lines}
        assert {name: told[name] for name in GIVEN} == GIVEN, process
    with TaskApi(pod) as task:
        process = {"args": ["/bin/sh", "-c", "test $(ulimit -S -n) = 77 && test $(ulimit -H -n) = 88"], "cwd": "/", "user": {"uid": 0, "gid": 0},
                   "env": ["PATH=/bin"], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]}
        task.call("Exec", id=container.id, exec_id="limited", spec=task.spec("Process", process))
        task.call("Start", id=container.id, exec_id="limited")
        assert task.call("Wait", id=container.id, exec_id="limited").exit_status == 0
        task.call("Delete", id=container.id, exec_id="limited")


def test_a_container_sees_what_it_was_made_with(pod):
    """The verbose status is JSON that names the spec."""
    container = pod.shell()
    info = pod.stack.crictl.json("inspect", container.id)["info"]
    assert info["sandboxID"] == pod.id and info["runtimeSpec"]["process"]["args"] == ["/bin/sleep", "infinity"], json.dumps(info)[:500]
