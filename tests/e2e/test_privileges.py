"""What the programs that a guest could break into may do on the host: little."""

import os
import pathlib
import stat

import pytest

pytestmark = pytest.mark.vm


def status(pid):
    """{"Uid": ["1", ...], ...} of /proc/<pid>/status."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def writable(top, uid, gid):
    """What below `top` a process with these ids, in no other group and without capabilities, may write to."""
    found = set()
    for folder, folders, files in os.walk(top):
        for path in (pathlib.Path(folder, name) for name in ("", *files)):
            info = path.lstat()
            bit = stat.S_IWUSR if info.st_uid == uid else stat.S_IWGRP if info.st_gid == gid else stat.S_IWOTH
            if info.st_mode & bit and not stat.S_ISLNK(info.st_mode):
                found.add(path)
        # What it may not search, it does not reach.
        for name in list(folders):
            info = pathlib.Path(folder, name).lstat()
            bit = stat.S_IXUSR if info.st_uid == uid else stat.S_IXGRP if info.st_gid == gid else stat.S_IXOTH
            if not info.st_mode & bit:
                folders.remove(name)
    return found


def test_vmm_is_powerless(stack):
    with stack.pod() as pod, stack.pod() as other:
        pod.shell()
        pid = pod.vmm()
        now = status(pid)
        uids, gids = set(now["Uid"]), set(now["Gid"])
        assert len(uids) == 1 and uids != {"0"} and len(gids) == 1 and gids != {"0"}
        assert not set(now["Groups"]) & {"0"}
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(now[name][0], 16) == 0, name
        assert now["NoNewPrivs"] == ["1"]
        for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
            assert status(f"{pid}/task/{thread.name}")["Seccomp"] == ["2"], thread
        assert status(other.vmm())["Uid"] != now["Uid"], "each VM has a uid of its own"

        uid, gid = int(uids.pop()), int(gids.pop())
        record = stack.sandbox_record(pod)
        own = record / "vmm"
        strange = {path for path in writable(stack.run_dir, uid, gid) if path != own and own not in path.parents}
        # Sockets of others' are no files that it can change: their directories keep it out.
        assert not strange, strange


def check_lives_in_the_pod(pod, name):
    for pid in pod.processes(name):
        assert f"magnetar-{pod.id}" in pathlib.Path(f"/proc/{pid}/cgroup").read_text(), name
        assert int(pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 0, name


def test_vmm_lives_in_the_pod(stack):
    with stack.pod() as pod:
        pod.shell()
        for name in ("qemu-system", "virtiofsd"):
            check_lives_in_the_pod(pod, name)
        inode = os.stat(pod.netns()).st_ino
        assert os.stat(f"/proc/{pod.vmm()}/ns/net").st_ino == inode


def test_virtiofsd_is_confined(stack):
    with stack.pod() as pod:
        pod.shell()
        servers = pod.processes("virtiofsd")
        for pid in servers:
            assert status(pid)["NoNewPrivs"] == ["1"], status(pid)
        # The one that serves; its parent only waits for it.
        serving = [pid for pid in servers if int(status(pid)["PPid"][0]) in servers]
        assert serving, servers
        for pid in serving:
            assert status(pid)["Seccomp"] == ["2"], status(pid)
            for kind in ("mnt", "net", "pid"):
                assert os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino, kind
            assert sorted(os.listdir(f"/proc/{pid}/root")) == sorted(os.listdir(stack.sandbox_record(pod) / "shared"))


def test_9p_server_is_confined(ninep_stack):
    with ninep_stack.pod() as pod:
        pod.shell()
        (pid,) = pod.processes("vmm-9p")
        check_lives_in_the_pod(pod, "vmm-9p")
        for task in os.listdir(f"/proc/{pid}/task"):
            now = status(f"{pid}/task/{task}")
            assert now["NoNewPrivs"] == ["1"] and now["Seccomp"] == ["2"], now
            # chown, dac_override, dac_read_search, fowner, fsetid, setgid, setuid, mknod, setfcap
            for name in ("CapPrm", "CapEff", "CapBnd"):
                assert int(now[name][0], 16) & ~0x880000df == 0, now
            assert int(now["CapInh"][0], 16) == int(now["CapAmb"][0], 16) == 0, now
        for kind in ("mnt", "net", "ipc", "uts"):
            assert os.stat(f"/proc/{pid}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino, kind
        # Nothing of the host's, not even /proc: what is mounted there is the pod's.
        assert sorted(os.listdir(f"/proc/{pid}/root")) == sorted(os.listdir(ninep_stack.sandbox_record(pod) / "shared"))
        mounts = [line.split() for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert all(mount[4] == "/" or mount[4].count("/") == 2 for mount in mounts), mounts
        assert all("nodev" in mount[5].split(",") for mount in mounts), mounts
        # Only what is mounted below may be written to.
        assert all("ro" in mount[5].split(",") for mount in mounts if mount[4] == "/"), mounts
