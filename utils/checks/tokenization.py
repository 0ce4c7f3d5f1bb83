"""What chapter 01 asks of a learner's functions, and the mistakes it recognises."""

import re
from collections import Counter
from functools import cache
from itertools import pairwise

import regex

from utils import tokenization as tok
from utils.checks.compare import difference
from utils.checks.engine import Chapter

chapter = Chapter(tok)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare

CORPUS = [
    "the cat sat on the mat, the hat sat on the cat. that's the hat that the cat had!",
    "Zoë's café: naïve crème brûlée, 10 000 cafés in 2000, 1000 in 1900.",
    "aaaa aaaaa bbb bbbb abab ababab  baba\n\n\tthe end  of  the  cat\n",
    "banana bandana cabana 🍌🍌 🍎 the theme then there",
]
TEXTS = [
    "the cat",
    "  the cat sat\n\n on the  mat",
    "then banana, 10000 cafés 🍌🍎!",
    "bababa aaaaaaa naïve",
    "cafe\u0301 \u212b ﬁn",
    "",
    " ",
]


@cache
def trained():
    return tok.train_bpe(CORPUS, 330)


def toy(*merges: str) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """The bytes and the merges given as "a b", in rank order."""
    pairs = [tuple(merge.split()) for merge in merges]
    tokens = [*tok.BYTE_TO_CHAR.values(), *(a + b for a, b in pairs)]
    return {token: i for i, token in enumerate(tokens)}, {pair: rank for rank, pair in enumerate(pairs)}


def _exactly(kind: type):
    """Elsewhere lists and tuples are alike; not where the next function uses the result as a key or compares it."""

    def same(got, want, *args):
        if isinstance(got, list | tuple) and not isinstance(got, kind):
            why = "a list can't be a key of a dict" if kind is tuple else "a tuple never equals a list"
            return f"returned a {type(got).__name__}, expected a {kind.__name__}: {why}"
        return difference(got, want)

    return same


# ---------------------------------------------------------------- bytes_to_unicode


def _same_table(got, want):
    if said := difference(got, want):
        return said
    return difference(list(got), list(want)) and f"starts with the byte {next(iter(got))}, expected {next(iter(want))}"


bytes_to_unicode = exercise(tok.bytes_to_unicode, same=_same_table)


@bytes_to_unicode.mistake(
    "the characters are right, their order is not: put the 188 printable bytes first, then the others"
)
def _():
    return dict(sorted(tok.bytes_to_unicode().items()))


@bytes_to_unicode.mistake(
    "you used chr(byte) for every byte: the 68 that don't print get chr(256), chr(257), … instead"
)
def _():
    return {byte: chr(byte) for byte in tok.bytes_to_unicode()}


@bytes_to_unicode.mistake(
    "you used chr(256 + byte) for the others: count them, the n-th one (from 0) gets chr(256 + n)"
)
def _():
    return {b: c if ord(c) < 256 else chr(256 + b) for b, c in tok.bytes_to_unicode().items()}


@bytes_to_unicode.mistake(
    "your ranges stop one too early: range(a, b) leaves b out, so write range(ord('!'), ord('~') + 1)"
)
def _():
    printable = [*range(33, 126), *range(161, 172), *range(174, 255)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


@bytes_to_unicode.mistake("your table goes from character to byte: turn it round, from byte to character")
def _():
    return {char: byte for byte, char in tok.bytes_to_unicode().items()}


@bytes_to_unicode.law("256 bytes need 256 different characters, none of them a space or a control character")
def _(bytes_to_unicode):
    chars = list(bytes_to_unicode().values())
    return len(set(chars)) == 256 and all(char.isprintable() and not char.isspace() for char in chars)


@bytes_to_unicode.right
def _():
    keys = (
        list(range(ord("!"), ord("~") + 1)) + list(range(ord("¡"), ord("¬") + 1)) + list(range(ord("®"), ord("ÿ") + 1))
    )
    values, n = keys[:], 0
    for byte in range(2**8):
        if byte not in keys:
            keys.append(byte)
            values.append(2**8 + n)
            n += 1
    return dict(zip(keys, [chr(value) for value in values], strict=True))


# ---------------------------------------------------------------- to_symbols

to_symbols = exercise(tok.to_symbols, same=_exactly(tuple))


@to_symbols.cases
def _():
    for piece in ["cat", " cat", "é", " naïve", "日本", "🍌", "\n\t", "", "\x7f\xad", "e\u0301 \u212b ﬁ"]:
        yield (piece,)
    yield (b"\xff\xfe a".decode("utf-8", "surrogateescape"),)


@to_symbols.refused
def _():
    yield ("a\ud800",)


@to_symbols.mistake("you cut the piece into characters: take its bytes, piece.encode('utf-8', …), and look each one up")
def _(piece):
    return tuple(piece)


@to_symbols.mistake("you only replaced the space: look up every byte, not just that of the space")
def _(piece):
    return tuple(piece.replace(" ", "Ġ"))


@to_symbols.mistake("you used chr(byte): look the byte up in BYTE_TO_CHAR, so that a space becomes Ġ")
def _(piece):
    return tuple(chr(byte) for byte in piece.encode("utf-8", "surrogateescape"))


@to_symbols.mistake("you made one symbol per character: é is two bytes, so it becomes two symbols")
def _(piece):
    return tuple("".join(tok.to_symbols(char)) for char in piece)


@to_symbols.mistake("right for text, but not for bytes that are none: encode with errors='surrogateescape'")
def _(piece):
    return tuple(tok.BYTE_TO_CHAR[byte] for byte in piece.encode("utf-8"))


@to_symbols.right
def _(piece):
    symbols = ()
    for byte in piece.encode(errors="surrogateescape"):
        symbols += (tok.BYTE_TO_CHAR[byte],)
    return symbols


# ---------------------------------------------------------------- pretokenize

pretokenize = exercise(tok.pretokenize)


@pretokenize.cases
def _():
    yield ("the cat",)
    yield ("It's 1000 cats!",)
    yield ("a  b   c \n\n d  ",)
    yield ("naïve café, 日本語 ٣٤ ½",)
    yield ("I'll they've we're I'm he'd don't o'clock WE'RE 'tis",)
    yield ("x=1+23;  # two\n\treturn x",)
    yield ("abc123def _a_ 🍌🍌 wow!!!\r\n",)
    yield ("cafe\u0301s \u212b ﬁn",)  # what Unicode's normal forms would change
    yield ("",)


@pretokenize.mistake("spaces got lost: don't split at them, find the pieces with regex.findall, space included")
def _(text):
    return text.split()


@pretokenize.mistake("each space is a piece of its own: let letters, numbers and other characters start with ' ?'")
def _(text):
    return regex.findall(r"""'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""", text)


@pretokenize.mistake("runs of spaces swallow the next word's space: whitespace needs \\s+(?!\\S) before \\s+")
def _(text):
    return regex.findall(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+""", text)


@pretokenize.mistake("only a to z count as letters: write \\p{L} for a letter and \\p{N} for a number of any script")
def _(text):
    return regex.findall(r"""'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+""", text)


@pretokenize.mistake("'s, 't, 're, 've, 'm, 'll and 'd are missing or come too late: they are the first alternatives")
def _(text):
    return regex.findall(r""" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""", text)


@pretokenize.mistake(
    "GPT-2 knows 's, 't, … in small letters only: match them case-sensitively (WE'RE is WE, 'RE cut up)"
)
def _(text):
    return regex.findall(r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""", text)


@pretokenize.mistake("letters and numbers share a piece: \\w+ takes both, keep \\p{L}+ and \\p{N}+ apart")
def _(text):
    return regex.findall(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+""", text)


@pretokenize.law("joined again, the pieces must give the text: nothing lost, nothing added")
def _(pretokenize):
    text = " ".join(CORPUS) + "\x00\x1f\u3000 \u00a0x  "
    return "".join(pretokenize(text)) == text


@pretokenize.right
def _(text):
    pattern = regex.compile(r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s""")
    return [match.group() for match in pattern.finditer(text)]


# ---------------------------------------------------------------- count_pairs

count_pairs = exercise(tok.count_pairs)


@count_pairs.cases
def _():
    yield ({("c", "a", "t"): 1},)
    yield ({("c", "a", "t"): 3, ("a", "t"): 2},)
    yield ({("b", "a", "n", "a", "n", "a"): 2, ("an", "a"): 5, ("x",): 7},)
    yield ({("a", "a", "a"): 4, ("t", "a", "c"): 1, ("c", "a", "t"): 1},)
    yield ({},)
    yield (Counter(tok.to_symbols(piece) for text in CORPUS for piece in tok.pretokenize(text)),)


@count_pairs.mistake("you counted each pair once per word: add the word's count, not 1")
def _(words):
    return Counter(pair for word in words for pair in pairwise(word))


@count_pairs.mistake("a pair that stands twice in a word counts twice: don't take a set of the word's pairs")
def _(words):
    counts = Counter()
    for word, n in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += n
    return counts


@count_pairs.mistake("you stepped by two symbols: every neighbouring pair counts, also those that overlap")
def _(words):
    counts = Counter()
    for word, n in words.items():
        for pair in zip(word[::2], word[1::2], strict=False):
            counts[pair] += n
    return counts


@count_pairs.mistake("you joined the two symbols into one string: the key is a tuple, else ab+c and a+bc are one")
def _(words):
    counts = Counter()
    for word, n in words.items():
        for left, right in pairwise(word):
            counts[left + right] += n
    return counts


@count_pairs.mistake("you forgot the order within a pair: (a, t) is not (t, a)")
def _(words):
    counts = Counter()
    for word, n in words.items():
        for pair in pairwise(word):
            counts[tuple(sorted(pair))] += n
    return counts


@count_pairs.mistake("you stopped one pair early: a word of n symbols has n - 1 pairs")
def _(words):
    counts = Counter()
    for word, n in words.items():
        for i in range(len(word) - 2):
            counts[word[i], word[i + 1]] += n
    return counts


@count_pairs.law("the counts must add up to the number of neighbouring pairs in the corpus")
def _(count_pairs):
    words = {tuple("banana"): 3, tuple("aaaa"): 2, ("x",): 9}
    return sum(count_pairs(words).values()) == 3 * 5 + 2 * 3


@count_pairs.right
def _(words):
    counts = {}
    for word in words:
        for i in range(1, len(word)):
            counts[word[i - 1], word[i]] = counts.get((word[i - 1], word[i]), 0) + words[word]
    return counts


# ---------------------------------------------------------------- merge_pair

merge_pair = exercise(tok.merge_pair, same=_exactly(tuple))


@merge_pair.cases
def _():
    yield (("c", "a", "t"), ("a", "t"))
    yield (("b", "a", "n", "a", "n", "a"), ("a", "n"))
    yield (("a", "a", "a", "a", "a"), ("a", "a"))
    yield (("c", "a", "t", "s"), ("t", "a"))
    yield (("ba", "n", "a", "n"), ("a", "n"))
    yield (("t", "h", "e", "t", "hat"), ("t", "h"))
    yield (("x",), ("x", "x"))
    yield ((), ("a", "b"))
    yield (("Ġ", "Ã", "©", "Ġ", "Ã", "©"), ("Ã", "©"))


@merge_pair.mistake("you merged only the first place: go on to the end of the word")
def _(word, pair):
    for i in range(len(word) - 1):
        if word[i : i + 2] == pair:
            return (*word[:i], word[i] + word[i + 1], *word[i + 2 :])
    return word


@merge_pair.mistake("merges overlap: after a merge go on behind both symbols, so a a a with (a, a) is aa a")
def _(word, pair):
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2 if i + 2 == len(word) else 1
        elif not (i and word[i - 1 : i + 1] == pair):
            merged.append(word[i])
            i += 1
        else:
            i += 1
    return tuple(merged)


@merge_pair.mistake("you replaced text: (a, n) also hit the end of 'ba' before n. Compare whole symbols instead")
def _(word, pair):
    return tuple(" ".join(word).replace(" ".join(pair), "".join(pair)).split())


@merge_pair.mistake("the last symbol is lost: it has no right neighbour, but it stays in the word")
def _(word, pair):
    merged, i = [], 0
    while i < len(word) - 1:
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


@merge_pair.mistake("you merged the pair in both orders: (t, a) is not (a, t)")
def _(word, pair):
    merged, i = [], 0
    while i < len(word):
        if word[i : i + 2] in (pair, pair[::-1]):
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


@merge_pair.mistake("you merged from right to left: of a a a with (a, a), the left two are merged")
def _(word, pair):
    merged, i = [], len(word)
    while i > 0:
        if word[max(i - 2, 0) : i] == pair:
            merged.append("".join(pair))
            i -= 2
        else:
            merged.append(word[i - 1])
            i -= 1
    return tuple(merged[::-1])


@merge_pair.law("merging must not change what the word spells")
def _(merge_pair):
    words = [tuple("banana"), tuple("aaaaaaa"), ("ba", "n", "a"), ("a",)]
    return all("".join(merge_pair(word, pair)) == "".join(word) for word in words for pair in [("a", "n"), ("a", "a")])


@merge_pair.right
def _(word, pair):
    word, i = list(word), 0
    while i < len(word) - 1:
        if (word[i], word[i + 1]) == tuple(pair):
            word[i : i + 2] = ["".join(pair)]
        i += 1
    return tuple(word)


# ---------------------------------------------------------------- train_bpe

train_bpe = exercise(tok.train_bpe)


@train_bpe.cases
def _():
    yield (["hug hug hug pug pug hugs"], 260)
    yield (["ba ba ab ab", "cd cd"], 259)
    yield (["b a b a ba ba"], 300)
    yield (["aaaaa aaa aaaaaaa baab"], 262)
    yield ([], 300)
    yield (CORPUS, 256)
    yield (CORPUS, 330)


@train_bpe.refused
def _():
    yield (CORPUS, 255)
    yield ("hug pug", 300)


def _train_slowly(corpus, vocab_size, key=None, pieces=tok.pretokenize, weigh=True, merges_wanted=None, merge=None):
    """The chapter's slow loop, with one thing or another done differently."""
    words = Counter(tok.to_symbols(piece) for text in corpus for piece in pieces(text))
    words = words if weigh else dict.fromkeys(words, 1)
    vocab, merges = {char: i for i, char in enumerate(tok.BYTE_TO_CHAR.values())}, {}
    key = key or (lambda pair, vocab: (vocab[pair[0]], vocab[pair[1]]))
    while len(vocab) < vocab_size if merges_wanted is None else len(merges) < merges_wanted:
        counts = tok.count_pairs(words)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], *key(pair, vocab)))
        merges[best] = len(merges)
        vocab[best[0] + best[1]] = len(vocab)
        words = {(merge or tok.merge_pair)(word, best): n for word, n in words.items()}
    return vocab, merges


@train_bpe.mistake("of equally frequent pairs you took the one you met first: take the one with the lowest ids")
def _(corpus, vocab_size):
    return _train_slowly(corpus, vocab_size, key=lambda pair, vocab: ())


@train_bpe.mistake("you broke ties by the tokens' text: compare their ids, vocab[left] and then vocab[right]")
def _(corpus, vocab_size):
    return _train_slowly(corpus, vocab_size, key=lambda pair, vocab: pair)


@train_bpe.mistake("of equally frequent pairs you took the one with the highest ids: take the lowest")
def _(corpus, vocab_size):
    return _train_slowly(corpus, vocab_size, key=lambda pair, vocab: (-vocab[pair[0]], -vocab[pair[1]]))


@train_bpe.mistake("merges cross from word to word: cut each document with pretokenize first")
def _(corpus, vocab_size):
    return _train_slowly(corpus, vocab_size, pieces=lambda text: [text])


@train_bpe.mistake("every piece weighed the same: count how often it stands in the corpus")
def _(corpus, vocab_size):
    return _train_slowly(corpus, vocab_size, weigh=False)


@train_bpe.mistake("you made vocab_size merges: the 256 bytes count too, so there are vocab_size - 256 merges at most")
def _(corpus, vocab_size):
    return _train_slowly(corpus, vocab_size, merges_wanted=vocab_size)


@train_bpe.mistake(
    "old pairs keep their counts: subtract a touched word's pairs before you merge, add the new ones after"
)
def _(corpus, vocab_size):
    words = Counter(tok.to_symbols(piece) for text in corpus for piece in tok.pretokenize(text))
    vocab, merges = {char: i for i, char in enumerate(tok.BYTE_TO_CHAR.values())}, {}
    counts = tok.count_pairs(words)
    while len(vocab) < vocab_size and counts:
        best = min(counts, key=lambda pair: (-counts[pair], vocab[pair[0]], vocab[pair[1]]))
        merges[best] = len(merges)
        vocab[best[0] + best[1]] = len(vocab)
        for word in [word for word in words if best in pairwise(word)]:
            n = words.pop(word)
            words[tok.merge_pair(word, best)] = n
            counts.update({pair: n for pair in pairwise(tok.merge_pair(word, best)) if best[0] + best[1] in pair})
        del counts[best]
    return vocab, merges


@train_bpe.mistake("each merge must be made everywhere in a word, not only at the first place that holds the pair")
def _(corpus, vocab_size):
    def merge(word, pair):
        for i in range(len(word) - 1):
            if word[i : i + 2] == pair:
                return (*word[:i], word[i] + word[i + 1], *word[i + 2 :])
        return word

    return _train_slowly(corpus, vocab_size, merge=merge)


@train_bpe.law("the merge of rank r must make the token with the id 256 + r")
def _(train_bpe):
    vocab, merges = train_bpe(CORPUS, 300)
    return len(merges) == 44 and all(vocab[a + b] == 256 + rank for (a, b), rank in merges.items())


@train_bpe.right
def _(corpus, vocab_size):
    if vocab_size < 256 or isinstance(corpus, str):
        raise ValueError("too small a vocabulary, or no list of documents")
    return _train_slowly(corpus, vocab_size)


# ---------------------------------------------------------------- encode

encode = exercise(tok.encode, same=_exactly(list))


@encode.cases
def _():
    yield ("abc", *toy("b c", "a b"))
    yield ("abcabc abc", *toy("a b", "c a", "b c", "ab c"))
    yield ("aaaaaaa", *toy("a a", "aa a", "aa aa"))
    yield ("a  b", *toy("Ġ Ġ", "Ġ b"))
    vocab, merges = toy("b c", "a b", "c a")
    yield ("abcabc abc", vocab, dict(reversed(merges.items())))  # ranks are numbers, whatever the order
    yield ("1000000", *toy("0 0", "00 0", "1 0", "1 00", "1 000", "000 000"))
    for text in TEXTS:
        yield (text, *trained())


@encode.mistake("you took the longest token that fits: apply the merge of lowest rank instead, wherever it is")
def _(text, vocab, merges):
    return tok.longest_match_encode(text, vocab)


@encode.mistake("you merged the leftmost pair that has a rank: of all pairs in the word, take the one of lowest rank")
def _(text, vocab, merges):
    ids = []
    for piece in tok.pretokenize(text):
        word = tok.to_symbols(piece)
        while pairs := [pair for pair in pairwise(word) if pair in merges]:
            word = tok.merge_pair(word, pairs[0])
        ids += [vocab[symbol] for symbol in word]
    return ids


@encode.mistake("you merged the pair of highest rank first: the lowest rank, learned first, goes first")
def _(text, vocab, merges):
    ids = []
    for piece in tok.pretokenize(text):
        word = tok.to_symbols(piece)
        while pairs := [pair for pair in pairwise(word) if pair in merges]:
            word = tok.merge_pair(word, max(pairs, key=merges.get))
        ids += [vocab[symbol] for symbol in word]
    return ids


@encode.mistake("merges cross from piece to piece: cut the text with pretokenize and merge inside each piece")
def _(text, vocab, merges):
    word = tok.to_symbols(text)
    for pair in merges:
        word = tok.merge_pair(word, pair)
    return [vocab[symbol] for symbol in word]


@encode.mistake("you stopped after one merge: go on until no pair in the word has a rank")
def _(text, vocab, merges):
    ids = []
    for piece in tok.pretokenize(text):
        word = tok.to_symbols(piece)
        if pairs := [pair for pair in pairwise(word) if pair in merges]:
            word = tok.merge_pair(word, min(pairs, key=merges.get))
        ids += [vocab[symbol] for symbol in word]
    return ids


@encode.mistake("you returned the tokens: look each one up in vocab and return the ids")
def _(text, vocab, merges):
    token_of = {i: token for token, i in vocab.items()}
    return [token_of[i] for i in tok.encode(text, vocab, merges)]


@encode.mistake("you returned one list per piece: join them into one list of ids")
def _(text, vocab, merges):
    return [tok.encode(piece, vocab, merges) for piece in tok.pretokenize(text)]


@encode.law("decoding the ids must give the text's bytes back")
def _(encode):
    vocab, merges = trained()
    return all(tok.decode(encode(text, vocab, merges), vocab) == text.encode() for text in [*TEXTS, *CORPUS])


@encode.right
def _(text, vocab, merges):
    ids = []
    for piece in tok.pretokenize(text):
        word = tok.to_symbols(piece)
        for pair in sorted(merges, key=merges.get):
            word = tok.merge_pair(word, pair)
        ids.extend(vocab[symbol] for symbol in word)
    return ids


# ---------------------------------------------------------------- decode

decode = exercise(tok.decode)


@decode.cases
def _():
    vocab, merges = trained()
    yield ([vocab["c"], vocab["a"], vocab["t"]], vocab)
    for text in [*TEXTS, "café", "日本"]:
        yield (tok.encode(text, vocab, merges), vocab)
    yield (tok.encode("🍌", vocab, {})[:2], vocab)
    yield (list(range(255, -1, -1)), vocab)


@decode.refused
def _():
    vocab, _ = trained()
    yield ([vocab["c"], -1], vocab)
    yield ([len(vocab)], vocab)


@decode.mistake("you returned text: return the bytes, since a token may end in the middle of a character")
def _(ids, vocab):
    return tok.decode(ids, vocab).decode("utf-8", errors="replace")


@decode.mistake("you encoded the stand-in characters (Ġ) themselves: turn each one back into its byte")
def _(ids, vocab):
    token_of = {i: token for token, i in vocab.items()}
    return "".join(token_of[i] for i in ids).encode("utf-8")


@decode.mistake("you only turned Ġ back into a space: every stand-in has its byte, look each character up")
def _(ids, vocab):
    token_of = {i: token for token, i in vocab.items()}
    return "".join(token_of[i] for i in ids).replace("Ġ", " ").encode("utf-8")


@decode.mistake("you put spaces between tokens: a space is part of its token, so just join")
def _(ids, vocab):
    return b" ".join(tok.decode([i], vocab) for i in ids)


@decode.mistake("you decoded each token as text on its own: join the bytes of all tokens first")
def _(ids, vocab):
    return "".join(tok.decode([i], vocab).decode("utf-8", errors="replace") for i in ids).encode("utf-8")


@decode.mistake("you dropped bytes that are not UTF-8: decode must keep every byte")
def _(ids, vocab):
    return tok.decode(ids, vocab).decode("utf-8", errors="ignore").encode("utf-8")


@decode.law("decoding two lists of ids one after the other must give the same as decoding them joined")
def _(decode):
    vocab, _ = trained()
    a, b = list(range(0, 300, 7)), list(range(299, 0, -11))
    return decode(a, vocab) + decode(b, vocab) == decode(a + b, vocab) != b""


@decode.right
def _(ids, vocab):
    if not set(ids) <= set(vocab.values()):
        raise ValueError("an unknown id")
    byte_of = {char: bytes([byte]) for byte, char in tok.BYTE_TO_CHAR.items()}
    bytes_of = {i: b"".join(byte_of[char] for char in token) for token, i in vocab.items()}
    return b"".join(bytes_of[i] for i in ids)


# ---------------------------------------------------------------- longest_match_encode

longest_match_encode = exercise(tok.longest_match_encode, same=_exactly(list))


@longest_match_encode.cases
def _():
    yield ("abc", toy("b c", "a b")[0])
    yield ("ababc ab", toy("a b", "Ġ a", "ab ab", "c Ġ", "b c")[0])
    yield ("xabcd", toy("b c", "bc d", "a b")[0])
    yield ("a" * 41, toy("a a", "aa aa", "aaaa aaaa", f"{'a' * 8} {'a' * 8}", f"{'a' * 16} {'a' * 16}")[0])
    for text in TEXTS:
        yield (text, trained()[0])


def _greedy(word, vocab, sizes):
    ids, rest = [], word
    while rest:
        n = next(n for n in sizes(len(rest)) if rest[:n] in vocab)
        ids.append(vocab[rest[:n]])
        rest = rest[n:]
    return ids


@longest_match_encode.mistake(
    "you took the shortest token that fits: try the longest beginning first, then shorter ones"
)
def _(text, vocab):
    return _greedy("".join(tok.to_symbols(text)), vocab, lambda n: range(1, n + 1))


@longest_match_encode.mistake("you grew the token byte by byte and stopped at a gap: a longer one may fit behind it")
def _(text, vocab):
    def grown(rest):
        n = 1
        while n < len(rest) and rest[: n + 1] in vocab:
            n += 1
        return n

    ids = []
    for piece in tok.pretokenize(text):
        rest = "".join(tok.to_symbols(piece))
        while rest:
            n = grown(rest)
            ids.append(vocab[rest[:n]])
            rest = rest[n:]
    return ids


@longest_match_encode.mistake("tokens cross from piece to piece: cut the text with pretokenize first")
def _(text, vocab):
    return _greedy("".join(tok.to_symbols(text)), vocab, lambda n: range(n, 0, -1))


@longest_match_encode.mistake("you matched from the end of the piece: start at its beginning")
def _(text, vocab):
    ids = []
    for piece in tok.pretokenize(text):
        rest, found = "".join(tok.to_symbols(piece)), []
        while rest:
            start = next(i for i in range(len(rest)) if rest[i:] in vocab)
            found.append(vocab[rest[start:]])
            rest = rest[:start]
        ids += found[::-1]
    return ids


@longest_match_encode.mistake("you took the longest token anywhere in the piece first: go from left to right")
def _(text, vocab):
    def cut(word):
        if not word:
            return []
        i, n = next(
            (i, n) for n in range(len(word), 0, -1) for i in range(len(word) - n + 1) if word[i : i + n] in vocab
        )
        return [*cut(word[:i]), vocab[word[i : i + n]], *cut(word[i + n :])]

    return [i for piece in tok.pretokenize(text) for i in cut("".join(tok.to_symbols(piece)))]


@longest_match_encode.law("decoding the ids must give the text's bytes back")
def _(longest_match_encode):
    vocab, _ = trained()
    return all(tok.decode(longest_match_encode(text, vocab), vocab) == text.encode() for text in [*TEXTS, *CORPUS])


@longest_match_encode.right
def _(text, vocab):
    ids = []
    for piece in tok.pretokenize(text):
        word, start = "".join(tok.to_symbols(piece)), 0
        while start < len(word):
            end = len(word)
            while word[start:end] not in vocab:
                end -= 1
            ids.append(vocab[word[start:end]])
            start = end
    return ids


# ---------------------------------------------------------------- find_disagreements

find_disagreements = exercise(tok.find_disagreements)


@find_disagreements.cases
def _():
    yield (["cabc", "", "abc", "ab", "bc", "cab", "abc"], *toy("b c", "a b"))
    yield (["100", "1000", "10000", "0", "0001"], *toy("0 0", "1 0", "00 00", "00 0", "1 000"))
    yield ([piece for text in [*TEXTS, *CORPUS] for piece in tok.pretokenize(text)], *trained())
    yield ([], *trained())


@find_disagreements.mistake("you compared how many tokens there are: a + bc and ab + c are two each, yet differ")
def _(texts, vocab, merges):
    return [t for t in texts if len(tok.encode(t, vocab, merges)) != len(tok.longest_match_encode(t, vocab))]


@find_disagreements.mistake("these are the texts on which both agree: keep the others")
def _(texts, vocab, merges):
    return [t for t in texts if tok.encode(t, vocab, merges) == tok.longest_match_encode(t, vocab)]


@find_disagreements.mistake("you stopped at the first text: go through all of them")
def _(texts, vocab, merges):
    return tok.find_disagreements(texts, vocab, merges)[:1]


@find_disagreements.mistake("you returned True or False for each text: return the texts themselves")
def _(texts, vocab, merges):
    return [tok.encode(t, vocab, merges) != tok.longest_match_encode(t, vocab) for t in texts]


@find_disagreements.right
def _(texts, vocab, merges):
    found = []
    for text in texts:
        if tok.longest_match_encode(text, vocab) != tok.encode(text, vocab, merges):
            found.append(text)
    return found


# ---------------------------------------------------------------- split_special

split_special = exercise(tok.split_special)
END = "<|endoftext|>"


@split_special.cases
def _():
    yield (f"one{END}two", [END])
    yield (f"{END}{END}one|two", [END])
    yield (f"one {END} two", [])
    yield ("<|end|><|endoftext|> or <|e", ["<|end|>", END])
    yield ("a[b]<s>c<s></s>", ["<s>", "</s>", "[b]"])
    yield ("<s>and<s>and", ["<s>", "<s>and"])
    yield ("", [END])
    yield ("", [])


def _split(pattern, text, keep=True):
    parts = re.split(f"({pattern})" if keep else pattern, text)
    return [part for part in parts if part]


def _any_of(special):
    return "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or "(?!)"


@split_special.mistake("the special tokens themselves got lost: keep them as parts, e.g. with a group in re.split")
def _(text, special):
    return _split(_any_of(special), text, keep=False)


@split_special.mistake("the | in <|endoftext|> was read as 'or': escape each token with re.escape")
def _(text, special):
    pattern = "|".join(sorted(special, key=len, reverse=True)) or "(?!)"
    return [part for part in re.split(f"({pattern})", text) if part]


@split_special.mistake("empty parts are left: drop them, as between two special tokens in a row")
def _(text, special):
    return re.split(f"({_any_of(special)})", text)


@split_special.mistake("a shorter special token won over a longer one: try the longest first")
def _(text, special):
    return _split("|".join(re.escape(token) for token in sorted(special, key=len)) or "(?!)", text)


@split_special.mistake("with no special token given you still cut the text: cut only at those in `special`")
def _(text, special):
    return _split(_any_of(special or [END]), text)


@split_special.mistake("you removed the spaces beside the special tokens: text must stay as it is")
def _(text, special):
    return [part.strip() for part in _split(_any_of(special), text) if part.strip()]


@split_special.law("joined again, the parts must give the text")
def _(split_special):
    text = f" a {END} b{END}{END}"
    return "".join(split_special(text, [END])) == text


@split_special.right
def _(text, special):
    parts, plain, i = [], "", 0
    while i < len(text):
        fits = [token for token in special if text.startswith(token, i)]
        if fits:
            token = max(fits, key=len)
            parts += [plain, token]
            plain, i = "", i + len(token)
        else:
            plain, i = plain + text[i], i + 1
    return [part for part in [*parts, plain] if part]


# ---------------------------------------------------------------- BPETokenizer


def _try_tokenizer(cls, corpus, vocab_size, special_tokens, texts, allowed=None):
    """What a tokenizer of this class does with the texts."""
    given = cls(*toy("a b"), {END: 257})
    tokenizer = cls.train(corpus, vocab_size, special_tokens)
    ids = [tokenizer.encode(text) for text in texts]
    allowed = allowed or special_tokens
    return {
        "a tokenizer given its merges": given.encode(f"abc{END}", [END]),
        "vocab": tokenizer.vocab,
        "special_tokens": tokenizer.special_tokens,
        "encode(text)": ids,
        "encode(text, allowed_special)": [tokenizer.encode(text, allowed) for text in texts],
        "decode(ids)": [tokenizer.decode(i) for i in ids],
        "decode(ids), ids of special tokens": [tokenizer.decode(tokenizer.encode(t, special_tokens)) for t in texts],
        "decode(half an emoji)": tokenizer.decode(tok.encode("🍌", tokenizer.vocab, {})[:3]),
        "to_str_tokens(text)": [tokenizer.to_str_tokens(text) for text in texts],
        "to_str_tokens(text, allowed_special)": [tokenizer.to_str_tokens(text, special_tokens) for text in texts],
    }


BPETokenizer = exercise(tok.BPETokenizer, use=_try_tokenizer)


@BPETokenizer.cases
def _():
    texts = ["the cat", f"{END}the cat{END}", "café 🍌🍎 日本", "", END]
    yield (CORPUS, 300, (END,), texts)
    yield (CORPUS, 320, (END, "<|pad|>"), [*texts, f"<|pad|> {END}"])
    yield (["ab ab"], 300, (END, "<|pad|>"), ["ab", END])  # no pair is left to merge


@BPETokenizer.refused
def _():
    yield (CORPUS, 300, (END,), ["the cat"], ("<|pad|>",))


@BPETokenizer.mistake(
    "text spelled a special token: encode must recognise only those in `allowed_special`, by default none"
)
class _(tok.BPETokenizer):
    def encode(self, text, allowed_special=()):
        return super().encode(text, tuple(self.special_tokens))


@BPETokenizer.mistake("a part that spells a special token is one only where it is in `allowed_special`: ask there")
class _(tok.BPETokenizer):
    def encode(self, text, allowed_special=()):
        alone = text in self.special_tokens
        return [self.special_tokens[text]] if alone else super().encode(text, allowed_special)


@BPETokenizer.mistake(
    "`allowed_special` has no effect: cut the text with split_special and give those parts their special id"
)
class _(tok.BPETokenizer):
    def encode(self, text, allowed_special=()):
        return super().encode(text)


@BPETokenizer.mistake(
    "one token too many: the special tokens count too, so train with vocab_size - len(special_tokens)"
)
class _(tok.BPETokenizer):
    @classmethod
    def train(cls, corpus, vocab_size, special_tokens=(END,)):
        return super().train(corpus, vocab_size + len(special_tokens), special_tokens)


@BPETokenizer.mistake("a special token has the id of an ordinary one: start at len(vocab)")
class _(tok.BPETokenizer):
    @classmethod
    def train(cls, corpus, vocab_size, special_tokens=(END,)):
        vocab, merges = tok.train_bpe(corpus, vocab_size - len(special_tokens))
        return cls(vocab, merges, {token: i for i, token in enumerate(special_tokens)})


@BPETokenizer.mistake("characters of several tokens broke: join the bytes of all tokens, then decode them as UTF-8")
class _(tok.BPETokenizer):
    def decode(self, ids):
        return "".join(tok.BPETokenizer.decode(self, [i]) for i in ids)

    def to_str_tokens(self, text, allowed_special=()):
        return [tok.BPETokenizer.decode(self, [i]) for i in self.encode(text, allowed_special)]


@BPETokenizer.mistake("half a character stopped decode: use .decode('utf-8', errors='replace')")
class _(tok.BPETokenizer):
    def decode(self, ids):
        special = {"".join(tok.to_symbols(token)): i for token, i in self.special_tokens.items()}
        return tok.decode(ids, self.vocab | special).decode("utf-8")


@BPETokenizer.mistake("decode dropped half a character without a trace: use errors='replace', which shows �")
class _(tok.BPETokenizer):
    def decode(self, ids):
        special = {"".join(tok.to_symbols(token)): i for token, i in self.special_tokens.items()}
        return tok.decode(ids, self.vocab | special).decode("utf-8", errors="ignore")


@BPETokenizer.mistake("to_str_tokens shows stand-ins such as Ġ: decode each id on its own instead")
class _(tok.BPETokenizer):
    def to_str_tokens(self, text, allowed_special=()):
        token_of = {i: token for token, i in (self.vocab | self.special_tokens).items()}
        return [token_of[i] for i in self.encode(text, allowed_special)]


@BPETokenizer.law("encode and decode must give any text back")
def _(BPETokenizer):
    tokenizer = BPETokenizer.train(CORPUS, 300)
    return all(tokenizer.decode(tokenizer.encode(text)) == text for text in [*TEXTS, f"a{END}b", "日本\x00"])


@BPETokenizer.right
class _:
    def __init__(self, vocab, merges, special_tokens):
        self.vocab, self.merges, self.special_tokens = vocab, merges, special_tokens

    @classmethod
    def train(cls, corpus, vocab_size, special_tokens=(END,)):
        vocab, merges = tok.train_bpe(corpus, vocab_size - len(special_tokens))
        special = dict(zip(special_tokens, range(len(vocab), vocab_size), strict=False))
        return cls(vocab, merges, special)

    def encode(self, text, allowed_special=()):
        if not set(allowed_special) <= set(self.special_tokens):
            raise ValueError("not a special token")
        special = {token: self.special_tokens[token] for token in allowed_special}
        ids = []
        for part in tok.split_special(text, special):
            ids += [special[part]] if part in special else tok.encode(part, self.vocab, self.merges)
        return ids

    def decode(self, ids):
        name = {i: token for token, i in self.special_tokens.items()}
        parts = [name[i].encode() if i in name else tok.decode([i], self.vocab) for i in ids]
        return b"".join(parts).decode("utf-8", "replace")

    def to_str_tokens(self, text, allowed_special=()):
        return list(map(self.decode, [[i] for i in self.encode(text, allowed_special)]))
