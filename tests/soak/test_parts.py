"""The parts that judge: what they must find, they find."""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

from soak import logs, processes  # noqa: E402
from soak.calls import Faults  # noqa: E402


def crilog(*lines, tag="F"):
    return "".join(f"2026-01-01T00:00:00.000000000Z stdout {tag} {line}\n" for line in lines)


def rotated(tmp_path, *files):
    """The faults of a log that was rotated after each of `files` but the last, and how many lines it has."""
    faults = Faults()
    log = logs.RotatedLog(tmp_path / "0.log", faults)
    for content in files[:-1]:
        log.path.write_text(content)
        log.rotate(lambda: None)
    log.path.write_text(files[-1])
    log.finish()
    return faults.texts(), log.lines


def test_a_whole_log(tmp_path):
    assert rotated(tmp_path, crilog(1, 2, 3), crilog(4, 5), crilog("last 5")) == ([], 5)
    # A line that a rotation cuts in two.
    assert rotated(tmp_path, crilog(*range(1, 12)), crilog(1, tag="P"), crilog(2, "last 12")) == ([], 12)


@pytest.mark.parametrize("files", [
    (crilog(1, 2), crilog(4, "last 4")),
    (crilog(1, 2), crilog(2, 3, "last 3")),
    (crilog(1, 2), crilog(3)),
    (crilog(1, 2), crilog("last 3")),
    (crilog(1, "last 1"), crilog(2)),
    (crilog(1, "x"), crilog(2, "last 2")),
], ids=["lost", "twice", "no-end", "lost-at-the-end", "after-the-end", "garbage"])
def test_a_log_with_a_fault(tmp_path, files):
    assert rotated(tmp_path, *files)[0]


def test_growth():
    assert processes.growth([(t, 5 + t % 3) for t in range(100)]) == pytest.approx(0, abs=0.5)
    assert processes.growth([(t, 5 + t % 3 + t / 10) for t in range(100)]) == pytest.approx(10, abs=1)


def test_complaints(tmp_path):
    log = tmp_path / "log"
    log.write_text('time="t" level=info msg=fine\ntime="t" level=error msg=bad\npanic: worse\n')
    assert len(logs.complaints("containerd", log)) == 2
    log.write_text("2026-01-01T00:00:00.000+00:00 info level=error\n2026-01-01T00:00:00.000+00:00 error bad\n2026-01-01T00:00:00.000+00:00 warning bad\n")
    assert len(logs.complaints("vmm-sandboxer", log)) == 2
