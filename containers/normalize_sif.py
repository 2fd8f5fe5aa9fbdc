"""Takes the random id and the times out of a SIF's headers.

Usage: normalize_sif.py FILE.sif SECONDS_SINCE_1970

Offsets are those of SIF version 01 (package sif of Apptainer): a header of 128 bytes, then descriptors of 585 bytes.
"""

import struct
import sys
from pathlib import Path
from typing import BinaryIO

MAGIC, VERSION = b"SIF_MAGIC\0", b"01\0"
AT_MAGIC, AT_ID, AT_COUNT = 32, 48, 88
"""Of the magic with the version; of the id with the times behind it; of the number of descriptors and their offset."""

DESCRIPTOR = 585
AT_USED, AT_TIMES = 4, 41
"""Within a descriptor: whether it is used, and when it was made and changed."""


def normalize(file: BinaryIO, seconds: int) -> None:
    """Set the id to zeros and every time to `seconds`."""
    header = file.read(128)
    if header[AT_MAGIC : AT_MAGIC + 13] != MAGIC + VERSION:
        sys.exit("normalize_sif.py: this is no SIF of version 01")
    times = struct.pack("<qq", seconds, seconds)
    count, start = struct.unpack_from("<qq", header, AT_COUNT)
    file.seek(AT_ID)
    file.write(bytes(16) + times)
    for offset in range(start, start + count * DESCRIPTOR, DESCRIPTOR):
        file.seek(offset + AT_USED)
        if file.read(1) == b"\1":
            file.seek(offset + AT_TIMES)
            file.write(times)


if __name__ == "__main__":
    with Path(sys.argv[1]).open("r+b") as sif:
        normalize(sif, int(sys.argv[2]))
