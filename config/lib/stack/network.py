"""The network namespace of a private stack, and the CNI configuration of its pods."""

import json
import pathlib
import subprocess

BRIDGE = "magnetar0"
PLUGIN_DIRS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")


def exists(name):
    return pathlib.Path("/run/netns", name).exists()


def create(name):
    if not exists(name):
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)


def delete(name):
    if exists(name):
        subprocess.run(["ip", "netns", "delete", name], check=True)


def plugin_dir():
    for folder in PLUGIN_DIRS:
        if pathlib.Path(folder, "bridge").exists():
            return folder
    raise FileNotFoundError("no CNI plugins: apt-get install containernetworking-plugins")


def write_cni(folder, name, data_dir, mtu=1500):
    """A dual-stack bridge with hairpin and port mappings, its leases below `data_dir`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "hairpinMode": True,
                "mtu": mtu,
                "ipam": {
                    "type": "host-local", "dataDir": str(data_dir),
                    "ranges": [[{"subnet": "10.123.0.0/16"}], [{"subnet": "fd00:4d:61:67::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    pathlib.Path(folder, "10-magnetar.conflist").write_text(json.dumps(config, indent=2))
