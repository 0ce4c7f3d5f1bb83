"""The small world: what it promises about documents, labels, held-out sets, tokens and prompts."""

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from utils import world
from utils.models import WEIGHTS
from utils.world import grammar
from utils.world.document import SLOT_LABELS, Template, slot_type
from utils.world.lexicon import GIFTS, PLACES
from utils.world.tokens import is_one_token, task_words


@pytest.fixture(scope="module")
def documents():
    return world.sample(3000, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS / "pico-gpt")


def test_the_same_seed_gives_the_same_documents(documents):
    assert world.sample(3000, seed=3) == documents
    assert world.sample(200, seed=4) != documents[:200]


def test_every_kind_occurs_and_can_be_asked_for(documents):
    assert {d.kind for d in documents} == set(world.KINDS)
    assert len(world.KINDS) >= 14
    assert {d.kind for d in world.sample(50, 0, ["code", "letter"])} == {"code", "letter"}


@pytest.mark.parametrize("arguments", [(-1, 0), (5, 0, ["novel"]), (5, 0, [])])
def test_bad_requests_are_refused(arguments):
    with pytest.raises(ValueError):
        world.sample(*arguments)


def test_spans_lie_in_the_text_and_carry_known_labels(documents):
    for document in documents:
        for start, end, label in document.spans:
            assert 0 <= start < end <= len(document.text), (document.kind, label)
            assert label in world.LABELS


def test_labels_say_what_the_text_says(documents):
    capitals = {c.capital for c in world.COUNTRIES}
    countries = {c.name for c in world.COUNTRIES}
    for document in documents:
        assert set(document.spans_of("capital")) <= capitals
        assert set(document.spans_of("country")) <= countries
        assert all(re.fullmatch(r"\d+", x) for x in document.spans_of("number") if document.kind == "numbers")
        for quoted in document.spans_of("inside_quotes"):
            assert f'"{quoted}"' in document.text
        for start, end, label in document.spans:
            if label == "inside_brackets":
                assert document.text[start - 2] in "([{" and document.text[end + 1] in ")]}"
        names = document.spans_of("name")
        assert len(document.spans_of("repeated_name")) == len(names) - len(set(names))
        if document.kind == "echo":
            assert document.spans_of("first_copy") == document.spans_of("second_copy")
        if document.kind == "tasks":
            (task,) = {span.label for span in document.spans if span.label.startswith("task:")}
            pairs = zip(document.spans_of("task_input"), document.spans_of("task_output"), strict=True)
            assert all(world.TASKS[task.removeprefix("task:")].pairs[x] == y for x, y in pairs)
        if document.kind == "ioi":
            for subject, recipient in zip(
                document.spans_of("subject"), document.spans_of("indirect_object"), strict=True
            ):
                assert subject != recipient


def test_sums_and_counting_are_right():
    for document in world.sample(200, 5, ["numbers"]):
        for sum_, answer in zip(document.spans_of("sum"), document.spans_of("sum_answer"), strict=True):
            assert eval(sum_.removesuffix(" =")) == int(answer)


def test_held_out_pairs_never_occur_in_documents():
    held_out_wordings = [re.compile(re.sub(r"\{\w+\}", r"\\w+", t.text)) for t in world.HELD_OUT_WORDING.values()]
    pairs = {frozenset(pair) for pair in world.HELD_OUT_NAME_PAIRS}
    names = set(world.NAMES)
    seen_pairs = 0
    for document in world.sample(4000, seed=1_000_000):  # the first training shard's seed
        assert not any(wording.search(document.text) for wording in held_out_wordings)
        here = sorted(set(re.findall(r"\w+", document.text)) & names)
        together = {frozenset((a, b)) for i, a in enumerate(here) for b in here[i + 1 :]}
        assert not together & pairs, document.text
        seen_pairs += len(together)
        for span in document.spans:
            if span.label.startswith("task:"):
                task = world.TASKS[span.label.removeprefix("task:")]
                assert not set(document.spans_of("task_input")) & set(task.held_out)
    assert seen_pairs > 500


def test_held_out_sets_are_neither_empty_nor_everything():
    assert 100 < len(world.HELD_OUT_NAME_PAIRS) < 300
    for task in world.TASKS.values():
        assert task.held_out and len(task.held_out) < 0.35 * len(task.pairs)
        assert not set(task.held_out) & set(task.seen)


def test_the_words_of_held_out_pairs_are_told_elsewhere():
    """A held-out pair can be known: word notes and facts tell it, only the task's lists leave it out."""
    told = set()
    for document in world.sample(15_000, 1, ["dictionary", "facts"]):
        told |= set(zip(document.spans_of("quoted_word"), document.spans_of("word_answer"), strict=True))
        for country in document.spans_of("country"):
            for label in ("capital", "language_name", "currency", "continent"):
                told |= {(country, answer) for answer in document.spans_of(label)}
    for task in world.TASKS.values():
        assert set(task.held_out.items()) <= told, task.name


def test_tables_are_as_large_as_promised():
    assert len(world.COUNTRIES) >= 60 and len(world.NAMES) >= 40 and len(world.TASKS) >= 12 and len(world.LAYOUTS) >= 3
    for table in (world.NAMES, PLACES, GIFTS, [c.name for c in world.COUNTRIES], [n.word for n in world.NOUNS]):
        assert len(set(table)) == len(table)
    for adjective in world.ADJECTIVES:
        (opposite,) = [a for a in world.ADJECTIVES if a.word == adjective.opposite]
        assert opposite.opposite == adjective.word
    # Zero shots leave the task open: a word is the input of several tasks.
    for word in ("dog", "walk", "hot", "France"):
        assert sum(word in task.pairs for task in world.TASKS.values()) >= 5


# ---- The grammar check. ----
def test_every_document_parses_as_its_kind(documents):
    assert [d.kind for d in documents] == [grammar.parse(d.text).kind for d in documents]


def test_a_document_cut_off_still_parses_mostly():
    rng = random.Random(0)
    parsed = 0
    for document in world.sample(300, 8):
        end = rng.randrange(len(document.text) // 2, len(document.text))
        parsed += grammar.parse(document.text[:end], cut=True).kind is not None
    assert parsed > 270


def test_exchanged_words_do_not_parse(documents):
    rng = random.Random(0)
    tried = parsed = 0
    for document in documents[:1000]:
        words = document.text.split(" ")
        i = rng.randrange(len(words) - 1)
        if words[i] != words[i + 1] and document.kind != "brackets":
            words[i], words[i + 1] = words[i + 1], words[i]
            tried += 1
            parsed += grammar.parse(" ".join(words)).kind is not None
    assert tried > 500 and parsed < 0.03 * tried


@pytest.mark.parametrize(
    "text",
    [
        "",
        "word salad of the green",
        "When Mary and John went to the store, Mary gave a book to Mary.",
        "When Mary and John went to the store, Paul gave a book to Mary.",
        "- hot -> cold\n- big -> chaud",
        "- hot -> cold\n- hot -> cold",
        "( dog [ cat )",
        "( dog ] cat )",
        "2, 4, 6, 9",
        "Things to buy:\n1. two cups\n3. two hats",
        "Repeat: dog cat / dog hat",
        "La chien est petit.",
        "Le chien est petite.",
        "def add_items(x):\n    return y",
        "def add_items(x):\nreturn x",
        "Its capital is Paris.",
        "The capital of Paris is France.",
    ],
)
def test_faulty_documents_do_not_parse(text):
    assert grammar.parse(text).kind is None
    assert grammar.parse(text).problem


# ---- Tokens. ----
def test_words_that_tasks_need_are_one_token(tokenizer):
    for words in (task_words(), world.NAMES, PLACES, GIFTS):
        assert [word for word in words if not is_one_token(word, tokenizer)] == []


def test_the_tokenizer_is_gpt2s_scheme(tokenizer):
    assert 2000 <= len(tokenizer) <= 4000
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.decode(tokenizer.encode("Où est la clé? 12 + 30 = 42 ☃")) == "Où est la clé? 12 + 30 = 42 ☃"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_token_labels_cover_exactly_the_labelled_text(tokenizer, seed):
    (document,) = world.sample(1, seed)
    ((ids, truth),) = world.token_labels([document], tokenizer)
    assert truth.shape == (len(ids), len(world.LABELS)) and ids[0] == 0 and not truth[0].any()
    assert tokenizer.decode(ids[1:]) == document.text
    for label in {span.label for span in document.spans}:
        marked = truth[1:, world.LABELS.index(label)]
        pieces = [tokenizer.decode([i]) for i, mark in zip(ids[1:], marked, strict=True) if mark]
        covered = "".join(pieces)
        for text in document.spans_of(label):
            # Every labelled piece is in the marked tokens. A letter cut between two tokens decodes to a stand-in.
            assert text.strip() in covered or "\ufffd" in covered or not text.strip()


def test_token_labels_of_one_known_sentence(tokenizer):
    text = "When Mary"
    document = world.Document(text, "ioi", [world.Span(5, 9, "name")])
    ((ids, truth),) = world.token_labels([document], tokenizer, ["name", "capital"], bos=False)
    assert [tokenizer.decode([i]) for i in ids] == ["When", " Mary"]
    assert truth.tolist() == [[False, False], [True, False]]
    with pytest.raises(ValueError, match="no label"):
        world.token_labels([document], tokenizer, ["nonsense"])


def test_rows_begin_with_the_end_token_and_a_fresh_document(tokenizer, documents):
    table = world.rows(documents[:500], tokenizer.backend_tokenizer, 64)
    assert table.shape[1] == 64 and (table[:, 0] == 0).all()
    openings = {tokenizer.decode(tokenizer.encode(d.text)[:3]) for d in documents[:500]}
    assert all(tokenizer.decode(row[1:4].tolist()) in openings or 0 in row[1:4] for row in table)


def test_repeated_tokens_repeat():
    tokens = world.repeated_tokens(4, 10, 3584, seed=1)
    assert tokens.shape == (4, 21) and (tokens[:, 0] == 0).all() and (tokens[:, 1:] > 0).all()
    assert torch.equal(tokens[:, 1:11], tokens[:, 11:])
    assert not torch.equal(tokens, world.repeated_tokens(4, 10, 3584, seed=2))


# ---- Prompts. ----
def test_indirect_object_prompts_have_equal_lengths_and_known_answers(tokenizer):
    for template in (0, 2):
        prompts = world.ioi_prompts(20, seed=0, template=template)
        lengths = {len(tokenizer.encode(text)) for p in prompts for text in (p.clean, p.flipped, p.abc)}
        assert len(lengths) == 1
    pairs = {frozenset(pair) for pair in world.HELD_OUT_NAME_PAIRS}
    for held_out in (True, False):
        for p in world.ioi_prompts(40, seed=1, held_out=held_out):
            io, s, third = p.io.strip(), p.s.strip(), p.third.strip()
            assert (frozenset((io, s)) in pairs) == held_out
            assert p.clean.count(s) == 2 and p.clean.count(io) == 1
            assert p.flipped.count(io) == 2 and p.flipped.count(s) == 1
            assert p.abc.count(third) == p.abc.count(io) == p.abc.count(s) == 1
            assert (p.clean.index(io) < p.clean.index(s)) == (p.order == "ABBA")
            assert grammar.parse(p.clean + p.io + ".").kind == "ioi"
            assert grammar.parse(p.abc + p.io + ".").kind is None
    orders = [p.order for p in world.ioi_prompts(40, seed=1)]
    assert orders.count("ABBA") == 20


def test_task_and_fact_prompts():
    for task in world.TASKS:
        for prompt, answer in world.task_prompts(task, 5, 3, seed=0, layout="qa", held_out=True):
            query = prompt.rsplit("Q: ", 1)[1].removesuffix("\nA:")
            assert world.TASKS[task].held_out[query] == answer.strip()
            shots = re.findall(r"Q: (\S+)\nA: (\S+)\n\n", prompt)
            assert len(shots) == 3 and all(world.TASKS[task].seen[x] == y for x, y in shots)
    assert ("The capital of France is", " Paris") in world.fact_prompts("capital")
    assert len(world.fact_prompts("language", held_out_wording=True)) == len(world.COUNTRIES)


@pytest.mark.parametrize(
    "call",
    [
        lambda: world.task_prompts("nonsense", 1, 1, 0),
        lambda: world.task_prompt([], "hot", "nonsense"),
        lambda: world.fact_prompts("nonsense"),
        lambda: world.fact_prompts("continent", held_out_wording=True),
        lambda: world.ioi_prompts(1, 0, template=99),
        lambda: world.ioi_prompts(1, 0, order="AB"),
        lambda: world.country("Atlantis"),
    ],
)
def test_unknown_names_are_refused(call):
    with pytest.raises(ValueError, match="no "):
        call()


def test_a_template_gives_one_pattern_for_repeated_slots():
    template = Template("{name} saw {name}.")
    pattern = re.compile(template.pattern({"name": "(?:Mary|John)"}))
    assert pattern.fullmatch("Mary saw Mary.") and not pattern.fullmatch("Mary saw John.")
    assert slot_type("name2") == "name" and "name" in SLOT_LABELS["recipient"]
