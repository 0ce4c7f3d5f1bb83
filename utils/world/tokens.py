"""From world text to tokens: the tokenizer's training, packed rows for training, one label set for each token."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from utils.world.document import SLOT_LABELS, Document
from utils.world.kinds import KINDS, sample
from utils.world.tasks import LAYOUTS, TASKS, WORDS

END = "<|endoftext|>"
VOCABULARY_SIZE = 3584

# Labels of single words, by what stands in a template's slot.
WORD_LABELS: frozenset[str] = frozenset(label for labels in SLOT_LABELS.values() for label in labels)
# Every label that a span can carry, in a fixed order: the columns of `token_labels`.
LABELS: list[str] = sorted(
    WORD_LABELS
    | {f"kind:{kind}" for kind in KINDS}
    | {f"task:{task}" for task in TASKS}
    | {f"layout:{layout}" for layout in LAYOUTS}
    | {f"language:{language}" for language in ("french", "german", "spanish")}
    | {f"bracket_depth>={depth}" for depth in range(1, 5)}
    | {f"indent:{depth}" for depth in range(1, 4)}
    | set(
        """repeated_name task_input task_output inside_quotes inside_brackets open_bracket close_bracket refrain
        first_copy second_copy sum sum_answer counting list_number list_item keyword indent""".split()
    )
)


def train_tokenizer(vocabulary_size: int = VOCABULARY_SIZE, n_documents: int = 40_000, seed: int = 0) -> Tokenizer:
    """A byte-level BPE tokenizer in GPT-2's scheme, trained on world text; `<|endoftext|>` is token 0.

    The text to learn from holds more word notes and task lists than the world itself, so that nearly every word that
    a task maps from or to is one token.
    """
    documents = sample(n_documents, seed) + sample(n_documents, seed + 1, ["tasks", "facts"])
    documents += sample(2 * n_documents, seed + 2, ["dictionary"])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str, context: int) -> None:
    """Save as a folder that transformers loads; `<|endoftext|>` is the first, the last and the padding token."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=context
    ).save_pretrained(folder)


def encode(tokenizer, texts: Iterable[str]) -> list[Encoding]:
    """Each text's tokens (`.ids`, `.offsets`): the same ones, whatever the tokenizer was used for before.

    A fast tokenizer's backend keeps the settings of the last call: transformer_lens's `model.to_tokens` leaves padding
    and cutting switched on, and a model's own tokenizer opens each text with `<|endoftext|>`. Nothing of that counts
    here: no token in front, no padding, nothing cut off. The settings themselves are left as they were.

    Args:
        tokenizer: a `tokenizers.Tokenizer` or a fast tokenizer of transformers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    padding, truncation, plain = backend.padding, backend.truncation, backend.encode_special_tokens
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = False
    try:
        return backend.encode_batch(list(texts), add_special_tokens=False)
    finally:
        backend.encode_special_tokens = plain
        if padding:
            backend.enable_padding(**padding)
        if truncation:
            backend.enable_truncation(**truncation)


def bos_id(tokenizer) -> int:
    """The token with which a text begins: `<|endoftext|>` in the workbook's models and in GPT-2.

    Raises:
        ValueError: the tokenizer has none.
    """
    id = tokenizer.token_to_id(END) if isinstance(tokenizer, Tokenizer) else tokenizer.bos_token_id
    if id is None:
        raise ValueError("this tokenizer has no token that begins a text: name one, `tokenizer.bos_token = ...`")
    return id


def rows(documents: Iterable[Document], tokenizer, length: int) -> Int[Tensor, "rows length"]:
    """Pack documents into rows of `length` tokens, in 16 bits where the vocabulary fits. A row begins with
    `<|endoftext|>` and a fresh document.

    Documents in a row are parted by `<|endoftext|>`; the one that does not fit is cut at the row's end.
    """
    bos, vocabulary_size = bos_id(tokenizer), getattr(tokenizer, "backend_tokenizer", tokenizer).get_vocab_size()
    dtype = torch.int16 if vocabulary_size <= 2**15 else torch.int32
    packed, row = [], []
    for encoding in encode(tokenizer, (document.text for document in documents)):
        row.append(bos)
        row.extend(encoding.ids)
        if len(row) >= length:
            packed.append(row[:length])
            row = []
    return torch.tensor(np.array(packed, dtype=np.int64).reshape(-1, length)).to(dtype)


def repeated_tokens(n: int, half: int, vocabulary_size: int, seed: int, bos: bool = True) -> Int[Tensor, "n 1+2*half"]:
    """`<|endoftext|>`, then `half` tokens drawn evenly from the whole vocabulary, then the same tokens again."""
    generator = torch.Generator().manual_seed(seed)
    passage = torch.randint(1, vocabulary_size, (n, half), generator=generator)
    start = torch.zeros(n, 1 if bos else 0, dtype=torch.long)
    return torch.cat([start, passage, passage], dim=1)


def token_labels(
    documents: Sequence[Document], tokenizer, labels: Sequence[str] = tuple(LABELS), bos: bool = True
) -> list[tuple[Int[Tensor, " seq"], Bool[Tensor, "seq labels"]]]:
    """Each document's tokens and which labels each token carries.

    A token carries a label if one of its characters, a leading space aside, lies in a span with that label.

    Args:
        tokenizer: a `tokenizers.Tokenizer` or a fast tokenizer of transformers.
        labels: the columns wanted, in this order (default: `LABELS`).
        bos: put `<|endoftext|>` first; it carries no label.

    Raises:
        ValueError: a label that no span can carry.
    """
    unknown = [label for label in labels if label not in LABELS]
    if unknown:
        raise ValueError(f"no label {unknown[0]!r}: choose from utils.world.LABELS")
    column = {label: i for i, label in enumerate(labels)}
    result = []
    for document, encoding in zip(documents, encode(tokenizer, [d.text for d in documents]), strict=True):
        n = len(encoding.ids)
        # token_of[i]: the token that character i belongs to. A letter of two bytes may be split over two tokens: the
        # second one starts at the same character, so both ends are searched below.
        starts = np.array([start for start, _ in encoding.offsets] or [0])
        ends = np.array([end for _, end in encoding.offsets] or [0])
        # A leading space is no part of what the token says.
        starts = starts + np.array(
            [document.text[s : s + 1] == " " and e - s > 1 for s, e in zip(starts, ends, strict=True)], dtype=int
        )
        matrix = np.zeros((n, len(labels)), dtype=bool)
        for span in document.spans:
            if span.label in column and n:
                matrix[(starts < span.end) & (ends > span.start), column[span.label]] = True
        ids = torch.tensor(encoding.ids, dtype=torch.long)
        truth = torch.from_numpy(matrix)
        if bos:
            ids = torch.cat([torch.tensor([bos_id(tokenizer)]), ids])
            truth = torch.cat([torch.zeros(1, len(labels), dtype=torch.bool), truth])
        result.append((ids, truth))
    return result


def task_words() -> list[str]:
    """All words that a task maps from or to, and all words of the tables."""
    words = set(WORDS)
    for task in TASKS.values():
        words |= set(task.pairs) | set(task.pairs.values())
    return sorted(words)


def is_one_token(word: str, tokenizer) -> bool:
    """Whether the word with its leading space is one token."""
    return len(encode(tokenizer, [" " + word.removeprefix(" ")])[0].ids) == 1
