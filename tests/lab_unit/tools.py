"""Fakes of the programs that a kernel's build and its coverage call: found by way of PATH.

``make`` takes every option but those in the tree's ``refuses``, and makes a kernel whose content is
its configuration; ``gcov`` tells what stands in a file of counters as it is.
"""

import sys
from pathlib import Path

_MAKE = """
import os, re, sys
goal = next(each for each in sys.argv[1:] if "=" not in each and not each.startswith("-"))
variables = dict(each.split("=", 1) for each in sys.argv[1:] if "=" in each)
with open(os.environ["FAKE_LOG"], "a") as log:
    print(goal, file=log)
def write(name, text):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    open(name, "w").write(text)
if goal == "allnoconfig":
    write(".config", open(variables["KCONFIG_ALLCONFIG"]).read())
elif goal == "olddefconfig":
    last = {}
    for line in open(".config"):
        found = re.match(r"(?:# )?(CONFIG_\\w+)", line)
        if found:
            last[found.group(1)] = line
    refused = open("refuses").read().split() if os.path.exists("refuses") else []
    write(".config", "".join(line for name, line in last.items() if name not in refused))
elif goal == "linux":
    if os.path.exists("broken"):
        sys.exit("error: expected declaration")
    directory = "drivers/vfio/pci/mlx5"
    for name in ("main", "cmd"):
        rule = variables[f"GCOV_PROFILE_{name}.o"]
        assert rule == f"$(if $(filter {directory},$(obj)),y,n)", rule
        write(f"{directory}/{name}.gcno", "notes of " + name)
    print("  CC      init/main.o")
    write("System.map", "60000000 T _text\\n")
    write("linux", open(".config").read())
"""

_GCOV = """
import sys
for name in sys.argv[1:]:
    if name.endswith(".gcda"):
        open(name.replace(".gcda", ".gcno")).close()
        print(open(name).read())
"""

_NOTHING = ""


def install(directory: Path) -> dict[str, str]:
    """Put the programs into ``directory``; the environment in which they are found, and nothing else."""
    programs = {"make": _MAKE, "gcov": _GCOV}
    programs |= dict.fromkeys(("gcc", "flex", "bison", "bc", "xz", "strip"), _NOTHING)
    directory.mkdir()
    for name, text in programs.items():
        path = directory / name
        path.write_text(f"#!{sys.executable} -IS\n{text}")
        path.chmod(0o755)
    return {"PATH": str(directory), "FAKE_LOG": str(directory / "log")}


def goals(environment: dict[str, str]) -> list[str]:
    """What ``make`` has been asked for so far."""
    log = Path(environment["FAKE_LOG"])
    return log.read_text().split() if log.exists() else []
