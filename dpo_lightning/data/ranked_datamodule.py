"""`RankedDataModule`: ranked lists, from files to batches."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_lightning.data.collate import Collator
from dpo_lightning.data.datamodule import TextDataModule
from dpo_lightning.data.schema import ranked_examples
from dpo_lightning.data.tokenization import Encoder
from dpo_lightning.examples import EncodedRanking, RankedExample
from dpo_lightning.types import Batch


class RankedDataModule(TextDataModule):
    """Ranked lists: `prompt, responses` with the best answer first, or by a column `scores`."""

    def read(self, paths: str | list[str]) -> tuple[list[RankedExample], list[str]]:
        """Rows as lists."""
        return ranked_examples(paths, columns=self.columns, lent=self._lent, strict=self.strict, allow=self.allow)

    def encode(self, encoder: Encoder, examples: Sequence[RankedExample]) -> list[EncodedRanking]:
        """Lists as ids."""
        return encoder.rankings(examples)

    @staticmethod
    def lay_out(layout: Collator, items: Sequence[tuple[EncodedRanking, int]]) -> Batch:
        """A `RankedBatch`."""
        rows, indices = zip(*items, strict=True)
        return layout.rankings(rows, indices)
