"""Predictions in a chapter: that each has its answer, and that nothing seen before it is run gives the answer away.

In the source a prediction is a question, a cell with the guess, and later a cell that measures:

    > **Predict.** How many bytes are `cat` and `🍌`?

    ```python
    expect("bytes of 🍌", ...)
    ```

    ```python folded=true
    grade("bytes of 🍌", len("🍌".encode()))
    ```

`folded=true` hides the source of a cell whose code would tell.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from utils.workbook import WorkbookError

PREDICT = "> **Predict"
SEE = re.compile(r"^\*\*What you should see\.\*\* *(.+?)(?=\n\n|\Z)", re.M | re.S)
DETAILS = re.compile(r"<details>.*?</details>", re.S)
NUMBER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)(?!\w|\.\d)(\s?%)?")
COUNTED = {w: n for n, w in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}
ANSWER = re.compile(r"^(.+)\n  your guess: .*\n  measured:   (.+)$", re.M)
SHORT = 4  # letters from which on a word says something
NEAR = 0.02  # a number that is off by this share still tells it


@dataclass
class Prediction:
    """One guess: what `expect` and `grade` call it, its question, and the two cells' places among the chapter's."""

    name: str
    question: str
    asked: int
    answered: int


def folded(text: str) -> str:
    """The text with each paragraph "What you should see" folded."""
    return SEE.sub(r"<details>\n<summary>What you should see</summary>\n\n\1\n\n</details>", text)


def calls(source: str, *names: str) -> Iterator[ast.Call]:
    """The calls of these functions in a cell; none where it can't be parsed."""
    if not any(f"{name}(" in source for name in names):
        return
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def names_of(source: str, function: str) -> list[str]:
    """What the calls of `expect` or `grade` in a cell name first.

    Raises:
        WorkbookError: a call names nothing in quotes.
    """
    found = []
    for call in calls(source, function):
        if not call.args or not isinstance(call.args[0], ast.Constant) or not isinstance(call.args[0].value, str):
            raise WorkbookError(f"`{ast.unparse(call)}` must begin with a text in quotes, what is predicted.")
        found.append(call.args[0].value)
    return found


def predictions(cells: list, chapter: str) -> list[Prediction]:
    """The predictions of one notebook, in their order.

    Raises:
        WorkbookError: a question has no cell for its guess, a guess no question or no answer, or the table is missing.
    """
    found: dict[str, Prediction] = {}
    table = None
    for k, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            question = _question(cell.source, chapter)
            if question and not (k + 1 < len(cells) and _is_guess(cells[k + 1])):
                raise WorkbookError(
                    f"{chapter}: “{question[:60]}…” must be followed at once by its cell `expect(…, ...)`."
                )
            continue
        for name in names_of(cell.source, "expect"):
            question = k and cells[k - 1].cell_type == "markdown" and _question(cells[k - 1].source, chapter)
            if not question or not _is_guess(cell):
                raise WorkbookError(
                    f"{chapter}: `expect({name!r}, …)` must stand in a cell of nothing but such calls, each with ... "
                    f'or "..." for the guess, right behind its question `{PREDICT}.** …`.'
                )
            if name in found:
                raise WorkbookError(f"{chapter}: {name!r} is predicted twice: give one of the two another name.")
            found[name] = Prediction(name, question, k, 0)
        for name in names_of(cell.source, "grade"):
            if name not in found or found[name].answered:
                why = "is answered twice" if name in found else "is not predicted before"
                raise WorkbookError(f"{chapter}: {name!r} {why}: each prediction has one expect and one grade.")
            found[name].answered = k
        table = k if list(calls(cell.source, "guesses")) else table
    if missing := [p.name for p in found.values() if not p.answered]:
        raise WorkbookError(f"{chapter}: no later cell answers {missing[0]!r}: it needs `grade({missing[0]!r}, …)`.")
    if found and (table is None or table <= max(p.answered for p in found.values())):
        raise WorkbookError(f"{chapter}: `guesses()`, the table of all predictions, must stand behind the last answer.")
    return list(found.values())


def _question(text: str, chapter: str) -> str | None:
    """The prediction that a text ends with; it may stand nowhere else."""
    if PREDICT not in text:
        return None
    last = text.rstrip().rpartition("\n\n")[2]
    if text.count(PREDICT) > 1 or not last.startswith(PREDICT):
        raise WorkbookError(f"{chapter}: “{text[text.index(PREDICT) :][:60]}…” must be the last paragraph of its text.")
    return last


def _is_guess(cell) -> bool:
    """Whether the cell holds nothing but calls of `expect`, each with its guess still open."""
    try:
        made = [getattr(node, "value", None) for node in ast.parse(cell.source).body]
    except SyntaxError:
        return False
    return cell.cell_type == "code" and bool(made) and all(map(_is_open, made))


def _is_open(node) -> bool:
    """Whether it is a call of `expect` with a guess still to be made."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "expect" or len(node.args) != 2:
        return False
    guesses = node.args[1].elts if isinstance(node.args[1], ast.List) else [node.args[1]]
    return all(isinstance(g, ast.Constant) and g.value in (..., "...") for g in guesses)


# ---------------------------------------------------------------- what gives an answer away


def spoilers(cells: list, prediction: Prediction, answer: str = "") -> list[str]:
    """What is visible between a prediction and its answer before that is run, and tells it; empty where nothing does.

    Hints and other `<details>` are folded, and cells with `source_hidden`. What stands in the question tells nothing.

    Args:
        cells: the learner's notebook.
        answer: what was measured, as the solved notebook has it.
    """
    said, asked = [], _Words(prediction.question + "\n" + cells[prediction.asked].source)
    told = _Words(answer)
    for cell in cells[prediction.asked + 1 : prediction.answered + 1]:
        if cell.cell_type == "markdown":
            said += [f"“{word}” in the text" for word in told.in_text(DETAILS.sub("", cell.source), asked)]
        elif not cell.metadata.get("jupyter", {}).get("source_hidden"):
            tree = ast.parse(cell.source)
            said += [f"the title {title!r}" for title in _titles(tree) if _Words(title).says_more_than(asked)]
            said += [f"the bounds of {ast.unparse(c)[:60]!r}" for c in ast.walk(tree) if _is_claim(c)]
            texts, numbers = _texts(cell.source, tree), _numbers(tree)
            said += [f"“{word}” in the code" for word in told.in_text(texts, asked)]
            said += [f"the number {n:g} in the code" for n in numbers if told.has(n) and not asked.has(n)]
    return said


class _Words:
    """The words and numbers of a text; "three" is a number, and 95 % is also 0.95."""

    def __init__(self, text: str):
        self.words = {w.casefold() for w in re.findall(r"[^\W\d_]+", text)}
        self.numbers = [float(COUNTED[w]) for w in self.words & COUNTED.keys() - {"one"}]
        for m in NUMBER.finditer(text):
            value = float(m[1])
            self.numbers += [value, value / 100] if m[2] else [value]

    def has(self, number: float) -> bool:
        """Whether the number stands there, or one so near that it tells it."""
        whole = number == int(number)
        return any(
            x == number or not (whole and x == int(x)) and abs(x - number) <= NEAR * abs(number) for x in self.numbers
        )

    def says_more_than(self, other: "_Words") -> bool:
        stems = {w[:SHORT] for w in other.words}
        words = (w for w in self.words - COUNTED.keys() if len(w) >= SHORT and w[:SHORT] not in stems)
        return any(words) or not all(map(other.has, self.numbers))

    def in_text(self, text: str, asked: "_Words") -> list[str]:
        """What of this stands in a text and not in the question."""
        there = _Words(text)
        words = {w for w in self.words & there.words - asked.words - COUNTED.keys() if len(w) >= SHORT}
        numbers = {n for n in there.numbers if self.has(n) and not asked.has(n)}
        return [*sorted(words), *(f"{n:g}" for n in sorted(numbers))]


def _is_claim(node) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("claim", "finding")


def _titles(tree) -> Iterator[str]:
    """The literal titles in a cell; one that is chosen by what was measured is none."""
    for node in ast.walk(tree):
        named = {}
        if isinstance(node, ast.Call):
            named = {k.arg: k.value for k in node.keywords}
        elif isinstance(node, ast.Dict):
            named = {k.value: v for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)}
        elif isinstance(node, ast.Assign):
            named = {ast.unparse(node.targets[0]): node.value}
        for name, value in named.items():
            if name in ("title", "title_text"):
                parts = [k.value for k in value.keywords if k.arg == "text"] if isinstance(value, ast.Call) else [value]
                yield from filter(None, map(_constant, parts))


def _constant(node) -> str:
    """The text that is fixed in a string, an f-string or a sum of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return " ".join(filter(None, map(_constant, node.values)))
    if isinstance(node, ast.BinOp):
        return _constant(node.left) + _constant(node.right)
    return ""


def _texts(source: str, tree) -> str:
    """The strings and comments of a cell."""
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return "\n".join(comments + strings)


def _numbers(tree) -> list[float]:
    """The numbers written in a cell; a single digit counts only where something is compared with it."""
    compared = {id(c) for node in ast.walk(tree) if isinstance(node, ast.Compare) for c in ast.walk(node)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and type(node.value) in (int, float)
        and (id(node) in compared or isinstance(node.value, float) or node.value > 9)
    ]


def answers(cell) -> dict[str, str]:
    """What the recorded run of a cell measured, by what it was called."""
    text = "".join("".join(o.text) for o in cell.outputs if o.output_type == "stream")
    return dict(ANSWER.findall(text))
