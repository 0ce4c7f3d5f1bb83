"""Byte-level BPE, GPT-2's tokenizer: bytes, pieces of text, learned merges, and tokens
that no text can spell.

A *piece* is a stretch of text that GPT-2's pattern cuts out. A *word* is a piece
written as a tuple of symbols: at first one stand-in character for each byte, later
tokens, as merges join neighbours. `vocab` gives each token its id; `merges` gives each
pair of tokens its rank, 0 for the merge that was learned first.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise

import regex

Word = tuple[str, ...]
Pair = tuple[str, str]


def bytes_to_unicode() -> dict[int, str]:
    """Give each of the 256 bytes a printable stand-in character, in the order of
    GPT-2's first 256 token ids.

    First come the 188 bytes `!` to `~`, `¡` to `¬` and `®` to `ÿ`, which stand for
    themselves. Then the other 68 (space, control characters, …), in ascending order,
    get the characters numbered 256, 257, … (`Ā`, `ā`, …).

    Source: `encoder.py` of openai/gpt-2.
    """
    # The bytes that print, in three ranges.
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    stand_in = {byte: chr(byte) for byte in printable}
    # All others, numbered from 256 on.
    others = [byte for byte in range(256) if byte not in stand_in]
    return stand_in | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_TO_CHAR = bytes_to_unicode()


def to_symbols(piece: str) -> Word:
    """Write a piece of text as its UTF-8 bytes, one stand-in character each: `" é"`
    becomes `("Ġ", "Ã", "©")`.

    Bytes that are not UTF-8 may come as Python's surrogate escapes
    (`data.decode("utf-8", "surrogateescape")`).

    Raises:
        UnicodeEncodeError: the piece holds half of a surrogate pair, which no UTF-8
            text can hold.
    """
    return tuple(
        BYTE_TO_CHAR[byte] for byte in piece.encode("utf-8", "surrogateescape")
    )


def pretokenize(text: str) -> list[str]:
    """Cut text into GPT-2's pieces; joined again they give the text.

    A piece is the first of these that fits, as long as it can be: `'s 't 're 've 'm 'll
    'd`; letters; numbers; other characters that are not whitespace (each of these three
    with one space before it, if there is one); whitespace but for the last character
    before a non-whitespace one; whitespace.

    Source: `encoder.py` of openai/gpt-2.
    """
    endings = r"'s|'t|'re|'ve|'m|'ll|'d"
    pattern = endings + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return regex.findall(pattern, text)


def count_pairs(words: dict[Word, int]) -> Counter[Pair]:
    """Count neighbouring symbols in all words; `words` says how often each word stands
    in the corpus.
    """
    counts = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[pair] += n
    return counts


def merge_pair(word: Word, pair: Pair) -> Word:
    """Join every occurrence of `pair` in `word` into one symbol, from left to right,
    without overlaps.
    """
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def train_bpe(
    corpus: Iterable[str], vocab_size: int
) -> tuple[dict[str, int], dict[Pair, int]]:
    """Learn a vocabulary: merge the most frequent pair of neighbours, again and again.

    Of equally frequent pairs the one with the lowest ids wins (left token first, then
    the right one), which is the rule of Hugging Face `tokenizers` too. Only the words
    that hold the merged pair are counted anew.

    Args:
        corpus: documents; no merge crosses from one piece of a document to the next.
        vocab_size: at least 256, the bytes. Fewer tokens come back where no pair is
            left to merge.

    Returns:
        `vocab`, from token to id (the bytes in the order of `bytes_to_unicode`, then
        one token a merge), and `merges`, from pair to rank.

    Raises:
        ValueError: `vocab_size` is below 256, or `corpus` is one string.

    Source: Sennrich, Haddow and Birch (2016), algorithm 1.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size is {vocab_size}: the 256 bytes alone need 256")
    if isinstance(corpus, str):
        raise ValueError(
            "corpus is one string: pass a list of documents, [text] for a single one"
        )
    vocab = {char: i for i, char in enumerate(BYTE_TO_CHAR.values())}
    merges = {}
    # Each different piece once, with its count.
    pieces = Counter(chain.from_iterable(map(pretokenize, corpus)))
    words, counts = [to_symbols(piece) for piece in pieces], list(pieces.values())
    # Count all pairs once, and note for each pair the words (by index) that hold it.
    pair_counts = count_pairs(dict(zip(words, counts, strict=True)))
    where = defaultdict(set)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            where[pair].add(i)
    # Candidates in a heap, which gives the smallest entry first: the highest count,
    # then the lowest ids.
    heap = [
        (-n, vocab[left], vocab[right], (left, right))
        for (left, right), n in pair_counts.items()
    ]
    heapify(heap)
    while heap and len(vocab) < vocab_size:
        n, left, right, best = heappop(heap)
        # A pair's count only falls once the pair has its entry; where it has fallen,
        # the entry goes back to its place.
        if pair_counts[best] != -n:
            if pair_counts[best] > 0:
                heappush(heap, (-pair_counts[best], left, right, best))
            continue
        token = best[0] + best[1]
        merges[best] = len(merges)
        vocab[token] = len(vocab)
        # In the words that hold the pair: take their old pairs out of the counts,
        # merge, put their new pairs in.
        new_pairs = set()
        for i in where.pop(best):
            for pair in pairwise(words[i]):
                pair_counts[pair] -= counts[i]
            words[i] = merge_pair(words[i], best)
            for pair in pairwise(words[i]):
                pair_counts[pair] += counts[i]
                if token in pair:
                    where[pair].add(i)
                    new_pairs.add(pair)
        # Only pairs with the new token have not been candidates yet.
        for left, right in new_pairs:
            heappush(
                heap,
                (-pair_counts[left, right], vocab[left], vocab[right], (left, right)),
            )
    return vocab, merges


def encode(text: str, vocab: dict[str, int], merges: dict[Pair, int]) -> list[int]:
    """Turn text into token ids: in each piece, apply the merge of lowest rank that is
    there, until none is.

    Source: `bpe` in `encoder.py` of openai/gpt-2.
    """
    ids = []
    for piece in pretokenize(text):
        word = to_symbols(piece)
        # As long as there is a pair that has a rank: merge the one of lowest rank.
        while pairs := [pair for pair in pairwise(word) if pair in merges]:
            word = merge_pair(word, min(pairs, key=merges.get))
        ids += [vocab[symbol] for symbol in word]
    return ids


def decode(ids: Sequence[int], vocab: dict[str, int]) -> bytes:
    """The bytes that the tokens stand for, joined. They need not be UTF-8: a token may
    hold half a character.

    Raises:
        ValueError: an id is not in the vocabulary.
    """
    token_of = {i: token for token, i in vocab.items()}
    byte_of = {char: byte for byte, char in BYTE_TO_CHAR.items()}
    if unknown := [i for i in ids if i not in token_of]:
        raise ValueError(f"no token has the id {unknown[0]}")
    return bytes(byte_of[char] for i in ids for char in token_of[i])


def longest_match_encode(text: str, vocab: dict[str, int]) -> list[int]:
    """Not GPT-2's rule: in each piece, from left to right, take the longest token that
    fits.

    Source: this is how WordPiece encodes, see Wu et al. (2016).
    """
    ids = []
    for piece in pretokenize(text):
        rest = "".join(to_symbols(piece))
        while rest:
            # The longest beginning of the rest that is a token; at least one byte is.
            n = next(n for n in range(len(rest), 0, -1) if rest[:n] in vocab)
            ids.append(vocab[rest[:n]])
            rest = rest[n:]
    return ids


def find_disagreements(
    texts: Iterable[str], vocab: dict[str, int], merges: dict[Pair, int]
) -> list[str]:
    """The texts that merging by rank and taking the longest match cut differently, in
    their order.
    """
    return [
        text
        for text in texts
        if encode(text, vocab, merges) != longest_match_encode(text, vocab)
    ]


def split_special(text: str, special: Collection[str]) -> list[str]:
    """Cut text before and after each special token; where several fit, the longest is
    taken.

    Joined again the parts give the text. No part is empty.
    """
    if not special:
        return [text] if text else []
    # Longest first, since a pattern takes the first alternative that fits; escaped,
    # since `|` means "or".
    alternatives = "|".join(
        re.escape(token) for token in sorted(special, key=len, reverse=True)
    )
    return [part for part in re.split(f"({alternatives})", text) if part]


class BPETokenizer:
    """GPT-2's tokenizer: text to ids and back, with special tokens that ordinary text
    can't spell.

    Args:
        vocab: from token (in stand-in characters) to id, without the special tokens.
        merges: from pair to rank.
        special_tokens: from special token, in plain text, to id.
    """

    def __init__(
        self,
        vocab: dict[str, int],
        merges: dict[Pair, int],
        special_tokens: dict[str, int],
    ):
        self.vocab, self.merges, self.special_tokens = vocab, merges, special_tokens

    @classmethod
    def train(
        cls,
        corpus: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = ("<|endoftext|>",),
    ):
        """A tokenizer with `vocab_size` tokens, learned from documents; the special
        tokens get the last ids.
        """
        vocab, merges = train_bpe(corpus, vocab_size - len(special_tokens))
        return cls(
            vocab,
            merges,
            {token: len(vocab) + i for i, token in enumerate(special_tokens)},
        )

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> list[int]:
        """Text to ids. Only the special tokens in `allowed_special` are recognised in
        the text.

        Raises:
            ValueError: `allowed_special` names a token that is not special here.
        """
        if unknown := [
            token for token in allowed_special if token not in self.special_tokens
        ]:
            raise ValueError(
                f"{unknown[0]!r} is not a special token: choose from "
                f"{list(self.special_tokens)}"
            )
        ids = []
        for part in split_special(text, allowed_special):
            if part in allowed_special:
                ids.append(self.special_tokens[part])
            else:
                ids += encode(part, self.vocab, self.merges)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text. Bytes that are no UTF-8 show as `�`; special tokens as their
        plain text.
        """
        special = {
            "".join(to_symbols(token)): i for token, i in self.special_tokens.items()
        }
        return decode(ids, self.vocab | special).decode("utf-8", errors="replace")

    def to_str_tokens(
        self, text: str, allowed_special: Collection[str] = ()
    ) -> list[str]:
        """The text of each token on its own, as TransformerLens's method of this name
        shows it.
        """
        return [self.decode([i]) for i in self.encode(text, allowed_special)]
