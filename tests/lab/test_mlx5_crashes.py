"""Calls that any owner of a VF can make, or that a stream makes it make, and that bring this kernel
down, by its mlx5_vfio_pci.

Here so that it is noticed when one of them no longer does; the lab notices each.
"""

import sys

import pytest

from precopy.lab import Job, run
from tests.lab.mlx5.rig import LEAPING, TOP

pytestmark = pytest.mark.timeout(600)

_NO_SESSION = "mlx5vf_cmd_query_vhca_migration_state"

#: What is asked, and the function in which it ends.
CRASHES = {
    # The device is closed in PRE_COPY, its state stays that, and its saving file is no more.
    "crash by close": _NO_SESSION,
    # The save that ends the tracking has failed: EIO, PRE_COPY, and no saving file.
    "crash by cancel": _NO_SESSION,
    # Taken from under it by a reload of the PF's driver.
    "crash by reload": _NO_SESSION,
    # A data_fd knows its device by address, whether that is still there or not.
    "crash by unbind": "mlx5vf_resume_write",
    # There is not as much memory as a record asks for: what has been had of it is given back, page
    # by page, from an array that is taken for its own address.
    "crash by record": "mlx5vf_resume_write",
}

#: The kernel as it is, then with memory that is overwritten when it is given back, as any may be.
#: One with KASAN tells at once, and can't have the latter.
KERNELS = ((), ("slab_debug=P,kmalloc-*",))


@pytest.mark.parametrize("name", CRASHES)
def test_the_kernel_falls(name: str) -> None:
    ask = [sys.executable, "-m", "tests.lab.inside_mlx5", name]
    for more in KERNELS:
        adapter = "mlx5?vfs=2&log_max_qp=12"
        result = run(Job(ask, adapter=adapter, cwd=TOP, memory="256M", arguments=(*LEAPING, *more)))
        if result.trouble:
            break
    assert result.trouble.startswith(("Kernel panic", "BUG: KASAN")), result
    assert f"{CRASHES[name]}+" in result.kernel_log
