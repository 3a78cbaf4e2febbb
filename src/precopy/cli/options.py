"""Options that several commands have, each declared once."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from precopy.cli.common import MILLISECONDS, PROGRESS_KINDS, SECONDS, SOME_SECONDS, size
from precopy.engine.policy import GiveUp, Policy
from precopy.memory.tracker import KINDS as TRACKERS

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]

#: All the memory that this machine has: a guest that fills more would be its end.
_MACHINE_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

_POLICY = (
    click.option(
        "--downtime-limit",
        type=MILLISECONDS,
        default=300.0,
        show_default=True,
        help="Milliseconds that it may stand still, as far as PRE_COPY can do that.",
    ),
    click.option(
        "--max-rounds",
        type=click.IntRange(min=0),
        default=30,
        show_default=True,
        help="Passes over what has changed.",
    ),
    click.option(
        "--min-rounds",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Middle images at least.",
    ),
    click.option(
        "--timeout", type=SECONDS, default=300.0, show_default=True, help="Seconds in PRE_COPY."
    ),
    click.option(
        "--give-up",
        type=click.Choice([each.value for each in GiveUp]),
        default=GiveUp.SWITCH_OVER.value,
        show_default=True,
        help="What to do when the limit can't be met: switch over all the same, cancel, slow the"
        " guest down, or keep on.",
    ),
    click.option(
        "--tracking",
        type=click.Choice(["auto", *TRACKERS]),
        default="auto",
        show_default=True,
        help="What tells which pages the guest writes.",
    ),
)


def policy_options(command: F) -> F:
    """When to switch over: the options that :func:`policy_of` takes, min_rounds and tracking."""
    for option in reversed(_POLICY):
        command = option(command)
    return command


def policy_of(downtime_limit: float, max_rounds: int, timeout: float, give_up: str) -> Policy:
    return Policy(downtime_limit / 1e3, max_rounds, timeout, GiveUp(give_up))


def silence_option(who: str) -> Option[Any]:
    return click.option(
        "--silence",
        type=SOME_SECONDS,
        default=30.0,
        show_default=True,
        help=f"Seconds a {who} may say nothing.",
    )


#: Of commands that connect to a target, or start one.
connect_wait_option = click.option(
    "--wait",
    type=SECONDS,
    default=0.0,
    show_default=True,
    help="Seconds to go on trying where nobody listens yet.",
)
started_run_for_option = click.option(
    "--run-for",
    type=SECONDS,
    default=1.0,
    show_default=True,
    help="Seconds that a guest works on in a process started for it, before it is counted.",
)

#: Of commands in whose process a device then runs.
max_memory_option = click.option(
    "--max-memory",
    type=size,
    default=str(_MACHINE_MEMORY),
    help="Most guest memory to take, such as 4G.  [default: this machine's memory]",
)
run_for_option = click.option(
    "--run-for",
    type=SECONDS,
    help="End the device so many seconds after it began to run here.  [default: at SIGTERM]",
)
settle_option = click.option(
    "--settle",
    type=SECONDS,
    default=5.0,
    show_default=True,
    help="Seconds the guest has to settle.",
)

progress_option = click.option("--progress", type=click.Choice(PROGRESS_KINDS), default="auto")


def json_option(what: str) -> Option[Any]:
    return click.option("--json", "as_json", is_flag=True, help=what)
