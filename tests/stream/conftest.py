from collections.abc import Iterator

import pytest

from precopy.stream.registry import formats
from tests.stream.example import EXAMPLE


@pytest.fixture(autouse=True)
def example_format() -> Iterator[None]:
    """The example is a format like the others, for as long as a test runs."""
    formats()[EXAMPLE.name] = EXAMPLE
    yield
    del formats()[EXAMPLE.name]
