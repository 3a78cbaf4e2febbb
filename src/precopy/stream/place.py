"""What lies at one place of a file."""

from precopy.stream.item import Field, Item, Silent, Wrong


class Place(Silent):
    """Hears which items the byte at ``offset`` of the file belongs to, from the outermost to the field."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        #: Where the byte is in each stream that it is in.
        self._inside = {"": offset}
        self._order = {"": 0}
        self._items: list[Item] = []
        self._wrong: list[Wrong] = []

    def piece(self, stream: str, offset: int, file_offset: int, data: memoryview) -> None:
        if file_offset <= self.offset < file_offset + len(data):
            self._inside[stream] = offset + self.offset - file_offset
            self._order.setdefault(stream, len(self._order))

    def wants(self, file_offset: int, size: int) -> bool:
        return file_offset <= self.offset < file_offset + size

    def end(self, item: Item) -> None:
        at = self._inside.get(item.stream)
        if at is not None and item.size and item.offset <= at < item.offset + item.size:
            self._items.append(item)

    def wrong(self, wrong: Wrong) -> None:
        if self._inside.get(wrong.stream) == wrong.offset:
            self._wrong.append(wrong)

    def items(self) -> list[Item]:
        """The outermost first."""
        return sorted(self._items, key=lambda each: (self._order[each.stream], each.depth))

    def field(self) -> Field | None:
        """The field of the innermost item that the byte belongs to."""
        for item in reversed(self.items()):
            at = self._inside[item.stream]
            for field in item.fields:
                if field.offset <= at < field.offset + field.size:
                    return field
        return None

    def wrongs(self) -> list[Wrong]:
        return self._wrong

    def offset_in(self, stream: str) -> int:
        """Where the byte is in ``stream``."""
        return self._inside[stream]
