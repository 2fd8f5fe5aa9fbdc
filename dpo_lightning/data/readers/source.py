"""`Source`: the file or member of an archive that rows are parsed from, as messages and shell commands name it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field


@dataclass
class Source:
    """A file, or a member of an archive, whose content is parsed into rows.

    Attributes:
        name: its name in messages, such as `rows.jsonl` or `rows.zip/inner.jsonl`.
        plain: its name without the suffix of a compression, such as `rows.jsonl` for `rows.jsonl.gz`.
        command: the shell command that prints its content decompressed; empty for a file that is not compressed.
        notes: what was guessed about it, one phrase for each guess.
    """

    name: str
    plain: str = ""
    command: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set `plain` to the name where it is not given."""
        self.plain = self.plain or self.name

    def format_conversion(self, command: str, mark: str, suffix: str = "") -> str:
        """Format the shell command that writes a converted copy beside the file: `rows.csv` to `rows.utf8.csv`.

        Args:
            command: a command that reads the content from a file that is its last argument, or from the standard input.
            mark: what is put before the suffix of the copy's name.
            suffix: the suffix of the copy, such as `.jsonl`; by default, that of the file.
        """
        stem, dot, own = self.plain.rpartition(".")
        named = bool(dot) and "/" not in own
        target = f"{stem if named else self.plain}.{mark}{suffix or (f'.{own}' if named else '')}"
        if self.command:
            return f"{self.command} | {command} > {shlex.quote(target)}"
        return f"{command} {shlex.quote(self.name)} > {shlex.quote(target)}"
