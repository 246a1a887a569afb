"""What decides about a run, and the registry, without containerd."""

import functools
import http.server
import json
import pathlib
import sys
import threading
import urllib.error
import urllib.request

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "config" / "lib")]

from stack import images  # noqa: E402
from conformance import comparison, critest, registry  # noqa: E402
from conformance.critest import Outcome, Result  # noqa: E402

PASSED, FAILED, SKIPPED = (Result(outcome) for outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED))


LISTS = {"": critest.Expected({}, {}), "needs": critest.Expected({"spec": "pid"}, {}),
         "withheld": critest.Expected({}, {"spec": "unknown to containerd"}),
         "neither": critest.Expected({}, {}, {"spec": "not to be had"})}


@pytest.mark.parametrize("ours, yardstick, listed, is_wrong", [
    (PASSED, PASSED, "", False),
    (FAILED, PASSED, "", True),
    (SKIPPED, PASSED, "", True),
    (None, PASSED, "", True),
    (FAILED, FAILED, "", True),
    (PASSED, FAILED, "", True),
    (SKIPPED, SKIPPED, "", False),
    (FAILED, FAILED, "neither", False),
    (PASSED, PASSED, "neither", True),
    (None, None, "needs", True),
    (FAILED, PASSED, "needs", False),
    (PASSED, PASSED, "needs", True),
    (SKIPPED, PASSED, "withheld", False),
    (FAILED, PASSED, "withheld", True),
    (PASSED, PASSED, "withheld", True),
])
def test_verdicts(ours, yardstick, listed, is_wrong):
    columns = [{"spec": result} if result else {} for result in (ours, yardstick)]
    rows = comparison.verdicts(*columns, LISTS[listed], whole=True)
    assert [spec for spec, *_ in rows] == ["spec"]
    assert bool(comparison.wrong(rows)) == is_wrong
    assert "spec" in comparison.table(rows)


@pytest.mark.parametrize("ours, yardstick, is_wrong", [
    (PASSED, PASSED, False), (FAILED, PASSED, True), (SKIPPED, PASSED, True), (None, PASSED, True),
    (PASSED, FAILED, True), (PASSED, SKIPPED, True), (None, None, True)])
def test_what_was_withheld_is_shown_elsewhere(ours, yardstick, is_wrong):
    listed = critest.Expected({}, {"spec": "why", "other": "why"}, {}, {"spec": "new", "other": "new"})
    rows = comparison.verdicts({"spec": SKIPPED}, {"spec": PASSED}, listed)
    assert comparison.to_be_shown(rows, listed) == {"new": ["spec"]}
    columns = [{"spec": result} if result else {} for result in (ours, yardstick)]
    assert bool(comparison.wrong(comparison.shown(["spec"], *columns))) == is_wrong


def write_expected(folder, entries):
    path = folder / "expected.toml"
    path.write_text("".join(f"[[expected]]\n{entry}\n" for entry in entries))
    return path


def test_expected(tmp_path):
    path = write_expected(tmp_path, ['spec = "a"\nneeds = "ipc"', 'spec = "b"\nwithheld = "why"\nby = "old"\npasses_with = "new"',
                                     'spec = "c"\nneither = "that"'])
    assert critest.expected(path, "old") == critest.Expected({"a": "ipc"}, {"b": "why"}, {"c": "that"}, {"b": "new"})
    assert critest.expected(path, "new") == critest.Expected({"a": "ipc"}, {}, {"c": "that"})
    assert critest.expected(HERE / "expected.toml", "containerd-2.1").needs


@pytest.mark.parametrize("entries", [
    ['spec = "a"'],
    ['spec = "a"\nwithheld = "why"\npasses_with = "new"'],
    ['spec = "a"\nwithheld = "why"\nby = "old"'],
    ['spec = "a"\nwithheld = "why"\nby = "old"\npasses_with = "old"'],
    ['spec = "a"\nneeds = "time"'],
    ['spec = "a"\nneeds = "pid"'] * 2,
    [f'spec = "{n}"\nneeds = "pid"' for n in range(critest.MAX_EXPECTED + 1)],
], ids=["no reason", "by whom", "passes nowhere", "passes where it is withheld", "no such namespace", "twice", "too many"])
def test_expected_is_not_in_order(tmp_path, entries):
    with pytest.raises(critest.ExpectedError):
        critest.expected(write_expected(tmp_path, entries), "old")


def test_report(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite><testcase name="[BeforeSuite]" time="1"/><testcase name="[It] a" time="2"/>'
                      '<testcase name="[It] b" time="3"><failure message="no"/></testcase>'
                      '<testcase name="[It] c"><skipped message="not here"/></testcase></testsuite></testsuites>')
    assert critest.parse(report) == {"a": Result(Outcome.PASSED, 2), "b": Result(Outcome.FAILED, 3, "no"),
                                     "c": Result(Outcome.SKIPPED, 0, "not here")}


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "registry"
    registry.write(folder, [images.Image("example.org/a/b:1", [images.layer([images.Entry("file", b"content")])])])
    tags = json.loads((folder / registry.INDEX).read_text())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(registry.Handler, folder, tags))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v2/"
    server.shutdown()
    thread.join()
    server.server_close()


def get(url, method="GET"):
    with urllib.request.urlopen(urllib.request.Request(url, method=method)) as response:
        return response.headers, response.read()


def test_an_image_is_pulled(served):
    assert get(served)[1] == b"{}"
    headers, by_tag = get(served + "a/b/manifests/1?ns=example.org")
    manifest = json.loads(by_tag)
    assert headers["Content-Type"] == manifest["mediaType"]
    assert get(f"{served}a/b/manifests/{headers['Docker-Content-Digest']}")[1] == by_tag
    head, nothing = get(served + "a/b/manifests/1", "HEAD")
    assert (int(head["Content-Length"]), nothing) == (len(by_tag), b"")
    layer = manifest["layers"][0]
    assert len(get(f"{served}a/b/blobs/{layer['digest']}")[1]) == layer["size"]


@pytest.mark.parametrize("path", ["a/b/manifests/2", "other/manifests/1", "a/b/blobs/index.json", "a/b/blobs/..", "a/b/tags/list",
                                  "a/b/blobs/sha256:" + "0" * 64])
def test_what_the_registry_does_not_have(served, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(served + path)
    assert error.value.code == 404
    error.value.close()
