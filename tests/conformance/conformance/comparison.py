"""What Magnetar's run says beside runc's."""

from .critest import Outcome, Result

_MISSING = Result(Outcome.MISSING)


def verdicts(ours, yardstick, expected, whole=False):
    """[(spec, our result, runc's, verdict)], by name. The verdict is "" for what is as it should be. `whole`: of all specs,
    so that an entry of the list without one is of no use any more."""
    rows = []
    for spec in sorted({*ours, *yardstick, *(expected.specs() if whole else ())}):
        mine, other = ours.get(spec, _MISSING), yardstick.get(spec, _MISSING)
        verdict = ""
        if spec in expected.specs() and mine.outcome in (Outcome.PASSED, Outcome.MISSING):
            verdict = "passes, or is no more: take it out of expected.toml"
        elif other.outcome is Outcome.FAILED and spec not in expected.neither:
            verdict = "runc FAILS: the yardstick is broken"
        elif other.outcome is Outcome.PASSED and mine.outcome is not Outcome.PASSED:
            verdict = "DIFFERS"
            if spec in expected.needs:
                verdict = f"expected: needs the host's {expected.needs[spec]}"
            elif spec in expected.withheld and mine.outcome is Outcome.SKIPPED:
                verdict = f"expected: {expected.withheld[spec]}"
        rows.append((spec, mine, other, verdict))
    return rows


def to_be_shown(rows, expected):
    """{containerd: [spec]}: what containerd withheld from a run, by the containerd that it has to pass with."""
    specs = {}
    for spec, mine, _, _ in rows:
        if spec in expected.withheld and mine.outcome is Outcome.SKIPPED:
            specs.setdefault(expected.passes_with[spec], []).append(spec)
    return specs


def shown(specs, ours, yardstick):
    """The same rows of `specs`, each of which has to pass in both columns."""
    rows = []
    for spec in specs:
        mine, other = ours.get(spec, _MISSING), yardstick.get(spec, _MISSING)
        verdict = ""
        if other.outcome is not Outcome.PASSED:
            verdict = "runc does NOT PASS: the yardstick is broken"
        elif mine.outcome is not Outcome.PASSED:
            verdict = "DIFFERS: expected.toml says that it passes"
        rows.append((spec, mine, other, verdict))
    return rows


def wrong(rows):
    """The rows that fail a run."""
    return [row for row in rows if row[3] and not row[3].startswith("expected")]


def table(rows):
    width = max((len(spec) for spec, *_ in rows), default=4)
    lines = [f"{'spec'.ljust(width)}  magnetar       runc"]
    for spec, mine, other, verdict in rows:
        cells = "  ".join(f"{result.outcome.value:4} {result.seconds:5.1f} s" for result in (mine, other))
        lines.append(f"{spec.ljust(width)}  {cells}  {verdict}".rstrip())
    return "\n".join(lines)


def counts(results):
    return ", ".join(f"{sum(result.outcome is outcome for result in results.values())} {outcome.name.lower()}"
                     for outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED))
