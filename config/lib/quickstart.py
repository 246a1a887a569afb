#!/usr/bin/python3
"""The stages of config/quickstart that need a stack: up, demo, down."""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from stack import containerd, crictl, images, network, sandboxer, services, teardown  # noqa: E402

RUN = pathlib.Path("/run/magnetar-qs")
DATA = pathlib.Path("/var/lib/magnetar-qs")
NETNS = CGROUP = "magnetar-qs"
STATE = RUN / "quickstart.json"
HANDLER = "magnetar"
IMAGE = "magnetar.test/busybox:1"

POD = {
    "metadata": {"name": "quickstart", "namespace": "default", "uid": "quickstart", "attempt": 0},
    "hostname": "quickstart",
    "log_directory": str(RUN / "logs"),
    "linux": {"cgroup_parent": f"/{CGROUP}"},
}
CONTAINER = {
    "metadata": {"name": "shell"},
    "image": {"image": IMAGE},
    "command": ["/bin/sh", "-c", "uname -a; while :; do date; sleep 5; done"],
    "log_path": "shell.log",
}



def note(text):
    print(f"           {text}", file=sys.stderr, flush=True)


def parts(settings):
    daemon = sandboxer.Sandboxer(settings["build"], settings["guest"], RUN, NETNS, RUN / "containerd.sock",
                                 {"log_level": "info"})
    stock = containerd.Containerd(settings["containerd"], RUN, DATA, NETNS, daemon.socket,
                                  daemon.program("containerd-shim-magnetar-v1").parent,
                                  {HANDLER: settings["snapshotter"]}, snapshotter=settings["snapshotter"])
    client = crictl.Crictl(settings["crictl"], stock.socket, NETNS, RUN / "crictl.d")
    return stock, daemon, client


def read_state():
    """What `up` has written; empty if there is nothing that can be used."""
    try:
        state = json.loads(STATE.read_text())
        return state if {"containerd", "crictl", "build", "guest", "snapshotter"} <= state.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def write_wrapper(client):
    """A crictl for the user: in the private network namespace, on the private socket."""
    wrapper = RUN / "crictl"
    command = " ".join(client.command())
    wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def up(args):
    settings = {"containerd": args.containerd, "crictl": args.crictl, "build": os.path.abspath(args.build),
                "guest": os.path.realpath(args.guest)}
    previous = read_state()
    if RUN.exists() and previous.get("containerd") != settings["containerd"]:
        note("what runs was started with another containerd: starting afresh")
        teardown.remove(RUN, DATA, NETNS, CGROUP)
        previous = {}
    settings["snapshotter"] = previous.get("snapshotter")
    if not settings["snapshotter"]:
        settings["snapshotter"] = "overlayfs" if containerd.overlay_works(DATA) else "native"
        if settings["snapshotter"] == "native":
            note(f"{DATA} cannot hold overlays: using the native snapshotter, which copies")
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "logs").mkdir(exist_ok=True)
    network.create(NETNS)
    stock, daemon, client = parts(settings)
    settings["daemon"] = digest(daemon.program("vmm-sandboxer"))
    # The daemon may be replaced at any time: pods do not notice.
    if daemon.service.pid and (previous.get("daemon"), previous.get("guest")) != (settings["daemon"], settings["guest"]):
        note("vmm-sandboxer or the guest was rebuilt: restarting the daemon")
        daemon.service.stop()
    STATE.write_text(json.dumps(settings))
    daemon.start()
    if not stock.service.pid:
        stock.start()
    archive = RUN / "image.tar"
    images.write(archive, [images.busybox(IMAGE), images.pause(containerd.PAUSE_IMAGE)])
    stock.import_images(archive)
    archive.unlink()
    write_wrapper(client)


def remove_demo(client):
    for pod in client.json("pods", "--name", "quickstart").get("items", []):
        client.run("stopp", pod["id"])
        client.run("rmp", pod["id"])


def cpu_model(text):
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else "(unnamed)"


def demo(_):
    settings = read_state()
    if not settings:
        raise services.ServiceError(f"{STATE} cannot be read")
    _, _, client = parts(settings)
    remove_demo(client)
    started = time.monotonic()
    pod, config = client.runp(POD, HANDLER)
    note(f"pod {pod[:13]} runs after {time.monotonic() - started:.1f} s")
    container = client.create(pod, CONTAINER, config)
    client.run("start", container)
    note(f"container {container[:13]} runs after {time.monotonic() - started:.1f} s")
    uname = client.run("exec", container, "uname", "-a").stdout.strip()
    cpu = cpu_model(client.run("exec", container, "cat", "/proc/cpuinfo").stdout)
    host = platform.uname()
    print(f"""
In the container:
  {uname}
  CPU: {cpu}
On the host:
  {host.system} {host.node} {host.release} {host.version} {host.machine}
  CPU: {cpu_model(pathlib.Path("/proc/cpuinfo").read_text())}

The pod goes on running. Try:
  {RUN}/crictl pods
  {RUN}/crictl ps
  {RUN}/crictl logs -f {container[:13]}
  {RUN}/crictl exec -it {container[:13]} sh
  {RUN}/crictl stats {container[:13]}
  {RUN}/crictl runp --runtime {HANDLER} POD.json   (without --runtime the pod is runc's)
and, when done:
  {pathlib.Path(__file__).resolve().parent.parent}/quickstart --down""")


def down(_):
    settings = read_state()
    if settings:
        stock, daemon, client = parts(settings)
        if stock.service.pid and daemon.service.pid:
            # The tidy way first, so that a mistake in it shows; what it leaves is removed below.
            try:
                client.run("rmp", "--all", "--force", timeout=60)
            except Exception as error:  # noqa: BLE001
                note(f"pods could not be removed in order: {error}")
            stock.service.stop()
            daemon.service.stop()
    teardown.remove(RUN, DATA, NETNS, CGROUP)
    shutil.rmtree(RUN, ignore_errors=True)
    note("all of the quickstart is removed (build/ and the cache of downloads stay)")


def explain(error):
    """The error with what the program that failed has said, which Python leaves out."""
    said = getattr(error, "stderr", None) if isinstance(error, subprocess.SubprocessError) else None
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    return f"{error}\n{said.strip()}" if said else str(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("up")
    for name in ("containerd", "crictl", "build", "guest"):
        command.add_argument(f"--{name}", required=True)
    command.set_defaults(run=up)
    commands.add_parser("demo").set_defaults(run=demo)
    commands.add_parser("down").set_defaults(run=down)
    args = parser.parse_args()
    try:
        args.run(args)
    except (OSError, subprocess.SubprocessError, services.ServiceError, crictl.CrictlError) as error:
        print(f"error: {explain(error)}\n       logs: {RUN}/vmm-sandboxer.log, {RUN}/containerd.log;"
              f" start afresh: config/quickstart --down, then config/quickstart", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
