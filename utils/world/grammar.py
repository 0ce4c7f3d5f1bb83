"""Whether a text is a document of the world: a parser written apart from the generators.

It judges form and coherence (who gives to whom, brackets that close, refrains that return, names that were introduced,
code that Python accepts), not truth: "The capital of France is Rome." parses.
"""

import ast
import re
from collections.abc import Callable
from typing import NamedTuple

from utils.world import templates as T
from utils.world.document import Template
from utils.world.kinds import BRACKETS, FILLINGS, QUALITIES, TRAITS
from utils.world.lexicon import (
    COUNTRIES,
    FUNCTION_TAILS,
    FUNCTIONS,
    MONTHS,
    NOUNS,
    NUMBER_WORDS,
    SYLLABLES,
    THINGS,
    VARIABLES,
    VERBS,
)
from utils.world.tasks import LAYOUTS, TASKS, WORDS


class Parse(NamedTuple):
    """`kind`: the kind of document the text is, None if it is none; `problem`: what is wrong with the likeliest."""

    kind: str | None
    problem: str | None


def _one_of(words) -> str:
    return "(?:" + "|".join(re.escape(w) for w in sorted(set(words), key=lambda w: (-len(w), w))) + ")"


_TYPES: dict[str, str] = {slot: _one_of(words) for slot, words in FILLINGS.items()} | {
    "adj": _one_of(TRAITS + QUALITIES),
    "hero": "(?:(?:" + "|".join(s.capitalize() for s in SYLLABLES) + ")(?:" + "|".join(SYLLABLES) + "){1,2})",
    "subject": _one_of(FILLINGS["name"]),
    "recipient": _one_of(FILLINGS["name"]),
    "tongue": _one_of(c.language for c in COUNTRIES),
    "currency": _one_of(c.currency for c in COUNTRIES),
    "continent": _one_of(c.continent for c in COUNTRIES),
    "date": f"(?:[1-9]|1[0-9]|2[0-8]) {_one_of(MONTHS)} (?:1[89][0-9][0-9]|20[012][0-9])",
    "word": _one_of([*WORDS, *(c.name for c in COUNTRIES)]),
}


class _Sentences:
    """Reads a text as templates, one after the other, parted by spaces or newlines."""

    def __init__(self, *groups: list[Template], types: dict[str, str] = _TYPES):
        self.patterns = [
            (i, template, re.compile(template.pattern(types))) for i, group in enumerate(groups) for template in group
        ]

    def read(self, text: str, separator: str = " ") -> tuple[list[tuple[int, Template, dict[str, str]]], str]:
        """The sentences found (group, template, fillings) and the rest that is no sentence."""
        found, place = [], 0
        while place < len(text):
            for group, template, pattern in self.patterns:
                match = pattern.match(text, place)
                after = match.end() if match else 0
                if match and (after == len(text) or text.startswith(separator, after)):
                    found.append((group, template, match.groupdict()))
                    place = after + (len(separator) if after < len(text) else 0)
                    break
            else:
                return found, text[place:]
        return found, ""


def _rest(rest: str, cut: bool, found: list) -> str | None:
    """A rest is a problem, unless the text was cut and the rest could be the last sentence's beginning."""
    if not found:
        return f"no sentence of this kind: {rest[:40]!r}"
    if rest and not (cut and len(rest) < 160):
        return f"not a sentence: {rest[:60]!r}"
    return None


_facts = _Sentences([t for group in T.FORWARD.values() for t in group] + T.BACKWARD, T.CONTINUED)


def _parse_facts(text: str, cut: bool) -> str | None:
    found, rest = _facts.read(text)
    if found and found[0][0] == 1:
        return "begins with 'its', but no country was named"
    return _rest(rest, cut, found)


_ioi = _Sentences(T.IOI, T.IOI_AFTER)


def _parse_ioi(text: str, cut: bool) -> str | None:
    found, rest = _ioi.read(text)
    place = None
    for group, _, values in found:
        if group == 0:
            place, gift = values["place"], values["gift"]
            if values["name"] == values["name2"]:
                return "somebody is named twice"
            if {values["subject"], values["recipient"]} != {values["name"], values["name2"]}:
                return f"{values['subject']} or {values['recipient']} is not there"
        elif place is None or values.get("place", place) != place or values.get("gift", gift) != gift:
            return "speaks of a place or a thing that was not named"
    return _rest(rest, cut, found)


_task_words = {task: (set(t.pairs), set(t.pairs.values())) for task, t in TASKS.items()}


def _parse_tasks(text: str, cut: bool) -> str | None:
    for before, between, after in LAYOUTS.values():
        if not text.startswith(before + " "):
            continue
        lines = text.split(after if after.strip() == "" else after)
        ending = after.rstrip("\n")
        if cut:
            lines = lines[:-1]
        elif ending:
            lines[-1] = lines[-1].removesuffix(ending)
        pattern = re.compile(re.escape(before) + r" (\S+)" + re.escape(between) + r" (\S+)")
        pairs = [pattern.fullmatch(line) for line in lines]
        if not pairs or None in pairs:
            return "a line breaks the layout"
        inputs, outputs = ({m.group(i) for m in pairs} for i in (1, 2))
        if len(inputs) < len(pairs):
            return "an input stands twice"
        if not any(inputs <= xs and outputs <= ys for xs, ys in _task_words.values()):
            return "inputs and outputs belong to no one task"
        return None
    return "no layout begins like this"


_about = _Sentences(
    *([Template(t.text.replace("{answer}", "{" + task + "}")) for t in group] for task, group in T.ABOUT_WORDS.items()),
    types=_TYPES
    | {slot: _one_of(ys) for slot, (_, ys) in _task_words.items()}
    # A slot's type is its name without digits; "first_letter" and the others are names of tasks here.
    | {"upper": _one_of(w.upper() for w in WORDS)},
)


def _parse_dictionary(text: str, cut: bool) -> str | None:
    found, rest = _about.read(text)
    return _rest(rest, cut, found)


_story = _Sentences(T.STORY_OPEN, T.STORY_MEET, T.STORY_MIDDLE, T.STORY_END)


def _parse_story(text: str, cut: bool) -> str | None:
    found, rest = _story.read(text)
    groups = [group for group, _, _ in found]
    if groups[:2] != [0, 1] or 3 in groups[:-1] or set(groups[2:-1]) - {2}:
        return "opening, meeting, middle and end are out of order"
    if not cut and groups[-1] != 3:
        return "the end is missing"
    heroes = {found[0][2]["hero"], found[1][2]["hero2"]}
    animals = {found[0][2]["animal"], found[1][2]["animal2"]}
    for _, _, values in found:
        for slot, value in values.items():
            if slot.startswith("hero") and value not in heroes:
                return f"{value} was never introduced"
            if slot.startswith("animal") and value not in animals:
                return f"the {value} was never introduced"
        if "hero2" in values and values["hero"] == values["hero2"]:
            return "somebody meets himself"
    return _rest(rest, cut, found)


def _lines(templates: list[Template]) -> Callable[[str, bool], str | None]:
    sentences = _Sentences(templates)

    def parse(text: str, cut: bool) -> str | None:
        found, rest = sentences.read(text)
        names = {v for _, _, values in found for slot, v in values.items() if slot.startswith("name")}
        if len(names) > 2:
            return "more than two people"
        return _rest(rest, cut, found)

    return parse


_dialogue = _Sentences(T.DIALOGUE_ASK, T.DIALOGUE_ANSWER, T.DIALOGUE_MORE)


def _parse_dialogue(text: str, cut: bool) -> str | None:
    found, rest = _dialogue.read(text, "\n")
    if [group for group, _, _ in found[:2]] != [0, 1] or {group for group, _, _ in found[2:]} - {2}:
        return "a question and its answer come first"
    if found[0][2]["thing"] != found[1][2]["thing"]:
        return "asked for one thing, answered about another"
    people = {found[0][2]["name"], found[1][2]["name2"]}
    names = {v for _, _, values in found for slot, v in values.items() if slot.startswith("name")}
    if len(people) != 2 or not names <= people:
        return "two people talk, no more and no fewer"
    return _rest(rest, cut, found)


_letter_open, _letter_end = _Sentences(T.LETTER_OPEN), _Sentences(T.LETTER_END)
_letter_body = _Sentences(T.LETTER_BODY)


def _parse_letter(text: str, cut: bool) -> str | None:
    parts = text.split("\n")
    opening, rest = _letter_open.read(parts[0])
    if not opening or rest:
        return "no greeting"
    if len(parts) < 2:
        return "nothing but a greeting"
    body, rest = _letter_body.read(parts[1])
    problem = _rest(rest, cut and len(parts) == 2, body)
    if problem or (cut and len(parts) == 2):
        return problem
    if len(parts) != 3:
        return "greeting, body and farewell are three lines"
    end, rest = _letter_end.read(parts[2])
    if (not end or rest) and not cut:
        return "no farewell"
    if end and end[0][2]["name2"] == opening[0][2]["name"]:
        return "a letter to oneself"
    return None


_dates = _Sentences(T.DATED)


def _parse_dates(text: str, cut: bool) -> str | None:
    found, rest = _dates.read(text)
    return _rest(rest, cut, found)


_verse, _refrain = _Sentences(T.VERSE), _Sentences(T.REFRAIN)


def _parse_refrain(text: str, cut: bool) -> str | None:
    lines = text.split("\n")
    if cut:
        lines = lines[:-1]
    if not lines:
        return "no verse"
    refrains, kinds = set(), ""
    for line in lines:
        if _verse.read(line)[1] == "" and line:
            kinds += "v"
        elif _refrain.read(line)[1] == "" and line:
            kinds += "r"
            refrains.add(line)
        else:
            return f"no line of a song: {line[:60]!r}"
    if not re.fullmatch(r"(v{1,2}r){2,3}" if not cut else r"(v{1,2}r)*v{0,2}", kinds):
        return "verses and refrain are out of order"
    return "the refrain changes" if len(refrains) > 1 else None


def _parse_numbers(text: str, cut: bool) -> str | None:
    lines = text.split("\n")
    if cut:
        lines = lines[:-1]
    for line in lines:
        if re.fullmatch(r"\d{1,3} [+-] \d{1,2} = \d{1,2}", line):
            continue  # whether the sum is right is measured apart
        if not re.fullmatch(r"\d+(, \d+){3,7}", line):
            return f"neither a sum nor counting: {line[:40]!r}"
        counted = [int(x) for x in line.split(", ")]
        if len({b - a for a, b in zip(counted, counted[1:], strict=False)}) != 1 or counted[1] <= counted[0]:
            return f"uneven steps: {line}"
    return None if lines else "nothing"


_title = _Sentences(T.LIST_TITLES)


def _parse_list(text: str, cut: bool) -> str | None:
    lines = text.split("\n")
    if cut:
        lines = lines[:-1]
    if len(lines) < 2 or _title.read(lines[0])[1]:
        return "no title"
    pattern = re.compile(rf"(\d+)\. {_one_of(NUMBER_WORDS)} {_one_of(n.plural for n in THINGS)}")
    items = [pattern.fullmatch(line) for line in lines[1:]]
    if None in items:
        return "no item of a list"
    if [int(item.group(1)) for item in items] != list(range(1, len(items) + 1)):
        return "numbers are out of order"
    return None


def _parse_brackets(text: str, cut: bool) -> str | None:
    pieces = text.split(" ")
    if cut:
        pieces = pieces[:-1]
    closing = {c: o for o, c in BRACKETS}
    opened: list[str] = []
    before = ""
    for piece in pieces:
        if piece in closing.values():
            opened.append(piece)
        elif piece in closing:
            if not opened or opened.pop() != closing[piece] or before in closing.values():
                return f"{piece} closes nothing"
        elif piece not in _words or not opened:
            return f"{piece!r} is no word in brackets"
        before = piece
    if (opened and not cut) or not pieces:
        return "a bracket stays open"
    return None


_words = set(WORDS)
_echo_words = (
    _words
    | {w.upper() for w in WORDS}
    | set(FILLINGS["name"] + FILLINGS["country"] + FILLINGS["capital"])
    | {word for n in NOUNS for word in (n.french, n.german, n.spanish)}
    | {v.past for v in VERBS}
)


def _parse_echo(text: str, cut: bool) -> str | None:
    if not text.startswith("Repeat: "):
        return "does not begin with 'Repeat:'"
    first, slash, second = text.removeprefix("Repeat: ").partition(" / ")
    words = first.split(" ")
    if not slash and not cut:
        return "no second copy"
    if any(word not in _echo_words for word in (words if slash else words[:-1])):
        return "not a word of the world"
    if (first != second and not cut) or not first.startswith(second):
        return "the second copy differs"
    return None


_NAME = _one_of(VARIABLES)
_CODE_LINES = [
    re.compile(pattern)
    for pattern in (
        rf"def {_one_of(FUNCTIONS)}_{_one_of(FUNCTION_TAILS)}\({_NAME}(, {_NAME})*\):",
        rf" +{_NAME} \+?= {_NAME}( [-+*] ({_NAME}|\d))?",
        rf" +{_NAME} \+= ({_NAME}|\d)",
        rf" +if {_NAME} (>|<|==) ({_NAME}|\d):",
        rf" +for {_NAME} in range\({_NAME}\):",
        rf"    return {_NAME}",
        rf"print\({_one_of(FUNCTIONS)}_{_one_of(FUNCTION_TAILS)}\(\d+(, \d+)*\)\)",
        "",
    )
]


def _parse_code(text: str, cut: bool) -> str | None:
    lines = text.split("\n")
    if cut:
        lines = lines[:-1]
        while lines and (lines[-1].endswith(":") or not lines[-1]):
            lines.pop()
    for line in lines:
        if not any(pattern.fullmatch(line) for pattern in _CODE_LINES):
            return f"no line of code: {line[:60]!r}"
    try:
        tree = ast.parse("\n".join(lines))
    except SyntaxError as problem:
        return f"Python says: {problem.msg}"
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if not functions:
        return "no function"
    for function in functions:
        problem = _undefined(function.body, {argument.arg for argument in function.args.args})
        if problem:
            return problem
        if not cut and not isinstance(function.body[-1], ast.Return):
            return "nothing is returned"
    defined = {function.name: len(function.args.args) for function in functions}
    for node in tree.body:
        if isinstance(node, ast.Expr):
            call = node.value.args[0]
            if defined.get(call.func.id) != len(call.args):
                return "a call that fits no function"
    return None


def _undefined(body: list[ast.stmt], known: set[str]) -> str | None:
    """The first name that is used before anything is put into it."""
    known = set(known)
    for node in body:
        if isinstance(node, ast.For):
            if node.iter.args[0].id not in known:
                return f"{node.iter.args[0].id} is not defined"
            problem = _undefined(node.body, known | {node.target.id})
        elif isinstance(node, ast.If):
            problem = _names(node.test, known) or _undefined(node.body, known)
        elif isinstance(node, ast.AugAssign):
            problem = _names(node.value, known) or _names(node.target, known)
        else:
            problem = _names(node.value, known)
            if isinstance(node, ast.Assign):
                known.add(node.targets[0].id)
        if problem:
            return problem
    return None


def _names(node: ast.AST, known: set[str]) -> str | None:
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id not in known:
            return f"{part.id} is not defined"
    return None


PARSERS: dict[str, Callable[[str, bool], str | None]] = {
    "story": _parse_story,
    "facts": _parse_facts,
    "ioi": _parse_ioi,
    "tasks": _parse_tasks,
    "dictionary": _parse_dictionary,
    "french": _lines(T.FRENCH),
    "german": _lines(T.GERMAN),
    "spanish": _lines(T.SPANISH),
    "dialogue": _parse_dialogue,
    "letter": _parse_letter,
    "dates": _parse_dates,
    "refrain": _parse_refrain,
    "numbers": _parse_numbers,
    "list": _parse_list,
    "brackets": _parse_brackets,
    "code": _parse_code,
    "echo": _parse_echo,
}


def parse(text: str, cut: bool = False) -> Parse:
    """Which kind of document `text` is, if any.

    Args:
        text: the document, without `<|endoftext|>`.
        cut: the text was cut at the end (a sample that filled the context); the last piece may then be unfinished.
    """
    if not text:
        return Parse(None, "empty")
    problems = {}
    for kind, parser in PARSERS.items():
        problem = parser(text, cut)
        if problem is None:
            return Parse(kind, None)
        problems[kind] = problem
    return Parse(None, max(problems.values(), key=len))
