"""Throws bytes at the dissectors: ``python -m tests.fuzz.streams --inputs 1000000 --seed 1``.

Most are nearly right: streams of each format with bits, bytes, pieces and lengths that are wrong. What
is thrown is decided by the seed alone. Each input has to get a verdict, with all its bytes told of, in
a time that is bounded; what does not is printed with what repeats it.
"""

import argparse
import io
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from precopy.stream.dissect import dissect
from precopy.stream.item import Item, Silent, Summary, Wrong
from precopy.stream.registry import formats
from tests.fuzz.stream_seeds import seeds

#: Seconds that an input of some kilobytes may take, on a machine that does other things, too.
TOO_LONG = 10.0

#: Numbers that lie at some limit.
_LIMITS = (
    0,
    1,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    (1 << 63),
    (1 << 64) - 1,
)


class Mutations:
    """Inputs, one after the other; the same for the same seed."""

    def __init__(self, seed: int, streams: Sequence[tuple[str, bytes]]) -> None:
        self._random = random.Random(seed)
        self._streams = streams
        # A large one costs as much as many small ones.
        self._weights = [min(1.0, 1000 / max(len(data), 1)) for _, data in streams]

    def input(self) -> tuple[str, bytes]:
        """Name of a format (or none: to be recognised) and bytes."""
        draw = self._random
        name, whole = self._pick()
        data = bytearray(whole)
        for _ in range(draw.choice((0, 1, 1, 2, 3, 8))):
            draw.choice(self._CHANGES)(self, data)
        chosen = draw.random()
        if chosen < 0.1:
            name = draw.choice(sorted(formats()))
        elif chosen < 0.6:
            name = ""
        return name, bytes(data)

    def _pick(self) -> tuple[str, bytes]:
        return self._random.choices(self._streams, self._weights)[0]

    def _place(self, data: bytearray) -> int:
        return self._random.randrange(len(data)) if data else 0

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] ^= 1 << self._random.randrange(8)

    def _byte(self, data: bytearray) -> None:
        if data:
            data[self._place(data)] = self._random.randrange(256)

    def _number(self, data: bytearray) -> None:
        width = self._random.choice((2, 4, 8))
        value = self._random.choice(_LIMITS) % (1 << 8 * width)
        if self._random.random() < 0.5:
            encoded = value.to_bytes(width, "little")
        else:
            encoded = value.to_bytes(width, "big")
        at = self._place(data)
        data[at : at + width] = encoded

    def _cut(self, data: bytearray) -> None:
        del data[self._place(data) :]

    def _remove(self, data: bytearray) -> None:
        at = self._place(data)
        del data[at : at + self._random.randrange(1, 64)]

    def _insert(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._random.randbytes(self._random.randrange(1, 64))

    def _repeat(self, data: bytearray) -> None:
        start = self._place(data)
        piece = data[start : start + self._random.randrange(1, 256)]
        data[start:start] = piece

    def _splice(self, data: bytearray) -> None:
        _, other = self._pick()
        at = self._place(data)
        start = self._random.randrange(len(other)) if other else 0
        data[at:] = other[start:]

    def _noise(self, data: bytearray) -> None:
        data[:] = self._random.randbytes(self._random.randrange(200))

    _CHANGES = (
        *(_flip, _flip, _byte, _byte, _number, _number, _cut, _remove, _insert, _repeat),
        *(_splice, _noise),
    )


class _Covered(Silent):
    """How many bytes of the file outermost items have told of, one after the other."""

    def __init__(self) -> None:
        self.bytes = self.wrongs = 0
        self.gap = False

    def end(self, item: Item) -> None:
        if not item.depth and not item.stream:
            self.gap |= item.offset != self.bytes
            self.bytes = item.offset + (item.size or 0)

    def wrong(self, wrong: Wrong) -> None:
        self.wrongs += 1


@dataclass
class Result:
    inputs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    #: Inputs by the format that they turned out to be, and of those the ones with something wrong.
    formats: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def verdict(name: str, data: bytes) -> tuple[Summary, int]:
    """Dissect; the summary and how much is wrong. AssertionError for bytes that nobody told of."""
    covered = _Covered()
    summary = dissect(io.BytesIO(data), covered, name)
    assert covered.bytes == len(data), f"{covered.bytes} of {len(data)} bytes told of"
    assert not covered.gap, "items of the file are not one behind the other"
    return summary, covered.wrongs


def fuzz(inputs: int, seed: int, most_faults: int = 10) -> Result:
    """Throw ``inputs`` at the dissectors."""
    mutations = Mutations(seed, seeds())
    result = Result()
    began = time.monotonic()
    for number in range(inputs):
        name, data = mutations.input()
        start = time.monotonic()
        try:
            summary, wrongs = verdict(name, data)
        except Exception as error:
            result.faults.append(
                _fault(seed, number, name, data, f"{type(error).__name__}: {error}")
            )
        else:
            found = summary.format or "unknown"
            result.formats[found] += 1
            result.wrong[found] += bool(wrongs)
            if time.monotonic() - start > TOO_LONG:
                result.faults.append(_fault(seed, number, name, data, "took too long"))
        result.inputs += 1
        result.bytes += len(data)
        if len(result.faults) >= most_faults:
            break
    result.seconds = time.monotonic() - began
    return result


def _fault(seed: int, number: int, name: str, data: bytes, text: str) -> str:
    return f"seed {seed}, input {number}, format {name or 'any'}: {text}: {data[:200].hex()}"


def lines(result: Result) -> Iterator[str]:
    yield (
        f"{result.inputs:,} inputs, {result.bytes:,} bytes, {result.seconds:.0f} s;"
        f" {len(result.faults)} faults"
    )
    for name, count in result.formats.most_common():
        yield f"  {name:12} {count:>8,}, {result.wrong[name]:>8,} with something wrong"
    yield from result.faults


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    result = fuzz(given.inputs, given.seed)
    print("\n".join(lines(result)))
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
