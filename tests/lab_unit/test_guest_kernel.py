"""The first root file system of a guest: what lies in it, and in which order modules load."""

import gzip
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.lab import LabError
from precopy.lab.guest_kernel import GuestKernel

RELEASE = "7.3.4-test"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel with a busybox and no modules."""
    modules = tmp_path / "usr/lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "vmlinuz").write_bytes(b"image")
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/busybox").write_bytes(b"\x7fELF")
    return tmp_path


def _module(tree: Path, file: str, depends: str) -> bytes:
    data = (
        b"\x7fELF" + file.encode() + b"\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    )
    path = tree / "usr/lib/modules" / RELEASE / "kernel/drivers" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = {".xz": lzma.compress(data), ".gz": gzip.compress(data)}
    path.write_bytes(packed.get(path.suffix, data))
    return data


def _files(archive: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Names, modes and contents of a cpio archive in its "newc" form."""
    data, at = gzip.decompress(archive), 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + length]
        assert name.endswith(b"\0")
        begin = (at + 110 + length + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert begin == len(data)
            return
        yield name[:-1].decode(), mode, data[begin : begin + size]
        at = (begin + size + 3) // 4 * 4


def test_what_lies_in_it(tree: Path) -> None:
    _module(tree, "top_one.ko.xz", "middle-a,middle_b")
    middle = _module(tree, "middle-a.ko", "base")
    _module(tree, "middle_b.ko.gz", "base")
    _module(tree, "base.ko.xz", "")
    _module(tree, "other.ko.xz", "base")
    kernel = GuestKernel(tree)
    assert (kernel.release, kernel.image.read_bytes()) == (RELEASE, b"image")
    found = {name: (mode, data) for name, mode, data in _files(kernel.initramfs("#!", ["top_one"]))}
    assert found["init"] == (0o100755, b"#!")
    assert found["bin/busybox"] == (0o100755, b"\x7fELF")
    assert found["dev"] == (0o040755, b"")
    # Each once, after what it needs, and without what nobody needs.
    assert found["modules"][1].decode().split() == [
        "/lib/base.ko",
        "/lib/middle_a.ko",
        "/lib/middle_b.ko",
        "/lib/top_one.ko",
    ]
    assert found["lib/middle_a.ko"] == (0o100644, middle)
    assert "lib/other.ko" not in found


def test_what_can_be_missing(tree: Path) -> None:
    kernel = GuestKernel(tree)
    with pytest.raises(LabError, match="has no module mlx5_core"):
        kernel.initramfs("", ["mlx5_core"])
    _module(tree, "mlx5_core.ko.zst", "")
    with pytest.raises(LabError, match=r"mlx5_core\.ko\.zst: a module packed in a way"):
        kernel.initramfs("", ["mlx5_core"])
    (tree / "usr/lib/modules" / RELEASE / "vmlinuz").unlink()
    with pytest.raises(LabError, match="has no kernel image"):
        _ = kernel.image
    with pytest.raises(LabError, match="has no modules"):
        _ = GuestKernel(tree / "usr/bin").release


def test_a_kernel_of_the_older_kind(tree: Path) -> None:
    (tree / "usr/lib/modules" / RELEASE / "vmlinuz").unlink()
    (tree / "boot").mkdir()
    (tree / "boot" / f"vmlinuz-{RELEASE}").write_bytes(b"older")
    assert GuestKernel(tree).image.read_bytes() == b"older"
