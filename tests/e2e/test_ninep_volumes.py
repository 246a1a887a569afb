"""By 9p: tests of other files that are about files of the host, as they are, with a stack of the other way to them."""

import pytest

from conftest import unchanged
from test_kubelet_pod import (  # noqa: F401
    kubelet_container,
    kubelet_pod,
    shared_volume,
    test_empty_dir_in_memory_is_the_guests,
    test_mounts_reach_both_ways,
    test_projected_token_is_swapped,
    test_propagation_that_a_vm_cannot_have,
    test_read_only_mounts,
    test_what_changes_on_the_host_is_seen,
    test_what_the_host_mounts_and_unmounts_within_a_volume,
    volumes,
)
from test_volumes import (  # noqa: F401
    kubelet,
    test_a_volume_that_is_a_link,
    test_a_volume_that_is_gone_at_the_start,
    test_config_map_is_swapped,
    test_huge_pages,
    test_image_volume,
    test_links_of_a_volume_lead_within_the_container,
    test_sub_path,
    test_sub_path_of_a_volume_in_memory,
)

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def shared_stack(ninep_stack):
    return ninep_stack


@pytest.fixture
def stack(request, shared_stack):
    yield from unchanged(request, shared_stack)


@pytest.fixture
def any_stack(stack):
    return stack
