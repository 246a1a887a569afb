"""Many pods of several containers, all begun at once, as a node that has just come up makes them."""

import concurrent.futures
import threading
import time

import grpc

from harness import testimages
from harness.cri import Cri
from harness.stackfixture import CONTAINER_PIDS


class Crowd:
    def __init__(self, stack, handler):
        self._stack, self._handler = stack, handler
        self._cri = Cri(stack.containerd.socket)
        self._lock = threading.Lock()
        # How long each call took, by method, and what the failed ones said.
        self.seconds, self.failures = {}, []

    def _call(self, method, **fields):
        started = time.monotonic()
        try:
            return self._cri.call(method, **fields)
        except grpc.RpcError as error:
            with self._lock:
                self.failures.append(f"{method}: {error.code().name}: {error.details()}")
            raise
        finally:
            with self._lock:
                self.seconds.setdefault(method, []).append(time.monotonic() - started)

    def _pod(self, containers):
        config = self._stack.pod_config()
        pod = self._call("RunPodSandbox", config=config, runtime_handler=self._handler).pod_sandbox_id
        for number in range(containers):
            made = self._call("CreateContainer", pod_sandbox_id=pod, sandbox_config=config, config={
                "metadata": {"name": f"c{number}"}, "image": {"image": testimages.BUSYBOX}, "command": ["/bin/sleep", "infinity"],
                "linux": {"security_context": {"namespace_options": {"pid": CONTAINER_PIDS}}}})
            self._call("StartContainer", container_id=made.container_id)
        return pod

    def run(self, pods, containers):
        """Makes all of them, looks whether they run, and removes them. Returns the seconds until the last ran."""
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(pods) as pool:
            lives = [pool.submit(self._pod, containers) for _ in range(pods)]
            made = [life.result() for life in lives if not isinstance(life.exception(), grpc.RpcError)]
            seconds = time.monotonic() - started
            running = sum(container.state == self._cri.messages.CONTAINER_RUNNING for container in self._cri.call("ListContainers").containers)
            if running != pods * containers:
                self.failures.append(f"{running} of {pods * containers} containers run")
            for removal in [pool.submit(self._remove, pod) for pod in made]:
                removal.result()
        # What has failed half-way.
        self._stack.crictl.run("rmp", "--all", "--force")
        self._cri.close()
        return seconds

    def _remove(self, pod):
        try:
            self._call("StopPodSandbox", pod_sandbox_id=pod)
            self._call("RemovePodSandbox", pod_sandbox_id=pod)
        except grpc.RpcError:
            return


def measure(stack, handlers, results, pods, containers):
    for mode, handler in handlers.items():
        crowd = Crowd(stack, handler)
        results.add(mode, f"{pods} pods at once", "s", crowd.run(pods, containers))
        for method, seconds in crowd.seconds.items():
            for value in seconds:
                results.add(mode, f"{method}, {pods} pods at once", "ms", value * 1000)
        results.add(mode, f"failures, {pods} pods at once", "", len(crowd.failures))
        results.add(mode, f"longest call, {pods} pods at once", "s", max(max(seconds) for seconds in crowd.seconds.values()))
        for failure in crowd.failures:
            print(f"{mode}: {failure}", flush=True)
