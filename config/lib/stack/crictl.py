"""crictl against a private containerd, from inside its network namespace."""

import json
import pathlib
import subprocess


class CrictlError(Exception):
    def __init__(self, args, result):
        self.code, self.stderr, self.stdout = result.returncode, result.stderr, result.stdout
        text = self.stderr if isinstance(self.stderr, str) else (self.stderr or b"").decode(errors="replace")
        super().__init__(f"crictl {' '.join(map(str, args))}: exit {self.code}: {text.strip()}")


class Crictl:
    def __init__(self, program, socket, netns, work_dir, timeout=120):
        self.program, self.socket, self.netns, self.timeout = str(program), socket, netns, timeout
        self.work = pathlib.Path(work_dir)
        self.work.mkdir(parents=True, exist_ok=True)
        self.config = self.work / "crictl.yaml"
        self.config.write_text(f"runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\ntimeout: {timeout}\n")
        self._count = 0

    def command(self, *args):
        """The argv of a crictl call, for callers that run it themselves."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--", self.program, "--config", str(self.config), *map(str, args)]

    def run(self, *args, check=True, stdin=b"", timeout=None, text=True):
        """Runs it to its end; raises CrictlError for a failure when `check`."""
        result = subprocess.run(self.command(*args), input=stdin, capture_output=True, timeout=timeout or self.timeout + 30)
        if text:
            result.stdout = result.stdout.decode(errors="replace")
            result.stderr = result.stderr.decode(errors="replace")
        if check and result.returncode != 0:
            raise CrictlError(args, result)
        return result

    def popen(self, *args, **kwargs):
        """Started, with pipes that keep nothing back: communicate() does not see what a buffered read took."""
        kwargs.setdefault("bufsize", 0)
        return subprocess.Popen(self.command(*args), **kwargs)

    def json(self, command, *args):
        return json.loads(self.run(command, "-o", "json", *args).stdout)

    def write(self, kind, value):
        self._count += 1
        path = self.work / f"{kind}-{self._count}.json"
        path.write_text(json.dumps(value))
        return path

    def runp(self, config, handler=""):
        path = self.write("pod", config)
        args = ["runp", "--runtime", handler, path] if handler else ["runp", path]
        return self.run(*args).stdout.strip(), path

    def create(self, pod, container, pod_path):
        return self.run("create", pod, self.write("container", container), pod_path).stdout.strip()
