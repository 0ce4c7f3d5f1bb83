"""What a training step sees: a pure function of the configuration and the step, so that a resumed run sees the same."""

from functools import lru_cache

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from utils.training.config import Config
from utils.world import rows, sample

# Seeds: training shards count up from here; everything below is free for validation.
FIRST_TRAINING_SEED = 1_000_000


class Batches:
    """Batches of rows: documents packed by `utils.world.rows`, and a share of repeated random passages.

    Args:
        config: sizes and shares.
        tokenizer: the tokenizer with `config.vocabulary_size` tokens.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self._shard = lru_cache(maxsize=2)(self._make_shard)
        # Shards differ in their number of rows; each gives as many batches as surely fill.
        self.per_shard = len(self._shard(0)) * 9 // 10 // config.batch_rows
        if not self.per_shard:
            raise ValueError("a shard holds less than a batch: raise documents_per_shard")

    def _make_shard(self, index: int) -> Int[Tensor, "rows n_ctx"]:
        first = index * self.per_shard if index else 0
        weights = self.config.weights(first)
        documents = sample(self.config.documents_per_shard, FIRST_TRAINING_SEED + index, weights=weights)
        return rows(documents, self.tokenizer, self.config.n_ctx)

    def batch(self, step: int) -> Int[Tensor, "batch n_ctx"]:
        """The rows of step `step`."""
        shard, place = divmod(step, self.per_shard)
        n = self.config.batch_rows
        repeated = round(n * self.config.rates(step)[1])
        documents = self._shard(shard)[place * n : (place + 1) * n - repeated].long()
        return torch.cat([documents, repeated_rows(repeated, self.config, FIRST_TRAINING_SEED + step)])


def repeated_rows(n: int, config: Config, seed: int) -> Int[Tensor, "n n_ctx"]:
    """Rows of `<|endoftext|>` and a random passage that is repeated, until the row is full.

    Half of the passages come twice, at many lengths; the others are short and come three to six times, so that more
    of the row can be predicted by looking back.
    """
    generator = torch.Generator().manual_seed(seed)
    length = config.n_ctx

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    table = torch.zeros(n, length, dtype=torch.long)
    for row in table:
        place = 0
        while place < length:
            if draw(0, 1):
                copies, size = 2, draw(length // 20, length // 2 - 1)
            else:
                copies, size = draw(3, 6), draw(length // 32, length // 8)
            passage = torch.randint(1, config.vocabulary_size, (size,), generator=generator)
            piece = torch.cat([torch.zeros(1, dtype=torch.long), passage.repeat(copies)])[: length - place]
            row[place : place + len(piece)] = piece
            place += len(piece)
    return table
