"""Annotations in the spec that the runtime in the guest reads."""

import json

import pytest

from harness import guestspec

pytestmark = pytest.mark.vm

TEXT = "\"\\\n\x01 ü \U0001F680 " + "x" * 200


@pytest.fixture
def annotated(any_stack):
    """(the pod, its container's annotations in the guest, and as containerd has them)."""
    with any_stack.pod(annotations={"io.magnetar.pod": "of the pod", "io.magnetar.ü": TEXT, "kept.back": "x"}) as pod:
        container = pod.shell(name="annotated", annotations={"io.magnetar.container": "of the container", "io.magnetar.text": TEXT,
                                                             "kept.back.too": "x", "run.oci.keep_original_groups": "1"})
        spec = json.loads(any_stack.containerd.ctr("containers", "info", container.id).stdout)["Spec"]
        yield pod, guestspec.annotations(pod, "annotated"), spec["annotations"]


def test_they_reach_the_spec(annotated):
    """containerd's own, and what it is configured to pass on, as it is; none that would command the guest's runtime."""
    pod, found, known = annotated
    metadata = pod.config["metadata"]
    assert found == {
        "io.kubernetes.cri.container-name": "annotated",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.image-name": "magnetar.test/busybox:1",
        "io.kubernetes.cri.sandbox-id": pod.id,
        "io.kubernetes.cri.sandbox-name": metadata["name"],
        "io.kubernetes.cri.sandbox-namespace": metadata["namespace"],
        "io.kubernetes.cri.sandbox-uid": metadata["uid"],
        "io.magnetar.pod": "of the pod",
        "io.magnetar.ü": TEXT,
        "io.magnetar.container": "of the container",
        "io.magnetar.text": TEXT,
    }
    assert known == {**found, "run.oci.keep_original_groups": "1"}
