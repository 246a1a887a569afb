"""Long-running programs that outlive the script which started them, found again by a pid file."""

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time


class ServiceError(Exception):
    pass


def start_time(pid):
    """The kernel's start time of a process, which with the pid names it; None if there is none."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])


def wait_until(condition, timeout, what, interval=0.02):
    """Returns the first true result of `condition`; raises ServiceError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise ServiceError(f"{what}: not within {timeout} s")
        time.sleep(interval)


def socket_accepts(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def wait_dead(pid, timeout):
    """True once the process has ended. Reaps it if it is our child."""
    deadline = time.monotonic() + timeout
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]
    finally:
        os.close(fd)
    if not ready:
        return False
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
    return True


class Service:
    """One program: `argv`, run in the network namespace `netns` if given, its output in `log`."""

    def __init__(self, name, argv, run_dir, netns=None, env=None):
        self.name = name
        self.argv = [str(arg) for arg in argv]
        self.netns = netns
        self.env = env or {}
        self.log = pathlib.Path(run_dir, f"{name}.log")
        self.pid_file = pathlib.Path(run_dir, f"{name}.pid")

    @property
    def pid(self):
        """The pid of the running program, or None."""
        try:
            record = json.loads(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return record["pid"] if start_time(record["pid"]) == record["start"] else None

    def start(self):
        if self.pid:
            return self
        argv = ["nsenter", f"--net=/run/netns/{self.netns}", "--", *self.argv] if self.netns else self.argv
        with open(self.log, "ab") as log:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.env},
                start_new_session=True, cwd="/", close_fds=True)
        self.pid_file.write_text(json.dumps({"pid": child.pid, "start": start_time(child.pid)}))
        child.returncode = 0  # Nobody waits for it here: wait_dead() reaps it.
        return self

    def wait_socket(self, path, timeout=30):
        def ready():
            if not self.pid:
                raise ServiceError(f"{self.name} ended at its start; the end of {self.log}:\n{self.tail()}")
            return socket_accepts(path)

        try:
            wait_until(ready, timeout, f"{self.name}: {path} accepts no connection")
        except ServiceError as error:
            raise ServiceError(f"{error}\nthe end of {self.log}:\n{self.tail()}") from None
        return self

    def tail(self, lines=30):
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no output)"

    def signal(self, number):
        pid = self.pid
        if pid:
            os.kill(pid, number)
        return pid

    def kill(self):
        pid = self.signal(signal.SIGKILL)
        if pid:
            wait_dead(pid, 10)

    def stop(self, timeout=15):
        """TERM, then KILL. True if TERM was enough."""
        pid = self.signal(signal.SIGTERM)
        if not pid:
            return True
        if wait_dead(pid, timeout):
            return True
        self.kill()
        return False
