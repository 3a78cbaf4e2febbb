"""A measured figure and its bound."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    measured: str
    bound: str
    reached: bool
