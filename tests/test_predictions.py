"""Predictions: guesses of every kind, pairs in the sources, what gives an answer away, guesses kept by an update."""

import json
import lzma
from pathlib import Path

import nbformat
import pytest
import torch
from small_course import SOURCE as SAMPLE

from utils.checks import guesses as module
from utils.checks.guesses import expect, grade, guesses
from utils.workbook import CHAPTERS, SOLUTIONS, WorkbookError, chapter_names, delivery, learner
from utils.workbook.build import build, read_notebook
from utils.workbook.predictions import PREDICT, Prediction, answers, predictions, spoilers

# ---------------------------------------------------------------- what a learner sees


@pytest.fixture(autouse=True)
def no_guesses(monkeypatch):
    monkeypatch.setattr(module, "_guesses", {})
    monkeypatch.setattr(module, "_measured", {})


def graded(capsys, guess, measured, within=None) -> str:
    """The last line's sign: ✓, ✗ or nothing."""
    expect("q", guess)
    grade("q", measured, within)
    said = capsys.readouterr().out
    assert said.startswith("q\n  your guess: ") and said.count("\n") == 3
    return said.strip()[-1] if said.strip()[-1] in "✓✗" else ""


class Odd:
    def __eq__(self, other):
        raise RuntimeError("no")

    def __str__(self):
        raise RuntimeError("no")

    __repr__, __hash__ = __str__, None


@pytest.mark.parametrize(
    ("guess", "measured", "sign"),
    [
        (4, 4, "✓"), (3, 4, "✗"), (4.0, 4, "✓"), ("4", 4, "✓"), ("about 4", 4, "✓"), ("a few", 4, ""),
        (10**400, 4, "✗"),
        (0.52, 0.5, "✓"), (0.6, 0.5, "✗"), ("50 %", 0.5, "✓"), (float("nan"), 0.5, "✗"),
        (torch.tensor(0.5), 0.5, "✓"),
        (1, torch.tensor(1), "✓"), ("Yes", "yes", "✓"), (True, "yes", "✓"), ("no", "yes", "✗"), ("yes!", "yes", "✓"),
        ("I think so", "yes", ""), ("mlp", "MLP", "✓"), ("first the keys", "keys", ""), ("`Ġt`", "Ġt", "✓"),
        ([1, 3], (1, 3), "✓"), ([1, 2], [1, 3], "✗"), ([1], [1, 3], ""), (3, [1, 3], ""), ({"a": 1}, 4, ""),
        (None, 4, ""), (lambda: 1, 4, ""), (Odd(), 4, ""), (b"4", "4", ""), (1j, 1.0, ""), ([[]], [1], ""),
    ],
)  # fmt: skip
def test_a_guess_of_any_kind_stands_beside_the_measurement(guess, measured, sign, capsys):
    assert graded(capsys, guess, measured) == sign
    guesses()


def test_how_near_is_near_enough(capsys):
    assert graded(capsys, 5, 7, within=2) == "✓" and graded(capsys, 4, 7, within=2) == "✗"


def test_several_guesses_without_brackets_are_a_list(capsys):
    expect("sizes", 3, 6)
    grade("sizes", [3, 6])
    assert "your guess: 3, 6\n  measured:   3, 6  ✓" in capsys.readouterr().out


@pytest.mark.parametrize("dots", [(...,), ("...",), ("…",), ("",), (" . . .",), (), ([...],)])
def test_dots_are_no_guess_and_undo_none(dots, capsys):
    expect("q", *dots)
    grade("q", 2)
    assert "your guess: none yet\n  measured:   2\n" in capsys.readouterr().out
    expect("q", 3)
    expect("q", *dots)
    grade("q", 2)
    assert "your guess: 3\n" in capsys.readouterr().out


def test_an_answer_run_before_its_question_says_so_and_goes_on(capsys, monkeypatch):
    grade("q", 2)
    said = capsys.readouterr().out
    assert "run the cell under the question first" in said and "2" not in said
    expect("q", "more | <b>")
    expect("other", 1)
    shown = []
    monkeypatch.setattr(module, "display", lambda view: shown.append(view.data))
    guesses()
    assert shown[0].splitlines()[2:] == ["| q | more \\| &lt;b> | 2 |", "| other | 1 |  |"]


# ---------------------------------------------------------------- pairs in a source

PAIR = """
> **Predict.** How many?

```python
expect("how many", ...)
```

Then:

```python folded=true rtol=0.2 why="an example"
grade("how many", 7)
```

**What you should see.** Seven. It is
a lot.

More.

```python
guesses()
```
"""


def paired(course, text: str):
    source, *others = course
    (source / "01_sample.md").unlink()
    (source / "21_sample.md").write_text((SAMPLE + text).replace("# 01 ·", "# 21 ·"))
    for folder in others[:2]:
        (folder / "01_sample.ipynb").unlink()
    build(source, *others[:2])
    return [read_notebook(folder / "21_sample.ipynb") for folder in others[:2]]


def test_a_pair_is_built_with_its_answer_folded(course):
    mine, solved = paired(course, PAIR)
    (asked,) = [p for p in predictions(mine.cells, "21_sample")]
    assert (asked.name, asked.question) == ("how many", "> **Predict.** How many?")
    assert mine.cells[asked.answered].metadata.jupyter == {"source_hidden": True}
    assert "jupyter" not in solved.cells[asked.answered].metadata
    tolerance = {"rtol": 0.2, "why": "as in the cells that measure"}
    tables = [cell for notebook in (mine, solved) for cell in notebook.cells if cell.source == "guesses()"]
    assert [table.metadata.tolerance for table in tables] == [tolerance] * 2
    see = mine.cells[asked.answered + 1].source
    assert see == "<details>\n<summary>What you should see</summary>\n\nSeven. It is\na lot.\n\n</details>"
    assert mine.cells[asked.answered + 2].source == "More."


ASK = '```python\nexpect("how many", ...)\n```\n'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((ASK, ""), "must be followed at once by its cell"),
        (("\n" + ASK, "\nText.\n\n" + ASK), "must be the last paragraph"),
        (('grade("how many", 7)', "7"), "no later cell answers 'how many'"),
        (('grade("how many", 7)', 'grade("how much", 7)'), "'how much' is not predicted before"),
        (("Then:", '```python\ngrade("how many", 6)\n```'), "is answered twice"),
        (("> **Predict.** How many?", "How many?"), "right behind its question"),
        (('expect("how many", ...)', 'expect("how many", 7)'), "must be followed at once"),
        (('expect("how many", ...)', 'x = 1\nexpect("how many", ...)'), "must be followed at once"),
        (('expect("how many", ...)', 'expect("how many", ...)\nexpect("how many", ...)'), "is predicted twice"),
        (('expect("how many", ...)', "expect(name, ...)"), "must begin with a text in quotes"),
        (("guesses()", "1"), "`guesses()`, the table of all predictions, must stand behind"),
        (("folded=true", "folded=1"), "write folded=true"),
    ],
)
def test_half_a_pair_is_refused(course, change, said):
    assert change[0] in PAIR
    with pytest.raises(WorkbookError, match=said.replace("(", r"\(").replace(")", r"\)")):
        paired(course, PAIR.replace(*change))


# ---------------------------------------------------------------- what gives the answer away


def cells_of(*cells) -> list:
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    return [make[kind](text) for kind, text in cells]


def spoiled(question: str, *cells, answer: str = "") -> list[str]:
    made = cells_of(("markdown", question), ("code", 'expect("q", ...)'), *cells)
    return spoilers(made, Prediction("q", question, 1, len(made) - 1), answer)


SPOILED = json.loads(lzma.decompress((Path(__file__).parent / "fixtures" / "spoiled_predictions.json.xz").read_bytes()))


@pytest.mark.parametrize(("chapter", "question", "cells"), SPOILED, ids=[s[0] for s in SPOILED])
def test_the_pairs_that_were_spoiled_are_found(chapter, question, cells):
    assert spoiled(question, *cells)


def test_there_are_as_many_samples_as_were_found_by_reading():
    assert len(SPOILED) >= 41


@pytest.mark.parametrize(
    ("question", "code", "answer", "said"),
    [
        ("How many heads?", 'show.bars(x, title="Three heads copy")', "", "title"),
        ("How many heads?", 'show.bars(x, title=f"{n} heads copy all")', "", "title"),
        ("How many heads?", 'fig.update_layout(title=dict(text="Few copy"))', "", "title"),
        ("How many heads?", 'title = "Few copy"', "", "title"),
        ("How many heads?", 'go.Figure(layout={"title": "Few copy"})', "", "title"),
        ("How many heads?", 'show.claim("heads", n, 3, 5, control="0")', "", "bounds"),
        ("How many heads?", "assert n == 3", "3", "number 3"),
        ("How many heads?", 'print("here are 3 heads")', "3", "3"),
        ("How many heads?", 'print("here are three heads")', "3", "3"),
        ("How many heads?", "n = 3.0001  # to compare", "3", "number 3"),
        ("What share?", "x = 1  # it is 95 %", "0.948", "0.95"),
        ("What share?", "near = x > 0.95", "0.948", "0.95"),
        ("Which head?", "x = 1  # the previous-token head", "previous-token head", "previous"),
        ("Which head?", 'rows = {"Induction": 1}', "induction", "induction"),
    ],
)
def test_what_gives_it_away_is_named(question, code, answer, said):
    assert said in " ".join(spoiled(question, ("code", code), answer=answer))
    text = ("markdown", f"<details>\n{code}\n</details>\nGo on.")
    assert not spoiled(question, text, ("code", "1"), answer=answer)


@pytest.mark.parametrize(
    ("question", "code", "answer"),
    [
        ("How many heads copy?", 'show.bars(x, title="Heads, copy")', "3"),
        ("How many of 3 heads?", 'print("of 3 heads")', "3"),
        ("attention or mlp?", 'grade("q", "attention" if a > b else "mlp")', "attention"),
        ("How many?", 'show.bars(x, title=found(x))\ntitle = "This" if x else "That"', "3"),
        ("How many?", "x[3]\nseed_everything(3)\nfor i in range(7): pass", "3"),
        ("What share?", "x = 0.7", "0.95"),
    ],
)
def test_what_tells_nothing_is_let_pass(question, code, answer):
    assert not spoiled(question, ("code", code), answer=answer)


@pytest.mark.parametrize("name", chapter_names())
def test_no_prediction_is_spoiled(name):
    mine, solved = (read_notebook(folder / f"{name}.ipynb") for folder in (CHAPTERS, SOLUTIONS))
    made = predictions(mine.cells, name)
    assert len(made) >= mine_questions(mine) > 0
    for p in made:
        answer = answers(solved.cells[p.answered])
        assert p.name in answer, f"{p.name}: its answer is not recorded as `grade` prints it"
        assert not (said := spoilers(mine.cells, p, answer[p.name])), f"{name}, {p.name!r} is given away by: {said}"


def mine_questions(notebook) -> int:
    return sum(PREDICT in c.source for c in notebook.cells if c.cell_type == "markdown")


# ---------------------------------------------------------------- an update


def test_an_update_keeps_guesses_and_what_was_opened(course):
    source, chapters, _, work = course
    paired(course, PAIR)
    delivery.start(chapters, work)
    copy = work / "21_sample.ipynb"
    notebook = read_notebook(copy)
    (p,) = predictions(notebook.cells, "21_sample")
    guess, answer = notebook.cells[p.asked], notebook.cells[p.answered]
    guess.source = (
        'expect(\n    "how many",\n    "a handful, as in the figure before, and not one of them in the first layer",\n)'
    )
    guess.metadata, guess.id = {}, "anew"  # an editor that drops what it doesn't know
    nbformat.write(notebook, copy)
    text = (source / "21_sample.md").read_text()
    (source / "21_sample.md").write_text(text.replace("How many?", "How many, roughly?").replace("Then:", "And then:"))
    build(source, chapters, course[2])
    learner.update(chapters=chapters, work=work)
    cells = read_notebook(copy).cells
    assert [c.source for c in cells if "expect(" in c.source] == [guess.source]
    at = next(k for k, c in enumerate(cells) if c.source == guess.source)
    assert cells[at - 1].source == "> **Predict.** How many, roughly?" and cells[at + 1].source == "And then:"
    folded = next(c for c in cells if c.source == answer.source)
    assert folded.metadata.jupyter == {"source_hidden": True}
    notebook = read_notebook(copy)
    del next(c for c in notebook.cells if c.source == answer.source).metadata["jupyter"]  # JupyterLab, once opened
    nbformat.write(notebook, copy)
    (source / "21_sample.md").write_text(text)
    build(source, chapters, course[2])
    learner.update(chapters=chapters, work=work)
    assert "jupyter" not in next(c for c in read_notebook(copy).cells if c.source == answer.source).metadata
    assert learner.update(chapters=chapters, work=work) == ["21_sample: up to date."]


def test_a_prediction_that_asks_more_stands_above_the_guess(course):
    source, chapters, _, work = course
    paired(course, PAIR)
    delivery.start(chapters, work)
    copy = work / "21_sample.ipynb"
    copy.write_text(copy.read_text().replace('expect(\\"how many\\", ...)', 'expect(\\"how many\\", 5)'))
    more = 'expect("how many", ...)\nexpect("where", "...")'
    text = (source / "21_sample.md").read_text().replace('expect("how many", ...)', more)
    (source / "21_sample.md").write_text(
        text.replace('grade("how many", 7)', 'grade("how many", 7)\ngrade("where", "here")')
    )
    build(source, chapters, course[2])
    learner.update(chapters=chapters, work=work)
    assert [c.source for c in read_notebook(copy).cells if "expect(" in c.source] == [more, 'expect("how many", 5)']
