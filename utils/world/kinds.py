"""One generator for each kind of document. Each takes a `Dice` and returns a labelled `Document`."""

import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from utils.world import templates as T
from utils.world.document import Document, Span, Template, Writer
from utils.world.lexicon import (
    ADJECTIVES,
    ANIMALS,
    COLOURS,
    COUNTRIES,
    DAYS,
    FUNCTION_TAILS,
    FUNCTIONS,
    GIFTS,
    MONTHS,
    NAMES,
    NATURE,
    NOUNS,
    NUMBER_WORDS,
    PLACES,
    SYLLABLES,
    THINGS,
    VARIABLES,
    VERBS,
    Country,
)
from utils.world.tasks import LAYOUTS, TASKS, WORDS, held_out

X = TypeVar("X")


class Dice:
    """Fast seeded choices, and the names that may stand together in one document."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.random = self.rng.random

    def pick(self, options: Sequence[X]) -> X:
        return options[int(self.random() * len(options))]

    def below(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.random() * (high - low + 1))

    def sample(self, options: Sequence[X], n: int) -> list[X]:
        """`n` different options."""
        if n * 4 > len(options):
            return self.rng.sample(options, n)
        chosen: list[X] = []
        while len(chosen) < n:
            option = self.pick(options)
            if option not in chosen:
                chosen.append(option)
        return chosen

    def names(self, n: int) -> list[str]:
        """`n` different names, no two of them a held-out pair."""
        chosen = [self.pick(NAMES)]
        while len(chosen) < n:
            name = self.pick(NAMES)
            if name not in chosen and not any(held_out_names(name, other) for other in chosen):
                chosen.append(name)
        return chosen

    def invented(self) -> str:
        """An invented name of two or three syllables."""
        return "".join(self.pick(SYLLABLES) for _ in range(self.below(2, 3))).capitalize()


def held_out_names(a: str, b: str) -> bool:
    """Whether two names (in either order) never stand together in a training document."""
    return held_out("names", *sorted((a, b)))


HELD_OUT_NAME_PAIRS: list[tuple[str, str]] = [
    (a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :] if held_out_names(a, b)
]

# ---- What may fill a slot. ----
ANIMAL_WORDS = [n.word for n in ANIMALS]
THING_WORDS = [n.word for n in THINGS]
THING_PLURALS = [n.plural for n in THINGS]
# Things that fit "a …" before them and characters that an animal or a thing can have.
TRAITS = "big small young fast slow strong weak rich poor happy sad good bad loud quiet".split()
QUALITIES = "big small heavy light clean dirty hard soft good bad dark bright wide narrow thick thin wet dry".split()
# Verbs that need no object.
_alone = "walk talk eat sleep run sing dance swim fly work play laugh cry cook learn dream wait draw climb jump paint"
ACTIONS = [v for v in VERBS if v.word in _alone.split()]
ACTION_WORDS = [v.word for v in ACTIONS]
ACTION_PASTS = [v.past for v in ACTIONS]
ACTION_INGS = [v.ing for v in ACTIONS]


def _abroad(entries, word: str, gender: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for entry in entries:
        groups.setdefault(getattr(entry, gender), []).append(getattr(entry, word))
    return groups


_line_nouns = ANIMALS + THINGS + NATURE
_fr = _abroad(_line_nouns, "french", "french_gender")
_de = _abroad([n for n in _line_nouns if n.german not in ("Bär", "Hase")], "german", "german_gender")
_es = _abroad(_line_nouns, "spanish", "spanish_gender")
_line_adjectives = [
    a for a in ADJECTIVES if a.word in "big small old heavy light good bad dark long short wide".split()
]
_line_verbs = [v for v in ACTIONS if v.word not in ("fall", "wait")]


def _elided(word: str) -> bool:
    return word[0] in "aeiouhéîœ"


ABROAD: dict[str, list[str]] = {
    "frm": [w for w in _fr["m"] if not _elided(w)],
    "frf": [w for w in _fr["f"] if not _elided(w)],
    "dem": _de["m"],
    "def": _de["f"],
    "den": _de["n"],
    "esm": _es["m"],
    "esf": _es["f"],
    "fradjm": [a.french for a in _line_adjectives],
    "fradjf": [a.french_f for a in _line_adjectives],
    "deadj": [a.german for a in _line_adjectives],
    "esadjm": [a.spanish for a in _line_adjectives],
    "esadjf": [a.spanish_f for a in _line_adjectives],
    "frverb": [v.french for v in _line_verbs],
    "deverb": [v.german for v in _line_verbs],
    "esverb": [v.spanish for v in _line_verbs],
}

# ---- Sentences with free slots. ----
FILLINGS: dict[str, list[str]] = {
    "place": PLACES,
    "gift": GIFTS,
    "thing": THING_WORDS,
    "things": THING_PLURALS,
    "animal": ANIMAL_WORDS,
    "verb": ACTION_WORDS,
    "past": ACTION_PASTS,
    "ing": ACTION_INGS,
    "colour": COLOURS,
    "weather": "hot cold wet dry dark bright quiet".split(),
    "number": NUMBER_WORDS,
    "day": DAYS,
    "capital": [c.capital for c in COUNTRIES],
    "country": [c.name for c in COUNTRIES],
    "name": NAMES,
    **ABROAD,
}


def _date(dice: Dice) -> str:
    return f"{dice.below(1, 28)} {dice.pick(MONTHS)} {dice.below(1800, 2020)}"


def _fill(
    dice: Dice, writer: Writer, template: Template, fixed: dict[str, str], adjectives: list[str] = TRAITS
) -> None:
    """Write `template`: slots in `fixed` as given, all others drawn, no word twice in one sentence."""
    values = dict(fixed)
    for slot in template.slots:
        if slot not in values:
            kind = slot.rstrip("0123456789")
            if kind == "date":
                values[slot] = _date(dice)
                continue
            options = adjectives if kind == "adj" else FILLINGS[kind]
            value = dice.pick(options)
            while value in values.values():
                value = dice.pick(options)
            values[slot] = value
    writer.fill(template, values)


_QUOTED = re.compile(r'"([^"]*)"')


def _label_quotes(document: Document) -> Document:
    document.spans.extend(Span(*found.span(1), "inside_quotes") for found in _QUOTED.finditer(document.text))
    return document


# ---- The kinds. ----
def story(dice: Dice) -> Document:
    """Two animals with invented names meet, do things and part."""
    writer = Writer()
    animal, animal2 = dice.sample(ANIMAL_WORDS, 2)
    hero, hero2 = dice.invented(), dice.invented()
    while hero2 == hero:
        hero2 = dice.invented()
    fixed = {"hero": hero, "animal": animal}
    _fill(dice, writer, dice.pick(T.STORY_OPEN), fixed)
    writer.add(" ")
    fixed |= {"hero2": hero2, "animal2": animal2}
    _fill(dice, writer, dice.pick(T.STORY_MEET), fixed)
    swapped = {"hero": hero2, "hero2": hero, "animal": animal2, "animal2": animal}
    for template in dice.sample(T.STORY_MIDDLE, dice.below(3, 7)):
        writer.add(" ")
        _fill(dice, writer, template, swapped if dice.random() < 0.4 else fixed)
    writer.add(" ")
    _fill(dice, writer, dice.pick(T.STORY_END), fixed)
    return _label_quotes(writer.document("story"))


def country_values(country: Country) -> dict[str, str]:
    """The fillings of fact templates for one country."""
    return {
        "country": country.name,
        "capital": country.capital,
        "tongue": country.language,
        "currency": country.currency,
        "continent": country.continent,
    }


_FACTS = [template for group in T.FORWARD.values() for template in group] + T.BACKWARD
# Capitals, languages and currencies are told more often than the rest.
_FACTS_WEIGHTED = _FACTS + [t for relation in ("capital", "language", "currency") for t in T.FORWARD[relation]]


def facts(dice: Dice) -> Document:
    """Facts about countries, stated in many ways."""
    writer = Writer()
    for _ in range(dice.below(1, 4)):
        values = country_values(dice.pick(COUNTRIES))
        for template in dice.sample(_FACTS_WEIGHTED, dice.below(1, 3)):
            if writer.position:
                writer.add(" ")
            writer.fill(template, values)
        if dice.random() < 0.3:
            writer.add(" ")
            # Only after a sentence that names the country "its" is clear: they all do.
            writer.fill(dice.pick(T.CONTINUED), values)
    return writer.document("facts")


def ioi(dice: Dice) -> Document:
    """Somebody gives something to the other one of two people."""
    writer = Writer()
    n = dice.below(1, 4)
    names = dice.names(2 * n)
    for i in range(n):
        a, b = names[2 * i : 2 * i + 2]
        subject, recipient = (a, b) if dice.random() < 0.5 else (b, a)
        fixed = {"name": a, "name2": b, "subject": subject, "recipient": recipient}
        fixed |= {"place": dice.pick(PLACES), "gift": dice.pick(GIFTS)}
        if i:
            writer.add(" ")
        writer.fill(dice.pick(T.IOI), fixed)
        if dice.random() < 0.3:
            writer.add(" ")
            _fill(dice, writer, dice.pick(T.IOI_AFTER), fixed)
    return writer.document("ioi")


_TASK_SEEN = {name: list(task.seen.items()) for name, task in TASKS.items()}
_TASK_NAMES = list(TASKS)
_LAYOUT_NAMES = list(LAYOUTS)


def tasks(dice: Dice) -> Document:
    """A list of pairs of one in-context task."""
    writer = Writer()
    task, layout = dice.pick(_TASK_NAMES), dice.pick(_LAYOUT_NAMES)
    before, between, after = LAYOUTS[layout]
    for i, (x, y) in enumerate(dice.sample(_TASK_SEEN[task], dice.below(4, 10))):
        if i:
            writer.add(after)
        writer.add(before + " ")
        writer.add(x, ("task_input",))
        writer.add(between + " ")
        writer.add(y, ("task_output",))
    writer.add(after.rstrip("\n"))
    return writer.document("tasks", (f"task:{task}", f"layout:{layout}"))


# Each pair is told as often as every other, whatever its task; pairs about countries are told in the facts.
_WORD_PAIRS = [(task, x, y) for task in T.ABOUT_WORDS for x, y in TASKS[task].pairs.items()]
_PAIRS_OF: dict[str, list[tuple[str, str, str]]] = {}
for _pair in _WORD_PAIRS:
    _PAIRS_OF.setdefault(_pair[1], []).append(_pair)
_ALL_WORDS = list(_PAIRS_OF)


def dictionary(dice: Dice) -> Document:
    """Sentences about words: opposites, forms, spelling, translations; one word or many."""
    writer = Writer()
    if dice.random() < 0.5:
        pairs = _PAIRS_OF[dice.pick(_ALL_WORDS)]
        pairs = dice.rng.sample(pairs, min(len(pairs), dice.below(3, 7)))
    else:
        pairs = dice.sample(_WORD_PAIRS, dice.below(3, 8))
    for i, (task, x, y) in enumerate(pairs):
        if i:
            writer.add(" ")
        writer.fill(dice.pick(T.ABOUT_WORDS[task]), {"word": x, "answer": y})
    return writer.document("dictionary")


def _lines_abroad(dice: Dice, kind: str, templates: list[Template]) -> Document:
    writer = Writer()
    name, name2 = dice.names(2)
    for i, template in enumerate(dice.sample(templates, dice.below(3, 7))):
        if i:
            writer.add(" ")
        _fill(dice, writer, template, {"name": name, "name2": name2})
    return writer.document(kind, (f"language:{kind}",))


def french(dice: Dice) -> Document:
    """A few French sentences."""
    return _lines_abroad(dice, "french", T.FRENCH)


def german(dice: Dice) -> Document:
    """A few German sentences."""
    return _lines_abroad(dice, "german", T.GERMAN)


def spanish(dice: Dice) -> Document:
    """A few Spanish sentences."""
    return _lines_abroad(dice, "spanish", T.SPANISH)


def dialogue(dice: Dice) -> Document:
    """Two people talk, the spoken words in quotes, one line a turn."""
    writer = Writer()
    name, name2 = dice.names(2)
    fixed = {"name": name, "name2": name2, "thing": dice.pick(THING_WORDS), "place": dice.pick(PLACES)}
    _fill(dice, writer, dice.pick(T.DIALOGUE_ASK), fixed)
    writer.add("\n")
    _fill(dice, writer, dice.pick(T.DIALOGUE_ANSWER), fixed)
    for template in dice.sample(T.DIALOGUE_MORE, dice.below(1, 5)):
        writer.add("\n")
        swap = dice.random() < 0.5
        turn = fixed | ({"name": name2, "name2": name} if swap else {})
        _fill(dice, writer, template, turn, QUALITIES)
    return _label_quotes(writer.document("dialogue"))


def letter(dice: Dice) -> Document:
    """A letter from one person to another."""
    writer = Writer()
    name, name2, name3 = dice.names(3)
    fixed = {"name": name, "name2": name2, "name3": name3}
    writer.fill(dice.pick(T.LETTER_OPEN), fixed)
    for i, template in enumerate(dice.sample(T.LETTER_BODY, dice.below(2, 5))):
        writer.add(" " if i else "\n")
        _fill(dice, writer, template, fixed, QUALITIES)
    writer.add("\n")
    writer.fill(dice.pick(T.LETTER_END), fixed)
    return writer.document("letter")


def dates(dice: Dice) -> Document:
    """What happened on which date."""
    writer = Writer()
    name, name2 = dice.names(2)
    for i in range(dice.below(2, 4)):
        if i:
            writer.add(" ")
        _fill(dice, writer, dice.pick(T.DATED), {"name": name, "name2": name2})
    return writer.document("dates")


def refrain(dice: Dice) -> Document:
    """A song: verses with one refrain that returns word for word."""
    first = Writer()
    _fill(dice, first, dice.pick(T.REFRAIN), {}, QUALITIES)
    line = "".join(first.pieces)
    writer = Writer()
    for i in range(dice.below(2, 3)):
        for template in dice.sample(T.VERSE, dice.below(1, 2)):
            _fill(dice, writer, template, {}, QUALITIES)
            writer.add("\n")
        writer.add(line, ("refrain", "second_copy") if i else ("refrain",))
        writer.add("\n")
    writer.pieces.pop()
    writer.position -= 1
    return writer.document("refrain")


def numbers(dice: Dice) -> Document:
    """Sums, differences, and counting in steps."""
    writer = Writer()
    for i in range(dice.below(3, 7)):
        if i:
            writer.add("\n")
        roll = dice.random()
        if roll < 0.4:
            a, b = dice.below(1, 50), dice.below(1, 49)
            writer.add(f"{a} + {b} =", ("sum",))
            writer.add(f" {a + b}", ("sum_answer",))
        elif roll < 0.7:
            a, b = dice.below(1, 50), dice.below(1, 49)
            writer.add(f"{a + b} - {a} =", ("sum",))
            writer.add(f" {b}", ("sum_answer",))
        else:
            start, step = dice.below(1, 20), dice.below(1, 5)
            writer.add(", ".join(str(start + step * k) for k in range(dice.below(4, 8))), ("counting",))
    document = writer.document("numbers")
    document.spans.extend(Span(*found.span(), "number") for found in re.finditer(r"\d+", document.text))
    return document


def shopping(dice: Dice) -> Document:
    """A numbered list under a title."""
    writer = Writer()
    _fill(dice, writer, dice.pick(T.LIST_TITLES), {})
    for i, things in enumerate(dice.sample(THING_PLURALS, dice.below(3, 8)), 1):
        writer.add(f"\n{i}.", ("list_number",))
        start = writer.position
        writer.add(" ")
        writer.add(dice.pick(NUMBER_WORDS), ("number",))
        writer.add(" ")
        writer.add(things, ("thing", "plural"))
        writer.span(start, "list_item")
    return writer.document("list")


BRACKETS = [("(", ")"), ("[", "]"), ("{", "}")]


def brackets(dice: Dice) -> Document:
    """Words in nested round, square and curly brackets."""
    writer = Writer()

    def group(depth: int) -> None:
        opening, closing = dice.pick(BRACKETS)
        writer.add(opening + " ", ("open_bracket",))
        start = writer.position
        for _ in range(dice.below(1, 3)):
            if depth < 4 and dice.random() < 0.45:
                group(depth + 1)
            else:
                writer.add(dice.pick(WORDS))
            writer.add(" ")
        if depth == 1:
            writer.spans.append(Span(start, writer.position - 1, "inside_brackets"))
        writer.spans.append(Span(start, writer.position - 1, f"bracket_depth>={depth}"))
        writer.add(closing, ("close_bracket",))

    for i in range(dice.below(2, 6)):
        if i:
            writer.add(" ")
        group(1)
    return writer.document("brackets")


_ECHO_WORDS = (
    WORDS
    + NAMES
    + [c.name for c in COUNTRIES]
    + [c.capital for c in COUNTRIES]
    + [e.french for e in NOUNS]
    + [e.german for e in NOUNS]
    + [e.spanish for e in NOUNS]
    + [w.upper() for w in WORDS]
    + ACTION_PASTS
)


def echo(dice: Dice) -> Document:
    """Random words, then the same words again."""
    writer = Writer()
    words = [dice.pick(_ECHO_WORDS) for _ in range(dice.below(6, 30))]
    # Chance may bring two names together that are held out as a pair: replace one.
    for i, word in enumerate(words):
        if word in NAMES:
            while any(held_out_names(word, other) for other in words if other in NAMES):
                word = dice.pick(WORDS)
            words[i] = word
    passage = " ".join(words)
    writer.add("Repeat: ")
    writer.add(passage, ("first_copy",))
    writer.add(" / ")
    writer.add(passage, ("second_copy",))
    return writer.document("echo")


_OPERATORS = ["+", "-", "*"]
_TESTS = [">", "<", "=="]


def code(dice: Dice) -> Document:
    """Small Python functions: every name is defined before it is used."""
    writer = Writer()

    def term(known: list[str]) -> str:
        return dice.pick(known) if dice.random() < 0.75 else str(dice.below(0, 9))

    def line(depth: int, keyword: str, rest: str) -> None:
        writer.add("    " * depth, ("indent", f"indent:{depth}") if depth else ())
        if keyword:
            writer.add(keyword, ("keyword",))
            writer.add(" ")
        writer.add(rest + "\n")

    def block(known: list[str], depth: int) -> None:
        for _ in range(dice.below(1, 2)):
            roll = dice.random()
            if roll < 0.45 or depth == 3:
                new = dice.pick(VARIABLES)
                line(depth, "", f"{new} = {dice.pick(known)} {dice.pick(_OPERATORS)} {term(known)}")
                if new not in known:
                    known.append(new)
            elif roll < 0.6:
                line(depth, "", f"{dice.pick(known)} += {term(known)}")
            elif roll < 0.8:
                line(depth, "if", f"{dice.pick(known)} {dice.pick(_TESTS)} {term(known)}:")
                block(list(known), depth + 1)
            else:
                new = dice.pick(VARIABLES)
                line(depth, "for", f"{new} in range({dice.pick(known)}):")
                block([*known, new], depth + 1)

    for i in range(dice.below(1, 2)):
        if i:
            writer.add("\n")
        known = dice.sample(VARIABLES, dice.below(1, 3))
        function = f"{dice.pick(FUNCTIONS)}_{dice.pick(FUNCTION_TAILS)}"
        arguments = ", ".join(known)
        count = len(known)
        line(0, "def", f"{function}({arguments}):")
        block(known, 1)
        line(1, "return", dice.pick(known))
        if dice.random() < 0.4:
            values = ", ".join(str(dice.below(0, 99)) for _ in range(count))
            line(0, "", f"print({function}({values}))")
    writer.pieces[-1] = writer.pieces[-1].rstrip("\n")
    writer.position -= 1
    return writer.document("code")


# The kinds and how often each is drawn; the weights give the shares of documents, not of text.
KINDS: dict[str, tuple[Callable[[Dice], Document], float]] = {
    "story": (story, 6),
    "facts": (facts, 18),
    "ioi": (ioi, 10),
    "tasks": (tasks, 22),
    "dictionary": (dictionary, 16),
    "french": (french, 3),
    "german": (german, 3),
    "spanish": (spanish, 3),
    "dialogue": (dialogue, 4),
    "letter": (letter, 3),
    "dates": (dates, 3),
    "refrain": (refrain, 2.5),
    "numbers": (numbers, 2.5),
    "list": (shopping, 2.5),
    "brackets": (brackets, 3),
    "code": (code, 4),
    "echo": (echo, 6),
}


def sample(
    n: int, seed: int, kinds: Sequence[str] | None = None, weights: dict[str, float] | None = None
) -> list[Document]:
    """`n` documents of the small world, the same for the same `n` and seed, mixed as `KINDS` says.

    Held-out name pairs, task pairs and fact wordings never occur in them.

    Args:
        n: how many documents.
        seed: any whole number.
        kinds: only documents of these kinds, in the mix of their weights.
        weights: other weights than those of `KINDS`, for the kinds named.

    Raises:
        ValueError: `n` is negative or a kind is unknown.
    """
    if n < 0:
        raise ValueError(f"n is {n}: ask for 0 documents or more")
    names = list(KINDS) if kinds is None else list(kinds)
    mix = {name: weight for name, (_, weight) in KINDS.items()} | (weights or {})
    unknown = [name for name in [*names, *mix] if name not in KINDS]
    if unknown or not names:
        raise ValueError(f"no kind {', '.join(unknown)!r}: the kinds are {', '.join(KINDS)}")
    dice = Dice(seed)
    writers = [KINDS[name][0] for name in names]
    chosen = dice.rng.choices(writers, [mix[name] for name in names], k=n)
    return [write(dice) for write in chosen]
