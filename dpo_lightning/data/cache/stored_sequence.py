"""`StoredSequence`, the base of sequences whose items are read from a file when they are used."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")


class StoredSequence(Sequence[T], Generic[T]):
    """A sequence that makes a new object at each access; it equals any sequence of equal items."""

    @abstractmethod
    def read(self, place: int) -> T:
        """Read the item at a place from 0 to `len(self)` - 1."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Read an item, or a list of them for a slice."""
        places = range(len(self))[index]
        return self.read(places) if isinstance(places, int) else [self.read(place) for place in places]

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same items in the same order."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
