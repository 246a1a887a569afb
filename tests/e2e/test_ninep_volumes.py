"""By 9p: tests of other files that are about files of the host, as they are, with a stack of the other way to them."""

import pytest

from conftest import unchanged
from test_kubelet_pod import (  # noqa: F401
    kubelet_container,
    kubelet_pod,
    test_mounts_reach_both_ways,
    test_projected_token_is_swapped,
    test_read_only_mounts,
    test_what_changes_on_the_host_is_seen,
    volumes,
)

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def shared_stack(ninep_stack):
    return ninep_stack


@pytest.fixture
def stack(request, shared_stack):
    yield from unchanged(request, shared_stack)
