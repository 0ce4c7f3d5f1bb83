"""Chapter 01 against the real things: Hugging Face `tokenizers`, and GPT-2's own vocabulary where it is at hand."""

import json
import os
import random
import string
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import jupytext
import pytest
from bench_tokenization import SOURCE, from_chapter, train_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from utils import tokenization as tok
from utils.checks.tokenization import CORPUS

ROOT = Path(__file__).parents[1]
untimed = settings(deadline=None)  # the first example parses the chapter, and a machine may be busy
END = "<|endoftext|>"
# Tables of letters and numbers grow with each edition of Unicode, and the two libraries carry different editions:
# they agree on every character that is assigned in this Python's edition.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))

SCRIPTS = [
    string.ascii_lowercase * 3 + string.ascii_uppercase,
    string.digits,
    string.punctuation,
    "'s't're've'm'll'd'S'LL’",
    "àéîõüßçñøåœæÀÉÎÕÜ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधन्ािीुूेैोौ",
    "ขงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภม่้๊๋",
    "日本語中文字符東京春夏秋冬人口山川",
    "あいうえおかきくけこアイウエオカキクケコー。、「」",
    "가나다라마바사아자차카타파하",
    "½¼²³①②Ⅷ٣٤५६",
    "🍌🍎🙂👩‍👩‍👧👨🏽‍🚀🏳️‍🌈🇫🇷❤️",
    " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\u00a0\u2003\u2028\u2029\u3000\u200b\ufeff",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f\xad",
    "̧̀́̂̃͜͡",
]
WHITESPACE = [" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "        ", " \t "]


def varied_strings(n: int, seed: int = 0) -> list[str]:
    """Seeded strings: stretches of one script, mixtures, runs of whitespace, slices of real text."""
    rng = random.Random(seed)
    real = "\n".join([*CORPUS, Path(tok.__file__).read_text(encoding="utf-8"), SOURCE.read_text(encoding="utf-8")])
    found = set()
    while len(found) < n:
        parts = []
        for _ in range(rng.randint(1, 6)):
            kind = rng.random()
            if kind < 0.25:
                start = rng.randrange(len(real))
                parts.append(real[start : start + rng.randint(1, 60)])
            elif kind < 0.45:
                parts.append(rng.choice(WHITESPACE) * rng.randint(1, 3))
            elif kind < 0.9:
                parts.append("".join(rng.choices(rng.choice(SCRIPTS), k=rng.randint(1, 12))))
            else:
                parts.append("".join(rng.choice(rng.choice(SCRIPTS)) for _ in range(rng.randint(1, 12))))
        found.add("".join(parts))
    return sorted(found)


def as_hf(vocab, merges) -> Tokenizer:
    """The same vocabulary and merges in `tokenizers`."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.fixture(scope="module")
def strings():
    return varied_strings(12_000)


@pytest.fixture(scope="module")
def learned():
    """Learned from the strings themselves, so that there are merges in all scripts."""
    return tok.train_bpe([*CORPUS, *varied_strings(3_000, seed=1)], 2_000)


# ---------------------------------------------------------------- bytes and pieces


def test_bytes_to_unicode_is_the_alphabet_of_tokenizers():
    table = tok.bytes_to_unicode()
    assert set(table) == set(range(256))
    assert set(table.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    # tokenizers numbers its alphabet by code point: the same order, hence the same ids and the same ties.
    assert list(table.values()) == sorted(table.values())


def test_pretokenize_agrees_with_tokenizers_on_every_assigned_character():
    """In make test on a tenth of them, in stretches of neighbours."""
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    chars = [chr(i) for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)) not in ("Cs", "Cn")]
    assert len(chars) > 280_000
    for i in range(0, len(chars), 500 if "WORKBOOK_FULL" in os.environ else 5_000):
        text = "".join(f"a{c}1{c}{c} " for c in chars[i : i + 500])
        assert tok.pretokenize(text) == [text[a:b] for _, (a, b) in theirs.pre_tokenize_str(text)], text
    text = "".join(chars[::50])
    ours = ["".join(tok.to_symbols(piece)) for piece in tok.pretokenize(text)]
    assert ours == [piece for piece, _ in theirs.pre_tokenize_str(text)]


@untimed
@given(ANY_TEXT)
def test_pieces_join_to_the_text(text):
    assert "".join(tok.pretokenize(text)) == text


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tok.encode("\ud83c", *tok.train_bpe([], 256))


# ---------------------------------------------------------------- training


def corpora():
    words = st.text(alphabet="abcé ", min_size=1, max_size=30) | st.text(alphabet="01", max_size=40)
    return st.lists(words, max_size=12)


@untimed
@given(corpora(), st.integers(256, 290))
def test_training_equals_tokenizers_and_the_chapters_loop(corpus, vocab_size):
    """Small alphabets make for many ties and for runs that overlap."""
    vocab, merges = tok.train_bpe(corpus, vocab_size)
    assert (vocab, list(merges)) == train_hf(corpus, vocab_size)
    assert (vocab, merges) == from_chapter("train_bpe_slowly")(corpus, vocab_size)
    assert list(merges.values()) == list(range(len(merges)))
    assert len({a + b for a, b in merges}) == len(merges) == len(vocab) - 256


def test_training_equals_tokenizers_on_varied_text(learned):
    vocab, merges = learned
    assert len(vocab) == 2_000
    assert (vocab, list(merges)) == train_hf([*CORPUS, *varied_strings(3_000, seed=1)], 2_000)


def test_training_equals_tokenizers_on_the_world():
    from bench_tokenization import world_corpus

    corpus = world_corpus(200_000)
    vocab, merges = tok.train_bpe(corpus, 1_000)
    assert (vocab, list(merges)) == train_hf(corpus, 1_000)


def test_training_stops_where_no_pair_is_left():
    vocab, merges = tok.train_bpe(["ab"], 1000)
    assert list(merges) == [("a", "b")] and len(vocab) == 257
    assert tok.train_bpe([], 300)[1] == {}


def test_training_refuses_bad_input():
    with pytest.raises(ValueError, match="256"):
        tok.train_bpe(["text"], 255)
    with pytest.raises(ValueError, match="list of documents"):
        tok.train_bpe("text", 300)


# ---------------------------------------------------------------- encoding


def test_encode_equals_tokenizers_on_varied_strings(strings, learned):
    vocab, merges = learned
    theirs = as_hf(vocab, merges).encode_batch(strings)
    assert len(strings) >= 10_000
    used = set()
    for text, encoding in zip(strings, theirs, strict=True):
        ids = tok.encode(text, vocab, merges)
        assert ids == encoding.ids, text
        used.update(ids)
    assert len(used) > 1_000  # the strings do try the vocabulary


@untimed
@given(st.text(ASSIGNED))
def test_encode_equals_tokenizers_on_any_text(learned, text):
    vocab, merges = learned
    assert tok.encode(text, vocab, merges) == as_hf(vocab, merges).encode(text).ids


@untimed
@given(ANY_TEXT)
def test_round_trip_of_text(learned, text):
    vocab, merges = learned
    assert tok.decode(tok.encode(text, vocab, merges), vocab).decode("utf-8") == text
    assert tok.decode(tok.longest_match_encode(text, vocab), vocab).decode("utf-8") == text


@untimed
@given(st.binary())
def test_round_trip_of_bytes(learned, data):
    vocab, merges = learned
    assert tok.decode(tok.encode(data.decode("utf-8", "surrogateescape"), vocab, merges), vocab) == data


@untimed
@given(st.lists(st.integers(0, 1_999)))
def test_decode_joins_the_tokens_bytes(learned, ids):
    vocab, _ = learned
    assert tok.decode(ids, vocab) == b"".join(tok.decode([i], vocab) for i in ids)


@untimed
@given(st.text(ASSIGNED))
def test_no_merge_is_left_to_do(learned, text):
    vocab, merges = learned
    token_of = {i: token for token, i in vocab.items()}
    for piece in tok.pretokenize(text):
        assert not any(pair in merges for pair in pairwise(token_of[i] for i in tok.encode(piece, vocab, merges)))


def test_decode_refuses_unknown_ids(learned):
    with pytest.raises(ValueError, match="no token has the id 2000"):
        tok.decode([5, 2_000], learned[0])


def test_longest_match_takes_the_longest(learned):
    vocab, _ = learned
    token_of = {i: token for token, i in vocab.items()}
    rest = "".join(tok.to_symbols("theories"))
    for i in tok.longest_match_encode("theories", vocab):
        assert rest.startswith(token_of[i])
        assert not any(rest[:n] in vocab for n in range(len(token_of[i]) + 1, len(rest) + 1))
        rest = rest[len(token_of[i]) :]
    assert rest == ""


# ---------------------------------------------------------------- special tokens and the class


@untimed
@given(ANY_TEXT)
def test_ordinary_text_never_gives_a_special_token(text):
    tokenizer = tok.BPETokenizer.train(CORPUS, 300)
    spelled = f"{text}{END}{text}"
    assert tokenizer.special_tokens[END] not in tokenizer.encode(spelled)
    assert tokenizer.decode(tokenizer.encode(spelled)) == spelled
    assert tokenizer.encode(spelled, [END]).count(tokenizer.special_tokens[END]) == 1 + 2 * text.count(END)
    assert tokenizer.decode(tokenizer.encode(spelled, [END])) == spelled


def test_tokenizer_counts_special_tokens():
    tokenizer = tok.BPETokenizer.train(CORPUS, 300, (END, "<|pad|>"))
    assert len(tokenizer.vocab) == 298 and tokenizer.special_tokens == {END: 298, "<|pad|>": 299}
    assert tokenizer.to_str_tokens(f"the cat{END}", [END])[-1] == END


def test_tokenizer_refuses_unknown_special_tokens():
    with pytest.raises(ValueError, match="not a special token"):
        tok.BPETokenizer.train(CORPUS, 300).encode("text", ["<|pad|>"])


# ---------------------------------------------------------------- GPT-2's own vocabulary

GPT2 = Path(os.environ.get("GPT2_VOCAB_DIR", ROOT.parent / "shared" / "data" / "gpt2"))
needs_gpt2 = pytest.mark.skipif(
    not (GPT2 / "vocab.bpe").exists(),
    reason="GPT-2's encoder.json and vocab.bpe are not here: set GPT2_VOCAB_DIR to their folder",
)


@pytest.fixture(scope="module")
def gpt2():
    vocab = json.loads((GPT2 / "encoder.json").read_text(encoding="utf-8"))
    lines = (GPT2 / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    merges = {tuple(line.split()): rank for rank, line in enumerate(lines)}
    return tok.BPETokenizer(vocab, merges, {END: vocab.pop(END)})


@needs_gpt2
def test_gpt2_has_the_shape_that_the_chapter_tells(gpt2):
    assert list(gpt2.vocab)[:256] == list(tok.bytes_to_unicode().values())
    assert len(gpt2.vocab) + 1 == 50_257 and len(gpt2.merges) == 50_000 and gpt2.special_tokens == {END: 50_256}
    assert all(gpt2.vocab[a + b] == 256 + rank for (a, b), rank in gpt2.merges.items())


@needs_gpt2
@pytest.mark.parametrize(
    "text, tokens",
    [
        ("Ralph", ["R", "alph"]),
        (" Ralph", [" Ralph"]),
        (" ralph", [" r", "alph"]),
        ("ralph", ["ral", "ph"]),
        (
            "56873+3184623=123456789-1000000000",
            ["568", "73", "+", "318", "46", "23", "=", "123", "45", "67", "89", "-", "1", "000000", "000"],
        ),
    ],
)
def test_gpt2_tokens_as_noted_from_the_model(gpt2, text, tokens):
    assert gpt2.to_str_tokens(text) == tokens
    assert gpt2.to_str_tokens(END + text, [END]) == [END, *tokens]


@needs_gpt2
def test_gpt2_ids_as_noted_from_the_model(gpt2):
    assert gpt2.encode(f"{END}Ralph", [END]) == [50256, 49, 17307]


@needs_gpt2
def test_gpt2_ids_equal_those_of_tokenizers(gpt2, strings):
    theirs = as_hf(gpt2.vocab, gpt2.merges).encode_batch(strings)
    for text, encoding in zip(strings, theirs, strict=True):
        assert gpt2.encode(text) == encoding.ids, text


@needs_gpt2
def test_gpt2_does_not_take_the_longest_match(gpt2):
    assert "1000" in gpt2.vocab
    assert gpt2.encode("1000000000") != tok.longest_match_encode("1000000000", gpt2.vocab)


@needs_gpt2
def test_the_chapters_excerpt_of_gpt2_is_true_and_complete(gpt2):
    """The chapter holds the merges that can matter for its examples: those whose result stands in one of them."""
    cell = next(c.source for c in jupytext.read(SOURCE, fmt="md").cells if c.source.startswith("GPT2_EXCERPT = "))
    namespace = {}
    exec(cell, namespace)
    pieces = ["".join(tok.to_symbols(p)) for text in namespace["GPT2_TEXTS"] for p in tok.pretokenize(text)]
    want = {pair: rank for pair, rank in gpt2.merges.items() if any("".join(pair) in piece for piece in pieces)}
    assert namespace["gpt2_merges"] == want
