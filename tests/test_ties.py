"""Numbers in the chapters' prose: tied to what was recorded, and none overlooked."""

import re

import pytest

from utils.checks.hints import without_notes
from utils.workbook import SOURCE, WorkbookError, chapter_names
from utils.workbook.build import build_chapter, drift
from utils.workbook.prose import Settings, found, unmarked
from utils.workbook.ties import Places, evaluate, marks, meaning, notes, ours, stale


def source_of(name: str) -> str:
    return (SOURCE / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", chapter_names())
def test_every_number_and_share_in_the_prose_is_tied(name):
    text = source_of(name)
    open_ones = [
        f"{name}.md:{text.count(chr(10), 0, hit.start) + 1}: {hit.words} in “{hit.sentence}”"
        for hit in unmarked(text, Settings(text))
    ]
    assert not open_ones, "tie them in a note `<!-- measured` below (docs/authors.md):\n" + "\n".join(open_ones)


@pytest.mark.parametrize("name", chapter_names())
def test_no_note_reaches_a_learner(name):
    for solved in (False, True):
        cells = build_chapter(SOURCE / f"{name}.md", solved).cells
        assert not [c.source for c in cells if "<!--" in c.source]


# ---------------------------------------------------------------- what must be found

# Sentences that once stood in the chapters and said more than their numbers; titles are in a cell.
FALSE = [
    (
        "10",
        "Four heads' vector does about four fifths of what five examples do, even for new pairs.",
    ),
    ("10", '```python\nfigure.update_layout(title="One head carries most of the task, in all fifteen tasks")\n```'),
    ("10", "Four random heads do nothing, another task's vector next to nothing."),
    ("09", "By the logit difference it is perfect, more than the whole model even."),
    ("09", "The second says *the first two, half and half, and never the third*."),
    ("08", "Nearly every kind, language and task has a latent that fires in its documents and in no others."),
    ("08", "Most labels *are* there, each along a direction of its own."),
    ("08", "They were trained to keep a couple of dozen latents active on each token."),
    ("08", "Both have the same top examples, the same label and nearly the same F1."),
    ("08", "The gradient errs on long ones, because most of that way leads through MLPs."),
    ("06", "Sparse: most serve several features at once, although every feature is handled well."),
    ("05", '```python\nfigure.update_layout(title="Three paths carry the induction, and nothing else does")\n```'),
    ("05", "The score goes from next to nothing to nearly its final height."),
    ("02", "It saves a third of GPT-2 small's parameters."),
]
PLANTED = [
    # in words
    ("00", "With it, the sweep holds a twelfth of what it held before, and a third of the weights stay untouched."),
    ("01", "Two thirds of the words come out as a single token."),
    ("02", "Half of the loss that is left comes from names."),
    ("03", "Nine in ten of the drawn texts end before the limit."),
    ("04", "Almost all neurons are silent on code."),
    ("05", "Two of the three induction heads read the stranger as well."),
    ("06", "In the sparsest model a dozen features share one dimension."),
    ("07", "Hardly any instance loses a feature after that."),
    ("08", "The latents of the last layer explain three times as much as those of the first."),
    ("09", "Without them the answer loses most of its lead."),
    # in digits
    ("01", "Longest match needs 1.37 tokens a word, merging by rank 1.36."),
    ("02", "Shuffled, the loss rises to 6.21 nats."),
    ("03", "Sampled text repeats 7 % of its 4-grams."),
    ("04", "Precision rises to 0.871 where two neurons are read together."),
    ("05", "Head 1.3 puts 0.447 of its attention there."),
    ("06", "The peak lies at 4.93 times the last loss."),
    ("07", "Its mean cosine is +0.38."),
    ("08", "It was active on 1,377 of these tokens."),
    ("09", "The strongest head writes 2.4e-3 of it, and 17 of the 32 heads write less."),
    ("10", "Zero-shot accuracy rises from 0.163 to 0.93."),
]


@pytest.mark.parametrize("name", chapter_names())
@pytest.mark.parametrize("section", [1, -1])
def test_sentences_put_back_or_planted_are_found(name, section):
    sentences = [text for chapter, text in [*FALSE, *PLANTED] if name.startswith(chapter)]
    text = source_of(name)
    at = [m.end() for m in re.finditer(r"^## .*\n", text, re.M)][section]
    planted = "\n".join([text[:at], *(f"{sentence}\n" for sentence in sentences), text[at:]])
    hits = unmarked(planted, Settings(planted))
    for sentence in sentences:
        start = planted.index(sentence, at)
        assert any(start <= hit.start < start + len(sentence) for hit in hits), sentence


def test_twenty_are_planted_ten_of_them_in_words():
    assert len(PLANTED) == 20 and sum(not re.search(r"\d", text) for _, text in PLANTED) == 10


NO_RESULTS = [
    "Chapter 04, section 3: in layer 1 the token at position 40 looks at position 39.",
    "Take `n = 17` and $0.31 x$, or 2 · 0.309² = 0.191; for κ = 1.8 it is (κ - 1) / 2 = 0.4.",
    "It takes 1.5 GB of memory, 90 minutes and 45 seconds.",
    "Elhage and others (2021) and arXiv 2209.10652 say more; nnsight 0.8 has it.",
    "Which share is it, 0.25 or 0.75? Is it half?",
    "If 5 % of the tokens are inside quotes, a neuron that never fires is right 95 % of the time.",
    "Three heads, two layers and one model: five ideas in 12 cells.",
    "The most likely token, at most twice, and half a minute later.",
    "<details>\n<summary>Hint 1: the idea</summary>\n\nA share of 0.37, most of it.\n\n</details>",
    "    0.1  0.2  0.7",
]


@pytest.mark.parametrize("sentence", NO_RESULTS)
def test_what_states_no_result_needs_no_note(sentence):
    assert found(sentence + "\n") == []


def test_a_setting_is_known_by_the_code_of_its_section():
    first = "```python\nimport torch\n```\n\n"
    text = "{first}## 1\n\nA latent counts from 0.35 on.\n\n```python\nfound = x > 0.35\n```\n\n## 2\n\nIt is 0.35.\n"
    section = text.format(first=first)
    assert [hit.sentence for hit in found(section, Settings(section))] == ["It is 0.35."]
    claim = section.replace("found = x > 0.35", 'show.claim("x", x, 0.35, 1, control={})')
    assert len(found(claim, Settings(claim))) == 2
    assert len(found(section.replace("from 0.35 on", "from 0.350 on"), Settings(section))) == 2


# ---------------------------------------------------------------- what a tie means

LINES = [
    "induction score of the best head: 0.9139 (control: not repeated: 0.0122)",
    "0.7 {'zero': '8.19', 'mean': '8.16'}",
]
LINES += ["lost: 12 %", "title | two layers | 3: 0.25", "title | two layers | 4: 0.75"]


def places() -> Places:
    return Places("01_sample", lines={"01": LINES, "02": ["of another chapter: 7"]})


@pytest.mark.parametrize(
    "expression, wanted",
    [
        ('"induction score of the best head: #"', [0.9139]),
        ('"best head: _ (control: not repeated: #"', [0.0122]),
        ("\"0.7 … 'mean': '#\"", [8.16]),
        ('"lost: #"', [0.12]),
        ('"title | two layers | …: #"', [0.25, 0.75]),
        ('max("two layers | …: #") / 3', [0.25]),
        ('1 - "lost: #"', [0.88]),
        ('"02: of another chapter: #"', [7]),
        ('published("Wang and others, 2022: 26")', [26]),
        ('below("two layers | …: #", 0.5)', [0.5]),
    ],
)
def test_a_place_is_looked_up(expression, wanted):
    assert evaluate(expression, places()).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    "expression", ['"not there: #"', '"lost: # #"', "open('x')", '"lost: #" +', 'published("Wang: 26")']
)
def test_a_place_that_is_nowhere_is_refused(expression):
    with pytest.raises(WorkbookError):
        evaluate(expression, places())


@pytest.mark.parametrize(
    "words, right, wrong",
    [
        ("0.914", 0.9139, 0.9146),
        ("12 %", 0.1249, 0.126),
        ("4e-6", 3.968e-6, 4.6e-6),
        ("−0.247", -0.2472, 0.2472),
        ("1,870", 1870, 1871),
        ("half", 0.53, 0.6),
        ("more than half", 0.9, 0.48),
        ("nearly half", 0.485, 0.52),
        ("four fifths", 0.8, 0.95),
        ("at most a third", 0.1, 0.36),
        ("two of the three", 2 / 3, 0.6),
        ("five in six", 0.837, 0.7),
        ("a dozen", 13.9, 16),
        ("most of", 0.51, 0.49),
        ("nearly all", 0.95, 0.8),
        ("hardly any", 0.04, 0.2),
        ("fifteen times as", 14.9, 20),
        ("a third to a fifth", 0.19, 0.5),
    ],
)
def test_words_mean_an_interval(words, right, wrong):
    low, high = meaning(words)
    assert low <= right <= high and not low <= wrong <= high


def test_words_without_a_share_are_refused():
    with pytest.raises(WorkbookError):
        meaning("many a head")


TEXT = """Some text, half of it before.

The best head scores 0.914 (*claim*), half a point more than without, 0.0122.

<!-- measured
0.914 = "induction score of the best head: #"
0.0122 = "best head: _ (control: not repeated: #"
-->
"""


def test_a_number_that_is_recorded_anew_is_named_with_its_sentence():
    assert stale(TEXT, places()) == []
    LATER = [line.replace("0.9139", "0.9271") for line in LINES]
    (said,) = stale(TEXT, Places("01_sample", lines={"01": LATER}))
    assert "“The best head scores 0.914 (*claim*), half a point more than without, 0.0122.”" in said
    assert "0.9271 now" in said


def test_a_tie_without_its_words_and_a_line_of_another_form_are_named():
    assert "doesn't stand above it" in stale(TEXT.replace("scores 0.914", "scores well"), places())[0]
    assert "not of the form" in stale(TEXT.replace('0.914 = "ind', '0.914: "ind'), places())[0]
    assert "can't be looked up" in stale(TEXT.replace("score of the best", "score of the worst"), places())[0]


def test_each_line_ties_one_place():
    assert [hit.words for hit in unmarked(TEXT)] == ["half", "half"]
    twice = TEXT.replace("than without, 0.0122.", "than without, 0.0122. It was 0.914 before.")
    assert [hit.words for hit in unmarked(twice)] == ["half", "half", "0.914"]


def test_drift_names_the_sentence(course):
    source, chapters, solutions, _ = course
    path = source / "01_sample.md"
    note = '\n\nIt is 3.7 now.\n\n<!-- measured\n3.7 = "no such line: #"\n-->\n'
    path.write_text(path.read_text() + note)
    assert any(
        "01_sample.md: “It is 3.7 now.”: 3.7 can't be looked up" in s for s in drift(source, chapters, solutions)
    )


def test_what_holds_for_our_models_only_is_fenced_and_listed():
    fenced = TEXT + "\n<!-- ours\nThe best head scores\n-->\n\n```python\ntitle = 'Heads look back'\n```\n"
    fenced += "\n<!-- ours\nHeads look back\n-->\n"
    assert stale(fenced, places()) == []
    assert [fenced[slice(*at)] for note in notes(fenced) for _, _, at in marks(note)][2:] == [
        "The best head scores",
        "Heads look back",
    ]
    assert "doesn't stand above it" in stale(fenced.replace("'Heads look back'", "'They do'"), places())[0]
    (line,) = (line for line in ours("09") if "That is the simpler rule" in line)
    assert line.startswith("09_ioi.md:")


def test_a_note_is_taken_out_of_the_text():
    assert without_notes(TEXT + "\nMore.\n").endswith("0.0122.\n\nMore.\n")
    assert [note.kind for note in notes(TEXT)] == ["measured"]
