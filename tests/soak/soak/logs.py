"""Log files: of containers, rotated as the kubelet does it, and of the programs."""

import re

from harness import crilog


class RotatedLog:
    """The log of a container that prints the numbers from 1, a line each, and at its end `last` and the last of them."""

    def __init__(self, path, faults):
        self.path, self._faults = path, faults
        self.rotations = self.lines = 0
        self._waiting = []
        # What stands before the first whole line that is still to come.
        self._rest = b""
        self._ended = False

    def rotate(self, reopen):
        """Moves the file away and has another begun; reads what was moved away at the earlier time."""
        moved = self.path.with_name(f"{self.path.name}.{self.rotations}")
        self.path.rename(moved)
        self.rotations += 1
        reopen()
        self._read()
        # Some of it may still be on its way to the file that was moved away.
        self._waiting.append(moved)

    def finish(self):
        """Reads the rest, once the container has ended."""
        self._waiting.append(self.path)
        self._read()
        if not self._ended or self._rest:
            self._faults.add(f"{self.path.name}: no end after line {self.lines}: {self._rest[-80:]!r}")

    def _read(self):
        for path in self._waiting:
            self._rest += crilog.parse(path.read_bytes())["stdout"]
            path.unlink()
        self._waiting.clear()
        *whole, self._rest = self._rest.split(b"\n")
        for line in whole:
            self._take(line)

    def _take(self, line):
        if self._ended:
            self._faults.add(f"{self.path.name}: {line!r} after the end")
        elif line == b"last %d" % self.lines:
            self._ended = True
        elif line == b"%d" % (self.lines + 1):
            self.lines += 1
        else:
            self._faults.add(f"{self.path.name}: {line!r} after line {self.lines}")
            found = re.fullmatch(rb"(?:last )?(\d+)", line)
            self.lines = int(found[1]) if found else self.lines


# What a program says when something is wrong.
COMPLAINTS = {
    "containerd": re.compile(r"level=(error|fatal|panic)|^panic:|^fatal error:|^goroutine |DATA RACE"),
    "vmm-sandboxer": re.compile(r"^\S+ (warning|error|critical) |terminate called|Assertion|Sanitizer"),
}


def complaints(name, path):
    """The lines of a program's log that tell of something wrong."""
    pattern = COMPLAINTS[name]
    with open(path, errors="replace") as log:
        return [line.rstrip() for line in log if pattern.search(line)]
