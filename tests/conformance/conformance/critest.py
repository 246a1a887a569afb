"""Runs critest, and reads what it found."""

import dataclasses
import enum
import pathlib
import subprocess
import tomllib
import xml.etree.ElementTree


class Outcome(enum.Enum):
    PASSED = "pass"
    FAILED = "FAIL"
    SKIPPED = "skip"
    MISSING = "-"


@dataclasses.dataclass(frozen=True)
class Result:
    outcome: Outcome
    seconds: float = 0
    message: str = ""


NAMESPACES = ("pid", "ipc", "network", "mount propagation")
MAX_EXPECTED = 20


class ExpectedError(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Expected:
    """Specs that need not pass, by name: what they need of the host, and why containerd does not let them run."""

    needs: dict
    withheld: dict
    # What runc does not pass either, and why.
    neither: dict = dataclasses.field(default_factory=dict)
    # The containerd that each of those withheld passes with.
    passes_with: dict = dataclasses.field(default_factory=dict)

    def specs(self):
        return {*self.needs, *self.withheld, *self.neither}


def expected(path, containerd):
    """The list as it is for a containerd of tests/tools/build. Raises ExpectedError if it is not in order."""
    lists = tomllib.loads(pathlib.Path(path).read_text())
    found = {"needs": {}, "withheld": {}, "neither": {}}
    withheld_by, passes_with = {}, {}
    for entry in lists.get("expected", []):
        kind = next((kind for kind in found if set(entry) == {"spec", kind, *(("by", "passes_with") if kind == "withheld" else ())}), None)
        if not kind or (kind == "needs" and entry["needs"] not in NAMESPACES):
            raise ExpectedError(f"{path}: an entry is a spec and what it `needs` of the host, one of {', '.join(NAMESPACES)}, or why it "
                                f"is `withheld` `by` a containerd and `passes_with` another, or `neither` passes: {entry}")
        if kind == "withheld" and entry["by"] == entry["passes_with"]:
            raise ExpectedError(f"{path}: it cannot pass with the containerd that withholds it: {entry}")
        if any(entry["spec"] in specs for specs in found.values()):
            raise ExpectedError(f"{path}: twice: {entry['spec']}")
        found[kind][entry["spec"]] = entry[kind]
        if kind == "withheld":
            withheld_by[entry["spec"]], passes_with[entry["spec"]] = entry["by"], entry["passes_with"]
    count = len(found["needs"]) + len(found["withheld"])
    if count > MAX_EXPECTED:
        raise ExpectedError(f"{path}: {count} entries, more than {MAX_EXPECTED}")
    found["withheld"] = {spec: why for spec, why in found["withheld"].items() if withheld_by[spec] == containerd}
    return Expected(**found, passes_with={spec: passes_with[spec] for spec in found["withheld"]})


def run(program, socket, netns, handler, report, log, focus="", skip=""):
    """One run with the runtime handler `handler`: {spec: Result}. Its output goes to `log`, its report to `report`.
    Raises RuntimeError if it did not come to its end."""
    argv = ["nsenter", f"--net=/run/netns/{netns}", "--", program, f"--runtime-endpoint=unix://{socket}",
            f"--image-endpoint=unix://{socket}", f"--runtime-handler={handler}", "--ginkgo.no-color", "--ginkgo.timeout=2h",
            f"--ginkgo.junit-report={report}", *([f"--ginkgo.focus={focus}"] if focus else []),
            *([f"--ginkgo.skip={skip}"] if skip else [])]
    with open(log, "wb") as output:
        ended = subprocess.run([str(arg) for arg in argv], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    # 1: some spec failed.
    if ended.returncode not in (0, 1) or not report.exists() or b"[INTERRUPTED]" in log.read_bytes():
        raise RuntimeError(f"critest did not come to its end (exit {ended.returncode}); see {log}")
    return parse(report, not focus and not skip)


def parse(report, everything=True):
    """{spec: Result}, of a run that had a selection without the specs that were not in it."""
    results = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        # Suite-wide steps are reported as cases too.
        if not name.startswith("[It] "):
            continue
        failure = case.find("failure")
        if failure is None:
            failure = case.find("error")
        if failure is not None:
            result = Result(Outcome.FAILED, float(case.get("time", 0)), failure.get("message") or (failure.text or ""))
        elif case.find("skipped") is not None:
            if not everything and case.find("skipped").get("message") in ("", "skipped"):
                continue
            result = Result(Outcome.SKIPPED, 0, case.find("skipped").get("message", ""))
        else:
            result = Result(Outcome.PASSED, float(case.get("time", 0)))
        results[name.removeprefix("[It] ")] = result
    return results
