"""A pod as a kubelet keeps it: probed, its logs rotated, its containers restarted, the dead ones collected, itself replaced."""

import itertools
import threading
import time

from harness import testimages
from harness.stackfixture import CONTAINER_PIDS, merge

from .calls import Failed, ticks
from .logs import RotatedLog

PROBE_TIMEOUT = 30
ROTATE_SECONDS = 5
# As the kubelet does it, but no longer than the second.
BACK_OFF_SECONDS, LONGEST_BACK_OFF_SECONDS = 10, 40
# Every so many runs of the one that crashes, the probed container is restarted, too.
RESTART_EVERY = 3
# Every so many probes of a container, its guest is asked for its memory.
GUEST_EVERY = 4
DEAD_KEPT = 1
LINES_A_SECOND = 500
# How long the end of a container may take to be told.
END_SECONDS = 60

PROBED = "trap 'exit 7' TERM; echo ready; sleep infinity & wait"
PRINTING = (f"trap 'ending=1' TERM; n=0; while [ -z \"$ending\" ]; do seq $((n + 1)) $((n + {LINES_A_SECOND})); "
            f"n=$((n + {LINES_A_SECOND})); sleep 1; done; echo last $n")


def crashing(code):
    return f"sleep 2; echo crashing; exit {code}"


class Pod:
    def __init__(self, node, name, replaced_every=None):
        """`replaced_every`: seconds after which it makes room for a new one of the same name."""
        self._node, self._name, self._replaced_every = node, name, replaced_every
        self._attempts = itertools.count()

    def run(self, stop):
        """Lives until `stop` is set."""
        while not stop.is_set():
            if not self._life(stop):
                return

    def _life(self, stop):
        self._config = self._node.pod_config(self._name, next(self._attempts))
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._dead = {}
        self._runs = {name: itertools.count() for name in ("probed", "printing", "crashing")}
        try:
            self.id = self._node.calls("RunPodSandbox", config=self._config, runtime_handler=self._node.handler).pod_sandbox_id
            self._node.made(self.id)
            printer = self._start("printing", PRINTING)
            self._probed = self._start("probed", PROBED)
            log = RotatedLog(self._log_path("printing", 0), self._node.faults)
            workers = [self._worker(self._probe, lambda: self._probed), self._worker(self._probe, lambda: printer),
                       self._worker(self._rotate, log, printer), self._worker(self._crash)]
            self._node.ready(self)
            for worker in workers:
                worker.start()
            # A pod whose work has failed is over, too.
            deadline = time.monotonic() + (self._replaced_every or float("inf"))
            for _ in ticks(0.2, self._ending):
                if stop.is_set() or time.monotonic() > deadline:
                    break
            self._node.leaving(self)
            failed = self._ending.is_set()
            self._ending.set()
            for worker in workers:
                worker.join()
            if not failed:
                self._end(printer, log)
            return not failed
        except Failed:
            return False

    def _worker(self, function, *args):
        def body():
            try:
                function(*args)
            except Failed:
                self._ending.set()
            except BaseException as error:  # noqa: BLE001 (a fault of these tests is one, too)
                self._node.faults.add(f"{self._name}: {function.__name__}: {error!r}")
                self._ending.set()

        return threading.Thread(target=body, name=f"{self._name}{function.__name__}")

    def _log_path(self, name, attempt):
        return self._node.log_directory(self._config) / name / f"{attempt}.log"

    def _start(self, name, script):
        attempt = next(self._runs[name])
        path = self._log_path(name, attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        config = {"metadata": {"name": name, "attempt": attempt}, "image": {"image": testimages.BUSYBOX}, "command": ["/bin/sh", "-c", script],
                  "log_path": f"{name}/{attempt}.log", "labels": {"io.kubernetes.container.name": name},
                  "annotations": {"io.kubernetes.container.restartCount": str(attempt)},
                  "linux": {"security_context": {"namespace_options": {"pid": CONTAINER_PIDS}}}}
        created = self._node.calls("CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self._config).container_id
        self._node.made(created)
        if name == "crashing":
            self._node.stops(created)
        self._node.calls("StartContainer", container_id=created)
        if name != "crashing":
            self._node.runs(created)
        return created

    def _ended(self, container, name, code):
        """Waits until containerd tells that it has ended, and looks at how."""
        if not self._node.events.wait(container, "STOPPED", END_SECONDS):
            self._node.faults.add(f"{self._name}: no event of the end of {name}")
            raise Failed(name)
        now = time.time()
        status = self._node.calls("ContainerStatus", container_id=container).status
        if (status.state, status.exit_code) != (self._node.calls.messages.CONTAINER_EXITED, code):
            self._node.faults.add(f"{self._name}: {name} has state {status.state} and exit code {status.exit_code} ({status.reason}), not {code}")
        if not status.started_at <= status.finished_at <= now * 1e9:
            self._node.faults.add(f"{self._name}: {name} started at {status.started_at}, ended at {status.finished_at}, now {now}")
        self._node.exits(code)
        self._dead.setdefault(name, []).append(container)

    def _collect(self, name, kept=DEAD_KEPT):
        dead = self._dead.get(name, [])
        while len(dead) > kept:
            self._node.calls("RemoveContainer", container_id=dead.pop(0))

    def _probe(self, which):
        for number, _ in enumerate(ticks(self._node.probe_seconds, self._ending)):
            with self._lock:
                container = which()
            code = 3 if number % 7 == 6 else 0
            # One that is being restarted answers no probe.
            if not self._node.is_running(container):
                continue
            answer = self._node.exec(container, ["/bin/sh", "-c", f"echo probe {number}; echo error >&2; exit {code}"], PROBE_TIMEOUT)
            if answer and number % GUEST_EVERY == 0:
                told = self._node.exec(container, ["/bin/cat", "/proc/meminfo"], PROBE_TIMEOUT)
                if told:
                    self._node.guest(self.id, told.stdout)
            if answer and (answer.exit_code, answer.stdout, answer.stderr) != (code, b"probe %d\n" % number, b"error\n"):
                self._node.faults.add(f"{self._name}: probe {number}: {answer}")

    def _rotate(self, log, printer):
        next_one = ticks(ROTATE_SECONDS, self._ending)
        next(next_one, None)
        for _ in next_one:
            log.rotate(lambda: self._node.calls("ReopenContainerLog", container_id=printer))
            self._node.lines(log)

    def _crash(self):
        for number in itertools.count():
            code = 1 + number % 100
            container = self._start("crashing", crashing(code))
            self._ended(container, "crashing", code)
            self._collect("crashing")
            if number % RESTART_EVERY == RESTART_EVERY - 1:
                self._restart()
            if self._ending.wait(min(BACK_OFF_SECONDS << number, LONGEST_BACK_OFF_SECONDS)):
                return

    def _restart(self):
        """As after a liveness probe that failed."""
        old = self._probed
        self._node.stops(old)
        self._node.calls("StopContainer", container_id=old, timeout=30)
        self._ended(old, "probed", 7)
        self._collect("probed")
        new = self._start("probed", PROBED)
        with self._lock:
            self._probed = new

    def _end(self, printer, log):
        for container, name, code in ((printer, "printing", 0), (self._probed, "probed", 7)):
            self._node.stops(container)
            self._node.calls("StopContainer", container_id=container, timeout=30)
            self._ended(container, name, code)
        log.finish()
        self._node.lines(log)
        self._node.calls("StopPodSandbox", pod_sandbox_id=self.id)
        for name in list(self._dead):
            self._collect(name, kept=0)
        self._node.calls("RemovePodSandbox", pod_sandbox_id=self.id)
