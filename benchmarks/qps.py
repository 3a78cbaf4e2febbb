"""How an image grows with the QPs: bytes, seconds to save, seconds to load."""

import time

from benchmarks.figure import Figure
from precopy.backends import open_device
from precopy.vfio.states import DeviceState

COUNTS = (1, 100, 10_000, 100_000)


def _one(pairs: int) -> tuple[int, float, float]:
    opened = open_device(f"sim:mlx5?qps={pairs}&active=0&chunks=0")
    target = open_device("sim:mlx5", target=True)
    saving = opened.device.set_state(DeviceState.STOP_COPY)
    resuming = target.device.set_state(DeviceState.RESUMING)
    assert saving is not None
    assert resuming is not None
    opened.device.set_state(DeviceState.STOP)
    began = time.perf_counter()
    saving = opened.device.set_state(DeviceState.STOP_COPY)
    assert saving is not None
    buffer = memoryview(bytearray(1 << 20))
    pieces = []
    while count := saving.readinto(buffer):
        pieces.append(bytes(buffer[:count]))
    saved = time.perf_counter() - began
    began = time.perf_counter()
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[resuming.write(view) :]
    target.device.set_state(DeviceState.STOP)
    loaded = time.perf_counter() - began
    opened.close()
    target.close()
    return sum(map(len, pieces)), saved, loaded


def measure() -> list[Figure]:
    figures = []
    for pairs in COUNTS:
        size, saved, loaded = _one(pairs)
        told = f"{size / pairs:,.0f} B a pair, saved in {saved:.2f} s, loaded in {loaded:.2f} s"
        fits = pairs < 10_000 or (4000 <= size / pairs <= 4800 and saved < 5 and loaded < 5)
        bound = "about 4 KB a pair, < 5 s each" if pairs >= 10_000 else "-"
        figures.append(Figure(f"{pairs:,} QP pairs", told, bound, fits))
    return figures
