"""World text as a data set, for SAE training and max-activating examples."""

from datasets import Dataset

from utils.models.loading import load_tokenizer
from utils.world import rows, sample

CORPUS_SEED = 10_000  # no training shard and no validation set uses it


def corpus(
    n: int = 2000, seed: int = CORPUS_SEED, tokenized: bool = False, context: int = 128, kinds=None, model: str = "lm"
) -> Dataset:
    """`n` documents of the small world that no model was trained on.

    Args:
        n: how many documents.
        seed: another seed gives other documents.
        tokenized: instead of columns `text` and `kind`, give `input_ids`: rows of `context` tokens that begin with
            `<|endoftext|>`, documents parted by it, as in training, in the tokens of `model`.
        context: row length in tokens when `tokenized`.
        kinds: only documents of these kinds.
        model: whose tokens, where `tokenized`; another profile's models may have others than its `lm`.

    Raises:
        ValueError: unknown kind.
    """
    documents = sample(n, seed, kinds)
    if tokenized:
        packed = rows(documents, load_tokenizer(model), context)
        return Dataset.from_dict({"input_ids": packed.long().tolist()})
    return Dataset.from_dict({"text": [d.text for d in documents], "kind": [d.kind for d in documents]})
