"""What `cmake --install` puts onto a host: the paths, the unit, and the drop-in on stock containerd."""

import json
import os
import pathlib
import re
import shutil
import stat
import subprocess

import pytest

from harness import settings
from harness.stackfixture import Stack

pytestmark = pytest.mark.vm

PROGRAMS = ("usr/bin/vmm-sandboxer", "usr/bin/magnetarctl", "usr/bin/containerd-shim-magnetar-v1",
            "usr/libexec/magnetar/vmm-supervisor", "usr/libexec/magnetar/vmm-9p")
FILES = ("etc/magnetar/vmm-sandboxer.toml", "usr/share/magnetar/vmm-sandboxer.toml", "usr/share/magnetar/containerd-magnetar.toml",
         "usr/share/magnetar/runtimeclass.yaml", "usr/lib/systemd/system/vmm-sandboxer.service",
         "usr/share/doc/magnetar/operation.md", "usr/share/doc/magnetar/configuration.md",
         "usr/lib/magnetar/guest/current/vmlinux", "usr/lib/magnetar/guest/current/initrd.img",
         "usr/lib/magnetar/guest/current/root.erofs", "usr/lib/magnetar/guest/current/manifest.json")


def install(root):
    subprocess.run(["cmake", "--install", str(settings.BUILD)], check=True, env={**os.environ, "DESTDIR": str(root)},
                   stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    root = tmp_path_factory.mktemp("installed")
    install(root)
    yield root
    # It holds a guest, and pytest keeps the folders of three runs.
    shutil.rmtree(root)


def test_everything_is_where_the_documents_say(installed):
    for name in (*PROGRAMS, *FILES):
        assert (installed / name).is_file(), name
    for name in PROGRAMS:
        assert (installed / name).stat().st_mode & stat.S_IXOTH, name
    for link in ("usr/lib/magnetar/guest/current", "usr/libexec/magnetar/vmm-supervisor", "usr/libexec/magnetar/vmm-9p"):
        # Relative, as the digest beside it: it holds on the host too.
        target = pathlib.Path(os.readlink(installed / link))
        assert not target.is_absolute() and re.fullmatch(r"[0-9a-f]{8,64}", target.parts[0]), (link, target)
    below = {path.relative_to(installed).parts[0] for path in installed.iterdir()}
    assert below == {"etc", "usr"}


def test_the_daemon_finds_what_is_installed(installed):
    """The defaults of the configuration are paths of the installation."""
    text = (installed / "etc/magnetar/vmm-sandboxer.toml").read_text()
    for path in re.findall(r'"(/usr/lib(?:exec)?/magnetar/[^"]*)"', text):
        assert (installed / path.lstrip("/")).exists(), path
    checked = subprocess.run([installed / "usr/bin/vmm-sandboxer", "--config", installed / "etc/magnetar/vmm-sandboxer.toml",
                              "--check-config"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_another_installation_keeps_the_operators_file_and_older_versions(installed):
    config = installed / "etc/magnetar/vmm-sandboxer.toml"
    shipped = config.read_text()
    guest = installed / "usr/lib/magnetar/guest"
    supervisor = installed / "usr/libexec/magnetar"
    try:
        config.write_text("log_level = 'debug'\n")
        # As if an older version were the one in use.
        for folder, link, target in ((guest, "current", "0123456789ab"), (supervisor, "vmm-supervisor", "0123456789ab/vmm-supervisor")):
            (folder / "0123456789ab").mkdir()
            (folder / link).unlink()
            (folder / link).symlink_to(target)
        install(installed)
        assert config.read_text() == "log_level = 'debug'\n"
        assert (installed / "usr/share/magnetar/vmm-sandboxer.toml").read_text() == shipped
        for folder in (guest, supervisor):
            assert (folder / "0123456789ab").is_dir()
            assert not list(folder.glob("*.new"))
        assert (guest / "current/root.erofs").is_file()
        assert (supervisor / "vmm-supervisor").is_file()
    finally:
        config.write_text(shipped)


def test_the_unit_is_correct(installed):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    unit = installed / "usr/lib/systemd/system/vmm-sandboxer.service"
    text = unit.read_text()
    assert "@" not in text
    program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)[1]
    assert (installed / program.lstrip("/")).is_file()
    document = re.search(r"^Documentation=file://(\S+)", text, re.MULTILINE)[1]
    assert (installed / document.lstrip("/")).is_file()
    # It looks for the program on this host, where it need not be.
    copy = unit.with_name("verify.service")
    copy.write_text(text.replace(program, str(installed / program.lstrip("/"))))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", copy], capture_output=True, text=True)
    copy.unlink()
    ours = [line for line in result.stderr.splitlines() if "verify.service" in line]
    assert result.returncode == 0 and not ours, result.stderr


@pytest.mark.parametrize("version", ["containerd-2.1", "containerd-2.4"])
def test_stock_containerd_takes_the_drop_in(installed, version):
    stack = Stack(version)
    try:
        stack.daemon.start()
        stack.containerd.configure()
        # Without what the drop-in is there for.
        text = stack.containerd.config.read_text()
        text = re.sub(r"\[proxy_plugins\.vmm\]\n(  .*\n)*", "", text)
        text = re.sub(r"( +\[plugins\.'io\.containerd\.cri\.v1\.runtime'\.containerd\.runtimes\.magnetar.*\]\n(?: {6}.*\n)*)", "", text)
        assert "vmm" not in text.replace(str(stack.run_dir), "")
        folder = stack.run_dir / "conf.d"
        folder.mkdir()
        text = text.replace("version = 3\n", f"version = 3\nimports = ['{folder}/*.toml']\n", 1)
        stack.containerd.config.write_text(text)
        drop_in = (installed / "usr/share/magnetar/containerd-magnetar.toml").read_text()
        assert '"/run/vmm-sandboxer.sock"' in drop_in
        (folder / "magnetar.toml").write_text(drop_in.replace("/run/vmm-sandboxer.sock", str(stack.daemon.socket)))
        stack.containerd.service.start().wait_socket(stack.containerd.socket, 60)
        plugins = [line.split() for line in stack.containerd.ctr("plugins", "ls").stdout.splitlines()]
        assert [line[-1] for line in plugins if line[:2] == ["io.containerd.sandbox.controller.v1", "vmm"]] == ["ok"]
        runtimes = json.loads(stack.crictl.run("info").stdout)["config"]["containerd"]["runtimes"]
        assert runtimes["magnetar"]["sandboxer"] == "vmm"
        assert runtimes["magnetar"]["io_type"] == "streaming"
        assert runtimes["magnetar"]["runtimeType"] == "io.containerd.magnetar.v1"
        assert "runc" in runtimes
    finally:
        stack.close()
