"""Numbers and shares in a chapter's prose that no note ties to what was recorded.

What needs no note is told by rule, from the words around it:

- code, formulas and arithmetic before the reader's eyes; hints; what a picture shows, said for those who don't see it;
- names: chapter 04, section 2, layer 1, position 40, step 3, the year of a paper, the version of a library;
- costs of the reader's time and machine: minutes, GB;
- questions, and what is supposed for the sake of argument (a sentence that begins with If, Suppose, Say, Imagine);
- settings: a number that the code of the same section states (its cells, its exercises' solutions and docstrings), or
  a shape of the models, by their configuration;
- how many things are listed: whole numbers to twelve, unless they say how many of how many.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from utils.workbook import WorkbookError
from utils.workbook.predictions import _titles
from utils.workbook.ties import HOW_MANY, NTHS, SAID, marks, notes, sentence_at

BLANK = "¤"  # in place of what is no prose
FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[ \t]*$", re.M | re.S)
HIDDEN = [
    re.compile(r"\A---\n.*?^---$", re.M | re.S),  # the front matter
    re.compile(r"<!--.*?-->", re.S),
    re.compile(r"<details>\s*<summary>Hint.*?</details>", re.S),
    re.compile(r"^(?: {4,}|\t).*$", re.M),  # blocks of code
    re.compile(r"!\[.*?\]\([^)]*\)", re.S),
    re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$", re.S),
    re.compile(r"``.+?``|`[^`\n]*`"),
    re.compile(r"(?<=\])\([^)\n]*\)"),
    re.compile(r"\[[^\]\n]*chapter[^\]\n]*\]"),
    re.compile(r"<[^>\n]+>"),
    re.compile(r"^#{1,6} (?:\d\d? · )?", re.M),
    re.compile(r"^(?:\d+\.|- \*\*\d+\.\*\*|\*\*\d+\.\*\*|\| \d+)(?= )", re.M),  # what begins an item
    re.compile(r"\barXiv \d{4}\.\d{5}|\*\*\d+\*\*(?= as )"),
]

# ---------------------------------------------------------------- what needs no note

NAMES = (
    "chapters? sections? steps? items? parts? figures? questions? traps? bugs? exercises? cells? hints? layers? heads? "
    "positions? axis axes dimension rows? columns? tokens? latents? neurons? features? places? ids? ranks? numbers? "
    "bytes? characters? index instances? slots? channels? blocks? bits? order query key beams? options? UTF "
    "Unicode float int version Python nnsight torch CUDA transformers Llama lens case level bias task k n d w z S I"
).split()
NAMED = re.compile(rf"\b(?:{'|'.join(NAMES)})[ -]\(?(?:¤+, )*(?:[\d.,]+(?:,| and| or| to|,? then) )*$", re.I)
YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")
COSTS = re.compile(r"\s?(?:[GMk]?B\b|GiB|M\b|hours?\b|minutes?\b|seconds?\b|s\b|ms\b|cores?\b|billion parameters)")
OF_TIME = re.compile(r"^\s(?:an? )?(?:hours?|minutes?|seconds?|of an hour)\b|^ (?:[a-z]+ ){0,3}(?:minutes|hours)\b")
OPERATOR = r"[=≈·×/+−√²³^∞]"
FORMULA = re.compile(rf"(?:{OPERATOR}|\be\^?)\s?[(|]?\s?$")
NAMED_RESULT = re.compile(r"[^\W\d_]{2,}[²\d]?\s?[=≈]\s?$")  # "loss = 0.3" is no formula
FORMULA_AFTER = re.compile(rf"^\s?[)|]?\s?(?:{OPERATOR}|[⁰¹²³⁴⁵⁶⁷⁸⁹°]|-dimensional)")
SUPPOSED = re.compile(r"^[*(“¤\d.\s]*(?:If|Suppose|Say|Imagine|Take|Throw|Let)\b")
SEVERAL = 12  # up to which a whole number says how many things are listed

# ---------------------------------------------------------------- shares in words

_NOUN = r"(?!(?:is|was|has|does|its|this|less|always|others)\b)[a-z-]+s"
_THING = "feature|head|latent|neuron|label|instance|model|pair|task|text|word|layer|arrow|direction|prompt"
_NTH = "|".join([*NTHS, "twentieth", "fiftieth", "hundredth", "thousandth"])
_FEW = "nearly|almost|hardly|practically|virtually"
_WHAT = r"all|every\w*|none|nothing|any\w*|ever|always|never|no|the whole|the same|half|a"
_THAN = "as|that|what|the|their|its|more|less|larger|better|longer|smaller|worse|rarer|of"
_ALL = "the|its|our|these|those|all"
_AFTER = r"(?= (?:of|as|at|in|to a|more|less|wrong|is|are)\b|[.,;:)?])"
SHARES = [
    re.compile(p, re.I)
    for p in (
        rf"\b(?:(?:{HOW_MANY}) )?(?:{_NTH})s\b",
        rf"\b(?:(?:two|three|four|one|ten) and )?(?:a|one|every|another|ten) (?:{_NTH})\b{_AFTER}",
        r"\b(?:a-|ten-)thousandth\b",
        r"(?<!first )(?<!second )(?<!other )(?<!one )(?<!this )(?<!each )(?<!same )(?<!which )\bhalf\b(?!-)",
        r"\bhal(?:ves|ved|ving)\b",
        r"\b(?:couple of )?dozens?\b",
        rf"\b(?:{HOW_MANY}) in (?:a |one )?(?:ten|hundred|thousand|{HOW_MANY})\b",
        rf"(?<!at )(?<!the )\bmost (?:of(?= \w)|others\b|{_NOUN}\b)|\bmajority\b|\bmostly\b",
        rf"(?-i:\bMost)(?: [a-z]+)? {_NOUN}\b",
        r"(?<!at )(?<!the )(?<!what )(?<!which )\bmost(?=[.,;:])",
        r"(?:(?<=[:;,] )|(?<=\band ))most(?= [a-z]+\b)",
        rf"\b(?:{_FEW}) (?:{_WHAT})\b",
        r"\bnext to (?:nothing|none|no)\b",
        r"\b(?:nothing|nobody|no other [a-z]+) else (?:does|do|is|was|has|helps|matters|carries|counts|changes)\b",
        r"\bin no others?\b|\bmore than the whole\b",
        rf"\bevery (?:single )?(?:{_THING}) (?:is|was|does|gets|keeps|finds)\b",
        rf"\b(?:twice|double|(?:{HOW_MANY}|(?<![\d.,])\d[\d.,]*) times|[a-z]+fold) (?:{_THAN})\b",
        rf"(?<![\d.,])\b(?:{HOW_MANY}|\d+) (?:out )?of (?:(?:{_ALL}) )?(?:other )?(?:{HOW_MANY}|\d+)\b(?![,.]\d)",
        r"\bper ?cent\b",
    )
]
SELECTED = re.compile(r"^(?:one|a|an|no|1|0) (?:[a-z]+ )?(?:out )?of\b|^(?:a|one) (?:in|of) (?:one|a)\b|^a half$", re.I)
REPEATED = re.compile(r"^(?:[a-z]+|\d+)(?: [a-z]+)? (?:in|of) (?:a|an|no|one)\b", re.I)  # "three in a text" is no share


@dataclass(frozen=True)
class Found:
    """A number or a share in the prose of a source: where it stands, and the sentence."""

    start: int
    end: int
    words: str
    sentence: str


def prose(source: str) -> str:
    """The source as long as it is, with everything blanked that is no prose: code, formulas, hints, addresses."""

    def blank(match: re.Match) -> str:
        return re.sub(r"\S", BLANK, match[0])

    text = FENCE.sub(blank, source)
    for pattern in HIDDEN:
        text = pattern.sub(blank, text)
    return text


def found(source: str, settings: "Settings | None" = None) -> list[Found]:
    """Every number and share in a source that a note has to tie, in their order."""
    text = prose(source)
    hits = []
    for start, end in _sentences(text):
        here = text[start:end]
        if here.rstrip(' *)_¤”"\n').endswith("?") or SUPPOSED.match(here) or "> **Predict" in here:
            continue
        one_line = re.sub(r"\s", " ", here)
        hits += [(start + a, start + b) for a, b in _shares(one_line)]
        known = settings.at(start) if settings else frozenset()
        taken = {k for a, b in hits for k in range(a, b)}
        hits += [(start + a, start + b) for a, b in _numbers(one_line, known) if not {start + a, start + b - 1} & taken]
    hits += [place for cell in FENCE.finditer(source) for place in _in_titles(cell)]
    return [Found(a, b, re.sub(r"\s", " ", source[a:b]), sentence_at(source, a, b)) for a, b in sorted(set(hits))]


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    breaks = [
        0,
        *(m.end() for m in re.finditer(r"\n\s*\n|\n(?=[-|>¤] )|(?<=[.?!])[*)”\"]*\s+(?=[A-Z¤(*“_\d])", text)),
        len(text),
    ]
    yield from ((a, b) for a, b in pairwise(breaks) if text[a:b].strip())


def _shares(text: str) -> Iterator[tuple[int, int]]:
    for pattern in SHARES:
        for m in pattern.finditer(text):
            listed = SELECTED.match(m[0]) or REPEATED.match(m[0])
            if (
                not listed
                and not OF_TIME.match(text[m.end() :])
                and not re.search(r"minutes? and a $", text[: m.start()])
            ):
                yield m.span()


def _numbers(text: str, known: frozenset[float]) -> Iterator[tuple[int, int]]:
    for m in SAID.finditer(text):
        before, after = text[: m.start()], text[m.end() :]
        digits = re.sub(r"\s?%|\s(?:million|billion)|,", "", m[0]).replace("−", "-").lstrip("+-")
        whole, value = digits.isdigit(), float(digits)
        if whole and not m[1] and (value <= SEVERAL or NAMED.search(before) or YEAR.fullmatch(digits)):
            continue
        if re.search(r"\bsections? [\d., and]*$|\b(?:nnsight|sae_lens|Llama|Python|version|lens) $", before):
            continue
        formula = (FORMULA.search(before) and not NAMED_RESULT.search(before)) or FORMULA_AFTER.match(after)
        if COSTS.match(after) or formula:
            continue
        # What was printed has another form than what is written into code: "0.500", "+0.5".
        written = m[0][0].isdigit() and digits == f"{value:g}" or whole
        if not (written and {value, value / 100 if m[1] else value} & known):
            yield m.span()


def _in_titles(cell: re.Match) -> Iterator[tuple[int, int]]:
    """Shares and numbers in the titles that a cell's code fixes."""
    code = cell[0].partition("\n")[2].rpartition("\n")[0]
    try:
        titles = [t for t in _titles(ast.parse(code)) if t]
    except SyntaxError:
        return
    for title in titles:
        for a, b in [*_shares(title), *_numbers(title, frozenset())]:
            at = cell[0].find(title[a:b], max(0, cell[0].find(title[:20])))
            if at >= 0:
                yield cell.start() + at, cell.start() + at + b - a


# ---------------------------------------------------------------- settings


class Settings:
    """The numbers that the code of each section states, its claims' and grades' left out."""

    def __init__(self, source: str):
        from utils.workbook.build import solution_code  # which imports this module's neighbour

        starts = [0, *(m.start() for m in re.finditer(r"^## ", prose(source) and source, re.M)), len(source)]
        self.sections, first = [], None
        for a, b in pairwise(starts):
            stated = set()
            for cell in FENCE.finditer(source, a, b):
                head, _, code = cell[0].partition("\n")
                if target := re.search(r'exercise="([\w.]+)"', head):
                    try:
                        code = solution_code(target[1])
                    except WorkbookError:
                        code = ""
                numbers = _stated(code.rpartition("\n```")[0] or code)
                stated |= numbers
                first = numbers if first is None else first
            self.sections.append((a, b, stated))
        self.always = first or set()

    def at(self, place: int) -> frozenset[float]:
        return frozenset(self.always.union(*(known for a, b, known in self.sections if a <= place < b)))


@cache
def _stated(code: str) -> frozenset[float]:
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return frozenset()
    results = ("claim", "identity", "finding", "grade", "expect", "check")
    aside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in results
        for part in ast.walk(node)
    }
    numbers = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in aside:
            if type(node.value) in (int, float):
                numbers.add(abs(float(node.value)))
            elif isinstance(node.value, str):
                numbers |= {
                    float(m[0].replace(",", ""))
                    for m in re.finditer(r"\d[\d,]*(?:\.\d+)?", node.value)
                    if m[0][-1] != ","
                }
    return frozenset(numbers)


# ---------------------------------------------------------------- what a source lacks


def unmarked(source: str, settings: Settings | None = None) -> list[Found]:
    """The numbers and shares of a source that stand in no note below them."""
    marked = {k for note in notes(source) for _, _, at in marks(note) if at for k in range(*at)}
    return [hit for hit in found(source, settings) if not set(range(hit.start, hit.end)) <= marked]
