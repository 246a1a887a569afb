"""Magnetar's daemon in a private stack."""

import json
import pathlib

from .services import Service

# Build folders of the programs, as CMake lays them out.
PROGRAMS = {
    "vmm-sandboxer": "src/daemon/vmm-sandboxer",
    "vmm-supervisor": "src/supervisor/vmm-supervisor",
    "vmm-9p": "src/ninep/vmm-9p",
    "magnetarctl": "src/ctl/magnetarctl",
    "containerd-shim-magnetar-v1": "src/shim/containerd-shim-magnetar-v1",
}


def toml(settings):
    """TOML of {key: value, table: {key: value}}; JSON's scalars and lists are TOML's."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, dict)]
    tables = [f"\n[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
              for name, table in settings.items() if isinstance(table, dict)]
    return "\n".join(plain + tables) + "\n"


class Sandboxer:
    """vmm-sandboxer out of the build folder `build`, with the guest in the folder `guest`."""

    def __init__(self, build, guest, run_dir, netns, containerd_socket, settings=None):
        self.run, self.build, self.guest = pathlib.Path(run_dir), pathlib.Path(build), pathlib.Path(guest)
        self.state = self.run / "s"
        self.socket = self.run / "vmm.sock"
        self.config = self.run / "vmm-sandboxer.toml"
        self.containerd_socket = containerd_socket
        self.settings = settings or {}
        self.service = Service("vmm-sandboxer", [self.program("vmm-sandboxer"), "--config", self.config], run_dir, netns)

    def program(self, name):
        return self.build / PROGRAMS[name]

    def configure(self, **overrides):
        """Writes the configuration; `overrides` (table -> settings) are added to this instance's own."""
        settings = {
            "listen": str(self.socket), "run_dir": str(self.state), "log_level": "debug",
            "containerd": {"address": str(self.containerd_socket)},
            "guest": {"kernel": str(self.guest / "vmlinux"), "initrd": str(self.guest / "initrd.img"),
                      "image": str(self.guest / "root.erofs")},
            "vm": {"supervisor_path": str(self.program("vmm-supervisor")), "vmm_9p_path": str(self.program("vmm-9p")),
                   "start_timeout_seconds": 110},
            "debug": {},
        }
        for extra in (self.settings, overrides):
            for name, value in extra.items():
                if isinstance(value, dict):
                    settings[name] = {**settings.get(name, {}), **value}
                else:
                    settings[name] = value
        self.run.mkdir(parents=True, exist_ok=True)
        self.config.write_text(toml(settings))

    def start(self, timeout=30, **overrides):
        self.configure(**overrides)
        self.service.start().wait_socket(self.socket, timeout)
        return self
