"""Elements of a JSON array, each with the line where it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.json_decoding import (
    DECODER,
    KEPT,
    MAX_SHOWN,
    ONE_PER_LINE,
    describe_error,
    find_comment,
    find_element_end,
    skip_space,
)
from dpo_lightning.data.readers.text_window import TextWindow


def parse_array(window: TextWindow, start: int, file: str, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse the elements of the array at `start` one by one, to know the line of each.

    An element that is refused is skipped; if its end cannot be found, the elements after it are not parsed.
    """
    window.fill(start + 1)
    elements = _Elements(window, start + 1)
    elements.skip_space()
    more = not elements.at("]")
    while more:
        value, error, end = elements.decode()
        line = elements.line
        if error:
            report = bad.add if end >= 0 else bad.refuse
            report(Origin(file, line), describe_error(error, window.text, "the array", cut=True))
            if end < 0:
                return
        else:
            yield line, value
        elements.place = end
        elements.skip_space()
        more = not elements.at("]")
        if more and not elements.at(","):
            bad.refuse(Origin(file, elements.count_lines()), _missing_comma_error(elements.show(), elements.place))
            return
        if more:
            elements.place += 1
            elements.skip_space()
    elements.place += 1
    elements.skip_space()
    if elements.place < len(elements.show()):
        shown = window.text[elements.place : elements.place + MAX_SHOWN]
        trailing = RowError("text after the end of the array", shown, ONE_PER_LINE)
        bad.refuse(Origin(file, elements.count_lines()), find_comment(window.text, elements.place) or trailing)


class _Elements:
    """The place in an array up to which it is parsed, in a window that slides along.

    Attributes:
        window: the window.
        place: where the next element begins, in the window.
        line: its line in the file, once it is decoded.
    """

    __slots__ = ("_counted", "line", "place", "window")

    def __init__(self, window: TextWindow, place: int) -> None:
        self.window = window
        self.place = place
        self.line = 1
        self._counted = 0

    def at(self, character: str) -> bool:
        return self.window.text.startswith(character, self.place)

    def skip_space(self) -> None:
        while (place := skip_space(self.window.text, self.place)) == len(self.window.text) and not self.window.ended:
            self.place = place
            self._slide()
        self.place = place

    def show(self) -> str:
        """The window with all characters from `place` on that an error quotes."""
        self.window.fill(self.place + MAX_SHOWN)
        return self.window.text

    def count_lines(self) -> int:
        """The line of `place`."""
        self.line += self.window.text.count("\n", self._counted, self.place)
        self._counted = self.place
        return self.line

    def decode(self) -> tuple[Any, Exception | None, int]:
        """Decode the element at `place`: return its value, the error, and its end, which is -1 if it is not found.

        The result of a part of the text may differ: `1` of `1.5`, or a string without its end. It is only used if the
        element ends well before the window does, or nothing follows the window.
        """
        self.count_lines()
        while True:
            text, value, refused = self.window.text, None, None
            try:
                value, end = DECODER.raw_decode(text, self.place)
            except (ValueError, RecursionError) as error:
                refused, end = error.with_traceback(None), find_element_end(text, self.place)
            if self.window.ended or 0 <= end <= len(text) - KEPT:
                return value, refused, end
            self._slide()

    def _slide(self) -> None:
        """Let the window grow, and drop what is parsed except for the characters that an error quotes."""
        self.count_lines()
        start = max(0, self.place - KEPT)
        self.window.grow(start)
        self.place -= start
        self._counted = self.place


def _missing_comma_error(text: str, place: int) -> RowError:
    if place >= len(text):
        return RowError("the array ends early", text[-KEPT:], "the file is cut off: write or copy it again")
    if comment := find_comment(text, place):
        return comment
    return RowError("no comma between two rows of the array", text[place : place + MAX_SHOWN], ONE_PER_LINE)
