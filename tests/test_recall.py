"""Questions to recall: as many answers as questions, and every number in an answer was recorded."""

import re

import pytest

from utils.workbook import SOLUTIONS, SOURCE, chapter_names
from utils.workbook.build import read_notebook

RECALL = re.compile(
    r"^\*\*Recall\.\*\*.*?\n(?P<questions>1\. .*?)\n+"
    r"<details>\n<summary>Answers</summary>\n+(?P<answers>.*?)\n+</details>",
    re.M | re.S,
)
NUMBER = re.compile(r"(?<![\d.])\d+\.\d+(?!\d|\.\d)")
COMPUTED = re.compile(r"[=≈√·]")  # in a sentence that computes a number before the reader's eyes


def recalls(source: str) -> list[re.Match]:
    return list(RECALL.finditer(source))


def items(text: str) -> list[str]:
    return re.split(r"^\d\. ", text, flags=re.M)[1:]


def recorded(name: str) -> list[float]:
    """All numbers that a solved notebook prints or states in a title, without their signs."""
    shown = []
    for cell in read_notebook(SOLUTIONS / f"{name}.ipynb").cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            figure = data.get("application/vnd.plotly.v1+json", {}).get("layout", {}).get("title", "")
            shown += [str(output.get("text", "")), str(data.get("text/html", "")), str(figure)]
    return [float(n) for n in re.findall(r"\d+(?:\.\d+)?", "\n".join(shown))]


def unrecorded(answer: str, known: list[float], text: str) -> list[str]:
    """The numbers of an answer that nothing has measured: not recorded, not in the chapter's text, not computed."""
    said = []
    for sentence in re.split(r"(?<=[.:?])\s", answer):
        for number in [] if COMPUTED.search(sentence) else NUMBER.findall(sentence):
            last_place = 10.0 ** -len(number.partition(".")[2])
            near = (abs(scale * n - float(number)) <= 0.51 * last_place for n in known for scale in (1, 0.01))
            if number not in text and not any(near):
                said.append(number)
    return said


@pytest.mark.parametrize("name", chapter_names())
def test_each_question_has_an_answer_and_each_number_was_recorded(name):
    source = (SOURCE / f"{name}.md").read_text(encoding="utf-8")
    blocks, text = recalls(source), RECALL.sub("", source)
    assert len(blocks) == source.count("**Recall.**")
    known = {n: recorded(n) for n in chapter_names() if n[:2] == name[:2] or f"chapter {n[:2]}" in source}
    for block in blocks:
        questions, answers = items(block["questions"]), items(block["answers"])
        assert 2 <= len(questions) <= 3 and len(answers) == len(questions), questions[:1]
        for answer in answers:
            here = [n for c in known if c == name or f"chapter {c[:2]}" in answer for n in known[c]]
            assert not unrecorded(answer, here, text), answer


def test_a_number_that_nobody_measured_is_found():
    assert unrecorded("It falls to 0.123 (claim).", [0.1234, 5], "") == []
    assert unrecorded("It falls to 0.123 (claim).", [0.1243, 5], "") == ["0.123"]
    assert unrecorded("12.3 % of it.", [12.3], "") == unrecorded("0.123 of it.", [12.3], "") == []
    assert unrecorded("2 · 0.31 = 0.62. Then 0.77.", [], "as 0.76") == ["0.77"]
