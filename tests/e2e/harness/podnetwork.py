"""A pod's network namespace as those see it who change it: CNI plugins, an administrator."""

import contextlib
import json
import pathlib
import subprocess

from .host import descriptors
from stack.services import wait_until

TAP = "_mgt"


def run(*command, check=True):
    return subprocess.run([str(part) for part in command], check=check, capture_output=True, text=True).stdout


class PodNetns:
    """Of a pod that runs. The other ends of its interfaces lie in the stack's namespace, the node."""

    def __init__(self, pod):
        self.pod, self.stack, self.path = pod, pod.stack, pod.netns()

    def ip(self, *args, check=True):
        return run("nsenter", f"--net={self.path}", "ip", *args, check=check)

    def node_ip(self, *args, check=True):
        return run("ip", "-n", self.stack.netns, *args, check=check)

    def batch(self, lines):
        subprocess.run(["nsenter", f"--net={self.path}", "ip", "-force", "-batch", "-"], input="\n".join(lines) + "\n", text=True,
                       capture_output=True)

    def add_veth(self, name, *addresses, node=(), mtu=1500):
        """What a dynamic attach does: an interface with addresses, up; its peer, `node`'s addresses, on the node."""
        peer = f"p{name}"
        self.ip("link", "add", name, "mtu", mtu, "type", "veth", "peer", "name", peer, "mtu", mtu, "netns", self.stack.netns)
        self.node_ip("link", "set", peer, "up")
        for address in node:
            self.node_ip("addr", "add", address, "dev", peer, *(["nodad"] if ":" in address else []))
        for address in addresses:
            self.ip("addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
        self.ip("link", "set", name, "up")
        return self.link(name)["address"]

    def link(self, name):
        return json.loads(self.ip("-json", "link", "show", "dev", name))[0]

    def taps(self):
        return [link["ifname"] for link in json.loads(self.ip("-json", "link")) if link["ifname"].endswith(TAP)]

    def nics(self):
        return json.loads((self.stack.sandbox_record(self.pod) / "sandbox.json").read_text())["nics"]

    def vmm_taps(self):
        """How many taps the VMM holds."""
        return sum("/dev/net/tun" in name or "/tap" in name for name in descriptors(self.pod.vmm()))

    def wait_nics(self, count, timeout=60):
        """Until as many NICs are plugged in, and there are as many taps, on the host and in the VMM."""
        def settled():
            nics = self.nics()
            return len(nics) == count == self.vmm_taps() and all(nic["plugged"] for nic in nics)

        wait_until(settled, timeout, f"not {count} NICs", interval=0.1)


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

    def wait(self, look, text, timeout=60):
        """Until `look()` has `text` in it, which it returns."""
        return wait_until(lambda: (lambda got: got if text in got else None)(look()), timeout, f"no {text!r}", interval=0.1)

    def wait_without(self, look, text, timeout=60):
        wait_until(lambda: text not in look(), timeout, f"{text!r} stays", interval=0.1)


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
