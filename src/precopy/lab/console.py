"""What a kernel's console says of trouble: warnings, and the reports of the debug variant's checkers."""

import re

#: The first line of a report. Lockdep, DMA-API, ODEBUG and refcounts warn by way of WARNING; KASAN
#: and a sleep in atomic context by way of BUG.
_TROUBLE = re.compile(
    r"^(?:\[[ .\d]+\] )?("
    r"Kernel panic.*"
    r"|WARNING: .*"
    r"|(?:\[ )?(?:kernel )?BUG:? .*"
    r"|Oops.*"
    r"|INFO: task .* blocked.*"
    r"|INFO: trying to register non-static key.*"
    r"|DMA-API: .*"
    r"|ODEBUG: .*"
    r"|UBSAN: .*"
    r"|turning off the locking correctness validator.*"
    r"|.*general protection fault.*"
    r"|(?:list_(?:add|del) corruption|refcount_t: ).*"
    r")$",
    re.MULTILINE,
)

#: DMA-API says these in every boot that is well.
_HARMLESS = re.compile(
    r"DMA-API: (?:preallocated \d+ debug entries|debugging enabled by kernel config)"
)

#: Reports of defects that this kernel has, and that neither the drivers under test nor our adapter can
#: do anything about: how one begins, and what must stand in the lines after it.
KNOWN = (
    # pci_disable_sriov does not take the lock that the removal of a device wants held; seen when the
    # driver of a PF goes while its VFs are there.
    ("WARNING: drivers/pci/remove.c:", "sriov_disable+"),
    # The network driver of User-Mode Linux takes a queue's lock with and without soft interrupts.
    ("WARNING: inconsistent lock state", "vector_"),
)

#: How many lines after the first one a report has at least, to look for its cause in.
_REPORT = 40

#: Lines in the log of a kernel that was ended. After the one comes what it says since it has been
#: asked for its tasks, of which nothing counts as trouble; after the other, where it hangs.
ASKED, HANGS = "--- its tasks, when asked ---", "--- where it hangs ---"

#: How many lines of a report are shown, and how many of a log without one.
_SHOWN, _LAST = 60, 20


def _counts(log: str, found: "re.Match[str]") -> bool:
    """Whether a report is of a defect that is not known."""
    line = found.group(1)
    if _HARMLESS.match(line):
        return False
    after = "\n".join(log[found.end() :].split("\n", _REPORT)[:_REPORT])
    return not any(line.startswith(begins) and cause in after for begins, cause in KNOWN)


def _first(log: str) -> "re.Match[str] | None":
    return next((found for found in _TROUBLE.finditer(log) if _counts(log, found)), None)


def trouble(log: str) -> str:
    """The first line in ``log`` with which a kernel complains of itself, or an empty string."""
    found = _first(log)
    if found is None:
        return ""
    line = found.group(1).strip()
    # WARN(condition, text): the text has a line of its own.
    text = log[found.end() + 1 :].partition("\n")[0].strip()
    has_text = re.match(r"WARNING: .*, CPU#", line) and not re.match(r"Modules linked|CPU:", text)
    return f"{line}: {text}" if has_text and text else line


def report(log: str) -> str:
    """What is to be shown of ``log``: where the kernel complains of itself, and where it hangs."""
    before, mark, where = log.partition(HANGS)
    before = before.partition(ASKED)[0]
    found = _first(before)
    lines = before[found.start() :].splitlines()[:_SHOWN] if found else []
    if mark:
        lines += [mark, *where.strip().splitlines()]
    return "\n".join(lines or log.splitlines()[-_LAST:])
