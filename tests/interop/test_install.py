"""What is missing is told in one line: programs, packages, a kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_UPDATE_FAILS = 'case "$*" in *update*) echo "E: nobody answers" >&2; exit 100;; esac\n'
_INSTALL_FAILS = 'case "$*" in *install*) echo "E: no more" >&2; exit 100;; esac\n'

_BACKPORTS = (
    "qemu-system-x86 | 1:11.1.3+ds-1~bpo13+1 | http://m/debian trixie-backports/main amd64 P"
)
_SID = "qemu-system-x86 | 1:11.2.0+ds-1 | http://m/debian sid/main amd64 Packages"
_OLD = "qemu-system-x86 | 1:10.0.13+ds-0+deb13u1 | http://m/debian trixie/main amd64 Packages"
_OLDER = "qemu-system-x86 | 1:9.2.1+ds-1~bpo13+1 | http://m/debian trixie-backports/main amd64 P"


def _python(cache: Path, *arguments: str, path: Path | None = None) -> tuple[int, str, str]:
    environment = {**os.environ, "PRECOPY_CACHE": str(cache)}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def _programs(directory: Path, **bodies: str) -> Path:
    directory.mkdir()
    for name, body in bodies.items():
        program = directory / name.replace("_", "-")
        program.write_text("#!/bin/sh\n" + body)
        program.chmod(0o755)
    return directory


def test_a_mirror_that_does_not_answer(tmp_path: Path) -> None:
    programs = _programs(tmp_path / "bin", apt_get=_UPDATE_FAILS)
    cache = tmp_path / "cache"
    status, out, err = _python(cache, "-m", "precopy.lab.qemu", path=programs)
    assert (status, out) == (4, "")
    assert err.splitlines()[0] == "precopy: lab: reading Debian's package lists"
    assert err.splitlines()[1].startswith("precopy: lab: QEMU can't be installed from http")
    assert "its package lists can't be fetched" in err
    assert err.endswith("E: nobody answers\n")
    assert len(err.splitlines()) == 2
    assert not (cache / "qemu").exists()


@pytest.mark.parametrize(
    ("offered", "suite"),
    [
        ((_SID, _BACKPORTS, _OLD), "trixie-backports"),
        ((_SID, _OLDER, _OLD), "sid"),
        ((_OLDER, _OLD), "trixie"),
    ],
)
def test_the_first_suite_with_a_new_enough_qemu_is_taken_else_the_newest(
    tmp_path: Path, offered: tuple[str, ...], suite: str
) -> None:
    listed = "".join(f"echo '{line}'\n" for line in offered)
    programs = _programs(tmp_path / "bin", apt_get=_INSTALL_FAILS, apt_cache=listed)
    status, _, err = _python(tmp_path / "cache", "-m", "precopy.lab.qemu", path=programs)
    assert status == 4
    assert f"downloading QEMU and its libraries from {suite}\n" in err
    assert err.endswith("E: no more\n")


def test_suites_without_qemu(tmp_path: Path) -> None:
    programs = _programs(tmp_path / "bin", apt_get="", apt_cache="")
    status, _, err = _python(tmp_path / "cache", "-m", "precopy.lab.qemu", path=programs)
    assert status == 4
    assert err.endswith("trixie-backports, sid, trixie have no qemu-system-x86\n")


@pytest.mark.parametrize(
    ("has_kernel", "line"),
    [
        (False, "precopy: lab: no kernel has been built yet: run precopy lab build"),
        (True, "precopy: lab: QEMU is not in the cache: run make qemu-test"),
    ],
)
def test_the_comparison_says_what_it_lacks(tmp_path: Path, has_kernel: bool, line: str) -> None:
    if has_kernel:
        (tmp_path / "kernel").touch()
    tests = Path(__file__).with_name("test_qemu.py")
    status, out, _ = _python(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", str(tests))
    assert status == 1
    assert out.count(line) == 1
    assert "Traceback" not in out


_MADISON = r"""case "$*" in
*madison*linux-image*)
    echo "linux-image-cloud-amd64 | 6.12.117-1 | http://m/debian trixie/main amd64 Packages"
    echo "linux-image-cloud-amd64 | 7.3.4-1~bpo13+1 | http://m/debian trixie-backports/main amd64 P";;
*madison*busybox*) echo "busybox-static | 1:1.37.0-6+b9 | http://m/debian trixie/main amd64 Packages";;
*show*linux-image-cloud-amd64=7.3.4-1~bpo13+1*)
    echo "Depends: linux-base-cloud-amd64 (= 7.3.4-1~bpo13+1), linux-image-7.3.4-cloud-amd64 (= 7.3.4-1)";;
*show*linux-image-7.3.4-cloud-amd64=*)
    echo "Depends: dracut | initramfs-tools (>= 0.120), linux-binary-7.3.4-cloud-amd64 (= 7.3.4-1)," \
        "linux-modules-7.3.4-cloud-amd64 (= 7.3.4-1)";;
esac
"""
_DOWNLOAD_FAILS = 'case "$*" in *download*) echo "E: no more: $*" >&2; exit 100;; esac\n'


def test_the_packages_of_the_newest_kernel_are_asked_for(tmp_path: Path) -> None:
    programs = _programs(tmp_path / "bin", apt_get=_DOWNLOAD_FAILS, apt_cache=_MADISON)
    status, out, err = _python(tmp_path / "cache", "-m", "precopy.lab.guest_kernel", path=programs)
    assert (status, out) == (4, "")
    names = [f"linux-{part}-7.3.4-cloud-amd64" for part in ("image", "binary", "modules")]
    assert f"downloading {', '.join(names)}\n" in err
    assert "a guest's kernel can't be installed from http" in err
    asked = err.splitlines()[-1].partition("download ")[2].split()
    assert asked == [*(f"{name}=7.3.4-1~bpo13+1" for name in names), "busybox-static=1:1.37.0-6+b9"]


def test_a_mirror_without_a_kernel(tmp_path: Path) -> None:
    programs = _programs(tmp_path / "bin", apt_get="", apt_cache="")
    status, _, err = _python(tmp_path / "cache", "-m", "precopy.lab.guest_kernel", path=programs)
    assert status == 4
    assert err.endswith("trixie-backports, sid, trixie have no linux-image-cloud-amd64\n")


def test_the_guests_tests_say_that_they_lack_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "qemu").mkdir()
    tests = Path(__file__).parent / "vfio_user"
    status, out, _ = _python(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", str(tests))
    assert status == 1
    assert out.count("precopy: lab: a guest's kernel is not in the cache: run make qemu-test") == 1
    assert "Traceback" not in out
