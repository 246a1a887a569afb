"""A crictl with a terminal, driven as a person would."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time


class Terminal:
    def __init__(self, command, rows=24, columns=80):
        self.master, slave = pty.openpty()
        self._set_size(rows, columns)
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.seen = b""

    def _set_size(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows, columns):
        self._set_size(rows, columns)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def send(self, text):
        os.write(self.master, text.encode())

    def _read(self, timeout):
        if not select.select([self.master], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: the other side is closed.
            return None
        self.seen += data
        return bool(data) or None

    def expect(self, text, timeout=30):
        """Reads until `text` has come; returns what came before it and takes both off."""
        needle, deadline = text.encode(), time.monotonic() + timeout
        while needle not in self.seen:
            if time.monotonic() > deadline or self._read(0.2) is None:
                raise AssertionError(f"{text!r} did not come; what came: {self.seen!r}")
        before, self.seen = self.seen.split(needle, 1)
        return before.decode(errors="replace")

    def wait(self, timeout=30):
        """Reads to the end; the exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        while self._read(0.1):
            pass
        return self.process.wait(timeout=max(0.1, deadline - time.monotonic()))

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
