"""A pod's network: more of it than one bridge, and what a container sees of it."""

import contextlib
import json
import pathlib
import subprocess

from stack.services import wait_until


def run(*command, check=True):
    return subprocess.run([str(part) for part in command], check=check, capture_output=True, text=True).stdout


class Guest:
    """What a container sees."""

    def __init__(self, container):
        self.container = container

    def links(self):
        lines = self.container.output("ip", "-o", "link").splitlines()
        return {line.split(": ")[1].split("@")[0]: line for line in lines}

    def addresses(self, name):
        return self.container.exec("ip", "-o", "addr", "show", "dev", name, check=False).stdout

    def routes(self):
        return self.container.output("ip", "route") + self.container.output("ip", "-6", "route")


@contextlib.contextmanager
def cni_network(stack, name, *plugins):
    """One more network, after the stack's own, for the pods that are made meanwhile: they have an eth1."""
    path = pathlib.Path(stack.run_dir, "cni", f"20-{name}.conflist")

    def loaded():
        networks = stack.crictl.json("info")["cniconfig"]["Networks"]
        return name in [network["Config"]["Name"] for network in networks]

    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": list(plugins)}))
    try:
        wait_until(loaded, 30, f"containerd does not load {name}", interval=0.1)
        yield
    finally:
        path.unlink()
        wait_until(lambda: not loaded(), 30, f"containerd keeps {name}", interval=0.1)
