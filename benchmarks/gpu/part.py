"""`python -m benchmarks.gpu.part MODULE FILE DEVICE`: one part, in the process that the runner gives it."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from benchmarks.gpu.report import Report, exit_without_memory

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


def main() -> None:
    """Measure, and turn a lack of memory into an exit status."""
    module, file, device = sys.argv[1:]
    with exit_without_memory():
        importlib.import_module(module).measure(Report(Path(file), device == "cpu"), device)


if __name__ == "__main__":
    main()
