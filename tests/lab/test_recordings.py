"""The kernel's devices saved to a file and loaded from it, in a kernel and out of it."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from precopy.cli.main import main
from precopy.lab import MTTY_UUIDS, Job, run

ONE, OTHER = MTTY_UUIDS[0], MTTY_UUIDS[2]
VF, OTHER_VF = "vfio:0000:00:01.0?guest=1&qps=4&rate=500", "vfio:0000:00:02.0"

SCRIPT = """
set -e
precopy() {{ "{python}" -m precopy "$@"; }}
precopy save --json --progress none {one} {file} > {file}.report
precopy load --run-for 0.5 --progress none {file} {other}
precopy replay --speed 0 --run-for 0.5 --progress none {file} {other}
head -c 200 {file} > {file}.cut
! precopy load --progress none {file}.cut {other}
precopy load --run-for 0.5 --progress none {file} {other}
"""


@pytest.mark.parametrize(("one", "other"), [(ONE, OTHER), (VF, OTHER_VF)], ids=["mtty", "mlx5"])
def test_a_device_of_the_kernel_s_is_saved_and_loaded(tmp_path: Path, one: str, other: str) -> None:
    file = tmp_path / "state"
    script = SCRIPT.format(python=sys.executable, one=f"'{one}'", other=f"'{other}'", file=file)
    job = Job(["sh", "-c", script], mtty=3, adapter="mlx5?vfs=2&log_max_qp=8", writable=(tmp_path,))
    result = run(job)
    assert (result.status, result.trouble) == (0, ""), result.err
    assert result.err.count("\n") == 1
    assert "it ends at byte 0xc8" in result.err
    # What came out of the kernel is dissected here.
    seen = CliRunner().invoke(main, ["inspect", "--brief", str(file)])
    assert seen.exit_code == 0, seen.output
    assert ("mlx5" if one == VF else "mtty") in seen.output
    report = json.loads((tmp_path / "state.report").read_text())
    assert report["outcome"].endswith("the device runs on")
    if one == VF:
        assert report["guest"]["faults"] == 0
        assert ", 0 faults" in result.out
