"""The state machine against a literal table of what vfio_mig_get_next_state answers."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.vfio.states import (
    DATA_FD_ARCS,
    DeviceState,
    MigrationFlags,
    direct_arcs,
    is_supported,
    next_state,
    path,
    supported_states,
)

E, S, R, SC, RES, RP, PC, PCP = DeviceState
BASE = MigrationFlags.STOP_COPY
P2P = BASE | MigrationFlags.P2P
PRE = BASE | MigrationFlags.PRE_COPY
ALL = BASE | MigrationFlags.P2P | MigrationFlags.PRE_COPY

#: The first step from each state (row) to each (column), with every feature; - is EINVAL.
COLUMNS = "     S    R    SC   RES  RP   PC   PCP"
LITERAL = {
    ALL: """
        S    S    RP   SC   RES  RP   RP   RP
        R    RP   R    RP   RP   RP   PC   RP
        SC   S    S    SC   S    S    -    -
        RES  S    S    S    RES  S    S    S
        RP   S    R    S    S    RP   R    PCP
        PC   R    R    PCP  R    R    PC   PCP
        PCP  RP   RP   SC   RP   RP   PC   PCP
    """,
    PRE: """
        S    S    R    SC   RES  -    R    -
        R    S    R    S    S    -    PC   -
        SC   S    S    SC   S    -    -    -
        RES  S    S    S    RES  -    S    -
        RP   -    -    -    -    -    -    -
        PC   R    R    SC   R    -    PC   -
        PCP  -    -    -    -    -    -    -
    """,
    P2P: """
        S    S    RP   SC   RES  RP   -    -
        R    RP   R    RP   RP   RP   -    -
        SC   S    S    SC   S    S    -    -
        RES  S    S    S    RES  S    -    -
        RP   S    R    S    S    RP   -    -
        PC   -    -    -    -    -    -    -
        PCP  -    -    -    -    -    -    -
    """,
    BASE: """
        S    S    R    SC   RES  -    -    -
        R    S    R    S    S    -    -    -
        SC   S    S    SC   S    -    -    -
        RES  S    S    S    RES  -    -    -
        RP   -    -    -    -    -    -    -
        PC   -    -    -    -    -    -    -
        PCP  -    -    -    -    -    -    -
    """,
}
NAMES = {"S": S, "R": R, "SC": SC, "RES": RES, "RP": RP, "PC": PC, "PCP": PCP}


def literal_cases() -> list[tuple[MigrationFlags, DeviceState, DeviceState, DeviceState | None]]:
    columns = [NAMES[name] for name in COLUMNS.split()]
    cases = []
    for flags, table in LITERAL.items():
        for line in table.strip().splitlines():
            row, *steps = line.split()
            for column, step in zip(columns, steps, strict=True):
                cases.append((flags, NAMES[row], column, NAMES.get(step)))
    return cases


@pytest.mark.parametrize(("flags", "current", "new", "expected"), literal_cases())
def test_next_state_is_the_kernels(
    flags: MigrationFlags, current: DeviceState, new: DeviceState, expected: DeviceState | None
) -> None:
    if expected is None:
        with pytest.raises(OSError, match="EINVAL") as caught:
            next_state(current, new, flags)
        assert caught.value.errno == errno.EINVAL
    else:
        assert next_state(current, new, flags) is expected


def test_the_literal_table_has_every_pair() -> None:
    assert len(literal_cases()) == 4 * 7 * 7


@pytest.mark.parametrize("flags", LITERAL)
@pytest.mark.parametrize("state", DeviceState)
def test_error_is_neither_entered_nor_left(flags: MigrationFlags, state: DeviceState) -> None:
    for current, new in ((E, state), (state, E)):
        with pytest.raises(OSError, match="EINVAL"):
            next_state(current, new, flags)


@pytest.mark.parametrize("new", [-1, 8, 1 << 31, 0xFFFFFFFF])
def test_unknown_states_are_refused(new: int) -> None:
    with pytest.raises(OSError, match="EINVAL"):
        next_state(R, new, ALL)


#: Some combination arcs, in the words of the uAPI's text.
PATHS = [
    (ALL, S, R, (RP, R)),
    (ALL, S, PC, (RP, R, PC)),
    (ALL, S, PCP, (RP, PCP)),
    (ALL, R, S, (RP, S)),
    (ALL, R, SC, (RP, S, SC)),
    (ALL, R, RES, (RP, S, RES)),
    (ALL, SC, R, (S, RP, R)),
    (ALL, RES, PC, (S, RP, R, PC)),
    (ALL, PC, SC, (PCP, SC)),
    (ALL, PC, S, (R, RP, S)),
    (ALL, PC, RES, (R, RP, S, RES)),
    (ALL, PCP, R, (RP, R)),
    (PRE, PC, SC, (SC,)),
    (PRE, PC, S, (R, S)),
    (BASE, R, SC, (S, SC)),
    (ALL, R, R, ()),
]


@pytest.mark.parametrize(("flags", "start", "end", "expected"), PATHS)
def test_path(
    flags: MigrationFlags, start: DeviceState, end: DeviceState, expected: tuple[DeviceState, ...]
) -> None:
    assert path(start, end, flags) == expected


@given(st.sampled_from(list(LITERAL)), st.sampled_from(DeviceState), st.sampled_from(DeviceState))
def test_every_path_ends_and_stays_in_supported_states(
    flags: MigrationFlags, start: DeviceState, end: DeviceState
) -> None:
    try:
        steps = path(start, end, flags)
    except OSError as error:
        assert error.errno == errno.EINVAL
        return
    assert len(steps) <= 4
    assert len(set(steps)) == len(steps)
    assert all(is_supported(step, flags) for step in steps)
    assert start is end or steps[-1] is end


def test_direct_arcs() -> None:
    arcs = direct_arcs(ALL)
    assert (R, PC) in arcs
    assert (R, S) not in arcs
    assert len(arcs) == 15
    assert set(direct_arcs(BASE)) == {
        (S, R), (R, S), (S, SC), (SC, S), (S, RES), (RES, S),
    }  # fmt: skip
    assert DATA_FD_ARCS <= set(arcs)
    assert supported_states(PRE) == (S, R, SC, RES, PC)
