"""A private, unforked containerd."""

import pathlib
import subprocess
import tempfile

from . import network
from .services import Service

PAUSE_IMAGE = "magnetar.test/pause:1"
RUNTIME_TYPE = "io.containerd.magnetar.v1"
SCRATCH_MIB = 48

CONFIG = """\
version = 3
root = '{data}/root'
state = '{run}/c'
temp = '{data}/tmp'
oom_score = 0

[grpc]
  address = '{socket}'
[ttrpc]
  address = '{socket}.ttrpc'
[debug]
  address = '{socket}.debug'
  level = '{log_level}'

[proxy_plugins.vmm]
  type = 'sandbox'
  address = '{sandboxer}'

[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.internal.v1.opt']
  path = '{data}/opt'
[plugins.'io.containerd.snapshotter.v1.blockfile']
  scratch_file = '{data}/scratch'
  fs_type = 'ext4'
  mount_options = []
  recreate_scratch = true

[plugins.'io.containerd.cri.v1.images']
  snapshotter = '{snapshotter}'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{pause}'
{registries}
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    {cni_bin}
    conf_dir = '{cni_conf}'
    max_conf_num = 4
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
{runtimes}
"""

RUNTIME = """\
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
      runtime_type = '{runtime_type}'
      sandboxer = 'vmm'
      io_type = 'streaming'
      privileged_without_host_devices = {without_host_devices}
      snapshotter = '{snapshotter}'
      pod_annotations = ['io.magnetar.*']
      container_annotations = {container_annotations}
"""


REGISTRIES = """\
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '{path}'
"""


def version(program):
    """(2, 1) of `containerd --version`."""
    out = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    numbers = out.split()[2].lstrip("v").split(".")
    return int(numbers[0]), int(numbers[1])


def overlay_works(folder):
    """Whether the file system below `folder` can hold an overlay's upper directory: another overlay, as a
    container's /var/lib is, cannot."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".overlay-") as scratch:
        parts = {name: pathlib.Path(scratch, name) for name in ("lower", "upper", "work", "merged")}
        for part in parts.values():
            part.mkdir()
        options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
        mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, parts["merged"]], capture_output=True)
        if mounted.returncode == 0:
            subprocess.run(["umount", parts["merged"]], check=True)
        return mounted.returncode == 0


class Containerd:
    """containerd from the folder `programs`, with one runtime handler per entry of `handlers`
    (handler name -> snapshotter), which all use the sandboxer that listens on `sandboxer`. `registry`: the
    address of the one registry that images of every name are pulled from. `container_annotations`: patterns of those
    that reach a container's spec. `host_devices`: handlers whose privileged containers containerd gives every device
    of the host. `cni_folders`: of more plugins."""

    def __init__(self, programs, run_dir, data_dir, netns, sandboxer, shim_dir, handlers, log_level="info", mtu=1500,
                 snapshotter="overlayfs", registry="", container_annotations=(), host_devices=(),
                 cni_folders=()):
        self.run, self.data, self.netns = pathlib.Path(run_dir), pathlib.Path(data_dir), netns
        self.programs = pathlib.Path(programs)
        self.snapshotter, self.registry = snapshotter, registry
        self.container_annotations, self.host_devices = list(container_annotations), host_devices
        self.cni_folders = [str(folder) for folder in cni_folders]
        self.socket = self.run / "containerd.sock"
        self.config = self.run / "containerd.toml"
        self._settings = (sandboxer, handlers, log_level, mtu)
        path = f"{self.programs}:{shim_dir}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.service = Service("containerd", [self.programs / "containerd", "-c", self.config], run_dir, netns, {"PATH": path})

    def configure(self):
        sandboxer, handlers, log_level, mtu = self._settings
        for folder in (self.run, self.data / "root", self.data / "tmp", self.data / "opt"):
            folder.mkdir(parents=True, exist_ok=True)
        scratch = self.data / "scratch"
        if not scratch.exists():
            subprocess.run(["truncate", "-s", f"{SCRATCH_MIB}M", scratch], check=True)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", scratch], check=True,
                           env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})
        network.write_cni(self.run / "cni", f"magnetar-{self.netns}", self.data / "leases", mtu)
        registries = ""
        if self.registry:
            hosts = self.run / "registries" / "_default"
            hosts.mkdir(parents=True, exist_ok=True)
            (hosts / "hosts.toml").write_text(f'server = "{self.registry}"\n[host."{self.registry}"]\n  capabilities = ["pull", "resolve"]\n')
            registries = REGISTRIES.format(path=hosts.parent)
        # The list replaced the single folder in 2.1.
        self.config.write_text(CONFIG.format(
            run=self.run, data=self.data, socket=self.socket, log_level=log_level, sandboxer=sandboxer, pause=PAUSE_IMAGE,
            snapshotter=self.snapshotter, registries=registries,
            cni_bin=f"bin_dirs = {[network.plugin_dir(), *self.cni_folders]}", cni_conf=self.run / "cni",
            runtimes="".join(RUNTIME.format(name=name, runtime_type=RUNTIME_TYPE, snapshotter=snapshotter,
                                            container_annotations=self.container_annotations,
                                            without_host_devices=str(name not in self.host_devices).lower())
                             for name, snapshotter in handlers.items())))

    def start(self, timeout=60):
        network.create(self.netns)
        self.configure()
        self.service.start().wait_socket(self.socket, timeout)
        return self

    def ctr(self, *args, check=True, timeout=120):
        return subprocess.run([self.programs / "ctr", "-a", self.socket, "-n", "k8s.io", *args], check=check, text=True,
                              capture_output=True, timeout=timeout)

    def import_images(self, path):
        self.ctr("images", "import", "--snapshotter", self.snapshotter, str(path), timeout=600)
