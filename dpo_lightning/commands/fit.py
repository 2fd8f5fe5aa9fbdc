"""`fit`, `validate`, `test` and `predict`: their help, and errors in keys before libraries are imported."""

from __future__ import annotations

from dpo_lightning.config.files import read_command_line
from dpo_lightning.config.key_check import check_keys, check_required
from dpo_lightning.config.option_help import find_topic, format_help


def main(args: list[str]) -> int:
    """Run the command `args[0]` with its options, and return the exit code."""
    if (topic := find_topic(args)) is not None:
        print(format_help(args[0], topic))
        return 0
    files = read_command_line(args)
    check_keys(args, files)
    check_required(args, files)

    from dpo_lightning import cli  # which imports torch and lightning

    return cli.main(args, files=files)
