"""What came of the whole matrix, as JSON: all that did not pass, and how many did."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from precopy.conformance.matrix.holding import Held
from precopy.conformance.matrix.targets import targets
from precopy.conformance.outcome import ConformStatus, Result
from precopy.conformance.requirements import number_of
from precopy.lab.build import NEWEST

#: A change of what is in the file gets a new number.
_FORMAT = 1


class LedgerError(ValueError):
    """One line: what is wrong with a file of results."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A check that did not pass. ``told``: its verdict, or ``known``; ``why``: the reason, or what came."""

    check: str
    told: str
    why: str
    #: Where the reason is to be seen, of what is known.
    reference: str = ""
    #: The verdict of what is known: ``fail`` or ``kernel down``.
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One target on one kernel. ``kernel`` and ``release`` are empty where it needs none."""

    target: str
    kernel: str
    release: str
    about: str
    status: int
    counts: dict[str, int]
    entries: tuple[Entry, ...]
    #: What is wrong with the target as a whole.
    surprise: str = ""
    #: Differences that are known and not seen here: what each is about, and its reason.
    gone: tuple[tuple[str, str], ...] = ()

    @property
    def driver(self) -> str:
        """What the targets of one driver have in common."""
        return self.target.split()[0]

    def has(self, subject: str, reason: str) -> bool:
        """Whether a difference that is known is seen here. ``subject``: a check, or a requirement."""
        return any(
            each.told == "known"
            and each.why == reason
            and (each.check == subject or number_of(subject))
            for each in self.entries
        )

    def count(self, told: str) -> int:
        return self.counts.get(told, 0)


def row(held: Held) -> Row:
    """What is kept of ``held``."""
    return Row(
        held.target.name,
        held.kernel.name if held.kernel else "",
        held.release if held.kernel else "",
        held.about,
        int(held.status),
        dict(Counter(each.told for each in held.results)),
        tuple(_entry(each) for each in held.results if each.told != "pass"),
        held.surprise,
        tuple((each.subject, each.reason) for each in held.gone),
    )


def _entry(result: Result) -> Entry:
    if result.known:
        known = result.known
        return Entry(
            result.check.name, result.told, known.reason, known.reference, result.verdict.value
        )
    why = result.came
    if result.what:
        why = f"{result.what}: expected {result.expected}, came {result.came}"
    return Entry(result.check.name, result.told, why)


def worst(rows: Sequence[Row]) -> ConformStatus:
    """The exit status of all: a hang or a kernel that went down, then failures by their severity."""
    order = [
        ConformStatus.HANG,
        *(ConformStatus.NORMATIVE, ConformStatus.CONTRACT, ConformStatus.QUALITY),
        ConformStatus.GONE,
    ]
    found = {each.status for each in rows}
    if gone(rows):
        found.add(ConformStatus.GONE)
    return next((each for each in order if each in found), ConformStatus.OK)


def gone(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Differences that are known, and that no target of that driver has any more: where this is so,
    what each is about, and its reason."""
    found = []
    for row in rows:
        family = [each for each in rows if (each.driver, each.kernel) == (row.driver, row.kernel)]
        for subject, reason in row.gone:
            if not any(each.has(subject, reason) for each in family):
                found.append((f"{row.driver} {row.kernel}".strip(), subject, reason))
    return list(dict.fromkeys(found))


def dump(rows: Sequence[Row]) -> str:
    """The file. It says the same of the same results: no times, no names of machines."""
    text = ",\n".join(_row(each) for each in rows)
    return f'{{"format": {_FORMAT}, "rows": [\n{text}\n]}}\n'


def _row(row: Row) -> str:
    """A line about the target, and one for each entry, so that a change shows where it is."""
    head = {
        "target": row.target,
        "kernel": row.kernel,
        "release": row.release,
        "about": row.about,
        "status": row.status,
        "counts": row.counts,
        "surprise": row.surprise,
        "gone": row.gone,
    }
    entries = ",\n".join(f"  {json.dumps(_fields(each))}" for each in row.entries)
    return f'{json.dumps(head)[:-1]}, "entries": [\n{entries}\n]}}'


def _fields(entry: Entry) -> list[str]:
    """Without the last ones where they are empty."""
    found = [entry.check, entry.told, entry.why, entry.reference, entry.verdict]
    return found if entry.reference or entry.verdict else found[:3]


def load(path: Path) -> list[Row]:
    """The rows of a file that :func:`dump` has made. LedgerError."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            raise LedgerError(f"{path}: its format is not {_FORMAT}: write it anew")
        return [
            Row(
                each["target"],
                each["kernel"],
                each["release"],
                each["about"],
                each["status"],
                each["counts"],
                tuple(Entry(*entry) for entry in each["entries"]),
                each["surprise"],
                tuple((subject, reason) for subject, reason in each["gone"]),
            )
            for each in told["rows"]
        ]
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}") from error
    except LedgerError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{path}: no file of results ({error})") from error


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """``old`` with those of ``new`` in place of the same target on the same kernel.

    In the order of the table of targets; what it has no more is left out.
    """
    found = {(each.target, each.kernel): each for each in (*old, *new)}
    names = [each.name for each in targets()]
    return sorted(
        (each for each in found.values() if each.target in names),
        key=lambda each: (names.index(each.target), each.kernel != NEWEST, each.kernel),
    )
