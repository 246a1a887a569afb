"""containerd's events, as `ctr events` prints them."""

import contextlib
import json
import re
import subprocess

from . import settings
from stack.services import wait_until

LINE = re.compile(r"^.* (?P<topic>/tasks/[a-z-]+) (?P<body>\{.*\})$")


def ctr(stack, *arguments):
    return [str(settings.tool("containerd-2.1") / "ctr"), "--address", str(stack.containerd.socket), "--namespace", "k8s.io", *arguments]


class Listener:
    """The events of tasks from now on."""

    def __init__(self, stack, log):
        self.log = log
        with open(log, "w") as out:
            self.process = subprocess.Popen(ctr(stack, "events"), stdout=out, stderr=subprocess.STDOUT)
        # It says nothing until there is something: an event of its own tells that it listens.
        def listening():
            subprocess.run(ctr(stack, "namespaces", "label", "k8s.io", "e2e=listens"), check=True)
            return "/namespaces/update" in log.read_text()

        wait_until(listening, 30, "ctr events hears nothing", interval=0.1)

    def all(self, container_id):
        """(topic, body) of what is told of one container."""
        found = []
        for line in self.log.read_text().splitlines():
            match = LINE.match(line)
            if match and json.loads(match["body"]).get("container_id") == container_id:
                found.append((match["topic"].removeprefix("/tasks/"), json.loads(match["body"])))
        return found

    def wait(self, container_id, topic):
        """All of the container's once there is one of this topic."""
        return wait_until(lambda: (lambda e: e if any(t == topic for t, _ in e) else None)(self.all(container_id)), 30,
                          f"no {topic} of {container_id[:13]} in {self.log.read_text()}", interval=0.1)


@contextlib.contextmanager
def listen(stack, tmp_path):
    listener = Listener(stack, tmp_path / "events")
    try:
        yield listener
    finally:
        listener.process.kill()
        listener.process.wait()
