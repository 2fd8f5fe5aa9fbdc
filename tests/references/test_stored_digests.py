"""Digests in files and checkpoints are taken of what they always were: the next version finds what this one wrote."""

import hashlib
import struct
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dpo_lightning.data.encoding.digests import DIGEST_BYTES, answer_digest
from dpo_lightning.data.examples import EncodedAnswer
from dpo_lightning.references.base import fingerprint
from dpo_lightning.references.provenance import Provenance
from dpo_lightning.references.table_file import write
from dpo_lightning.references.token_table import TokenTable


def test_the_key_of_an_answer_is_that_of_its_numbers():
    """SHA-256 of 64-bit numbers: how many of the prompt, how many of the answer, both; then a byte for each flag."""
    key = answer_digest([7, 300, 2**40], EncodedAnswer([5, 0], [True, False]))
    assert key == hashlib.sha256(struct.pack("<7q", 3, 2, 7, 300, 2**40, 5, 0) + b"\x01\x00").digest()
    assert len(key) == DIGEST_BYTES == 32


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 512, 513, 5000])
def test_a_fingerprint_is_of_name_shape_and_256_values(size):
    """Evenly spread from the first on: all of them up to 511, and every n-th beyond."""
    values = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    taken = values[:: max(1, size // 256)][:256]
    expected = hashlib.sha256(f"w ({size},)".encode() + taken.tobytes())
    assert fingerprint([("w", torch.tensor(values))]) == expected.hexdigest()
    expected.update(b"x (2, 3)" + np.arange(6, dtype=np.float32).tobytes())
    both = [("w", torch.tensor(values)), ("x", torch.arange(6).reshape(2, 3))]
    assert fingerprint(both) == expected.hexdigest()


def test_a_file_says_which_format_it_has(tmp_path):
    names = {field: field[:3] for field in Provenance.__dataclass_fields__}
    write(tmp_path / "a.safetensors", [TokenTable.of({bytes(32): torch.ones(2)})], Provenance(**names))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        (entry,) = file.metadata().items()
        assert entry[0] == "dpo_lightning.reference"
        assert '"version": 2' in entry[1]
        assert file.get_tensor("keys").shape == (1, 32)
        assert file.get_tensor("offsets").tolist() == [0, 2]
        assert file.get_tensor("values").tolist() == [1, 1]
        assert file.get_tensor("sums").tolist() == [2]
        assert file.get_tensor("checksums").tolist() == [zlib.crc32(struct.pack("<2f", 1, 1)) - 2**32]
