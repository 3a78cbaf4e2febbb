"""Boots a lab kernel with a software ConnectX, runs a program of this folder in it, watches the card.

The program (``inside_mlx5`` and its like) sets marks, whose names it tells in the end: what the card
was asked for between two marks, and how the card stood at each, is known here by these names.
"""

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from precopy.connectx.slots import FLAGS_BYTE, SlotFlags
from precopy.connectx.vhca import Vhca
from precopy.lab import Job, Result, run
from precopy.lab.card import Card
from tests.lab.mlx5.actions import ACTIONS
from tests.lab.mlx5.cards import CARDS

TOP = Path(__file__).parents[3]

#: Tables of the PF in which a driver's leak would show.
_PF_TABLES = ("pd", "mkey", "cq", "qp", "eq", "uar")

#: Fields of a command that say which of its kinds it is.
_KINDS = ("op_mod", "incremental", "set_track")


@dataclass(frozen=True, slots=True)
class Standing:
    """The card at a mark: objects of the PF by table; of each VF its content and whether it works."""

    objects: dict[str, int]
    content: tuple[str, ...]
    works: tuple[bool, ...]


def _content(vhca: Vhca) -> str:
    """A digest of all pages that are not empty."""
    pages = vhca.memory.present_pages()
    rows = vhca.memory.pages[pages]
    filled = rows.any(axis=1)
    digest = xxhash.xxh3_64(pages[filled].tobytes())
    digest.update(rows[filled].tobytes())
    return digest.hexdigest()


def _standing(card: Card) -> Standing:
    adapter = card.adapter
    pf = adapter.pf.vhca
    with pf.lock:
        objects = {
            name: len(pf.table(name).flagged_slots(FLAGS_BYTE[name], SlotFlags.IN_USE))
            for name in _PF_TABLES
        }
    vfs = [port.vhca for port in adapter.vfs]
    return Standing(
        objects,
        tuple(_content(vf) for vf in vfs),
        tuple(not vf.responder_suspended for vf in vfs),
    )


@dataclass(slots=True)
class Watch:
    """What happened to a card: trace lines and the DMA writes of VFs, cut at the marks."""

    lines: list[list[str]] = field(default_factory=lambda: [[]])
    #: VF, address, length.
    writes: list[list[tuple[int, int, int]]] = field(default_factory=lambda: [[]])
    standings: list[Standing] = field(default_factory=list)

    def on(self, card: Card) -> None:
        card.trace(lambda line: self.lines[-1].append(line))
        for index, port in enumerate(card.adapter.vfs):
            port.vhca.dma.listen(partial(self._wrote, index))

        def marked(number: int) -> None:
            if number in ACTIONS:
                ACTIONS[number](card)
                return
            assert number == len(self.standings), "a mark was lost"
            self.lines.append([])
            self.writes.append([])
            self.standings.append(_standing(card))

        card.pf.controls.marked = marked

    def _wrote(self, index: int, address: int, length: int) -> None:
        self.writes[-1].append((index, address, length))


@dataclass(frozen=True, slots=True)
class Seen:
    """``told`` is what the program printed; the rest is by the names of its marks."""

    told: dict[str, Any]
    standings: dict[str, Standing]
    _lines: dict[str, list[str]]
    #: By mark: VF, address and length of each DMA write.
    writes: dict[str, list[tuple[int, int, int]]]
    result: Result

    def lines(self, mark: str) -> list[str]:
        """What the card was asked for from ``mark`` to the next."""
        return self._lines[mark]

    def commands(self, mark: str, who: str = "pf") -> list[str]:
        """The same, of one function, as ``SAVE_VHCA_STATE set_track=0x1 [-> BAD_PARAM]``."""
        return [_short(line) for line in self._lines[mark] if line.startswith(f"{who} ")]


def _short(line: str) -> str:
    command, _, answer = line.partition(" -> ")
    words = command.split(" ")[1:]
    kept = words[:1] + [word for word in words[1:] if word.partition("=")[0] in _KINDS]
    return " ".join(kept) + ("" if answer.startswith("OK") else f" -> {answer.split(' ')[0]}")


#: Without it a test would wait for what the driver waits for, a reset's 100 ms among it.
LEAPING = ("time-travel=inf-cpu",)


def boot(
    *facts: str,
    adapter: str,
    memory: str = "512M",
    kernel: Sequence[str] = LEAPING,
    hangs: bool = False,
    card: str = "",
    timeout: float = 240.0,
) -> Seen:
    """Run ``tests.lab.inside_mlx5 FACTS``; nothing but its answer may come out of it.

    ``card``: a kind of card for which there is no option, of ``cards``. ``hangs``: the kernel can't
    be shut down afterwards, and may say so.
    """
    watch = Watch()
    job = Job(
        [sys.executable, "-m", "tests.lab.inside_mlx5", *facts],
        adapter=adapter,
        cwd=TOP,
        timeout=timeout,
        memory=memory,
        arguments=kernel,
        shutdown=not hangs,
    )
    with CARDS[card]():
        result = run(job, prepare=watch.on)
    said = f"{result.trouble}\n{result.err}\n{result.kernel_log[-4000:]}"
    assert (result.status, result.err) == (0, ""), said
    assert not result.trouble or (hangs and result.trouble.startswith("INFO: task ")), said
    answer = json.loads(result.out)
    names: list[str] = answer["marks"]
    assert len(set(names)) == len(names) == len(watch.standings)
    return Seen(
        answer["told"],
        dict(zip(names, watch.standings, strict=True)),
        dict(zip(names, watch.lines[1:], strict=True)),
        dict(zip(names, watch.writes[1:], strict=True)),
        result,
    )


class Boots:
    """Kernels by name, each booted in the background; asking for one waits for its answer."""

    def __init__(self, started: Mapping[str, "Future[Seen]"]) -> None:
        self._started = started

    def __getitem__(self, name: str) -> Seen:
        return self._started[name].result()


@contextmanager
def booting(boots: Mapping[str, Callable[[], Seen]], at_once: int = 2) -> Iterator[Boots]:
    """Boot all, ``at_once`` at a time; each adapter in a process of its own, or they hold each other up."""
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        yield Boots({name: pool.submit(each) for name, each in boots.items()})
        pool.shutdown(cancel_futures=True)
