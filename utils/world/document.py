"""A document with labelled spans, and the small template engine that writes both at once."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """Characters `start` up to (not including) `end` of a document, and what they are."""

    start: int
    end: int
    label: str


class Document(NamedTuple):
    """A text, its kind, and the labels of its parts: the ground truth about what the text contains."""

    text: str
    kind: str
    spans: list[Span]

    def spans_of(self, label: str) -> list[str]:
        """The pieces of text that carry `label`, in order."""
        return [self.text[span.start : span.end] for span in self.spans if span.label == label]


# What a slot of a template is called and which labels its filling gets. Digits at a slot's end only tell slots apart.
SLOT_LABELS: dict[str, tuple[str, ...]] = {
    "name": ("name",),
    "subject": ("name", "subject"),
    "recipient": ("name", "indirect_object"),
    "hero": ("name", "invented_name"),
    "country": ("country",),
    "capital": ("capital",),
    "tongue": ("language_name",),
    "currency": ("currency",),
    "continent": ("continent",),
    "place": ("place",),
    "gift": ("thing",),
    "thing": ("thing",),
    "things": ("thing", "plural"),
    "animal": ("animal",),
    "adj": ("adjective",),
    "weather": ("adjective",),
    "verb": ("verb",),
    "past": ("verb", "past_tense"),
    "ing": ("verb", "ing_form"),
    "colour": ("colour",),
    "number": ("number",),
    "day": ("weekday",),
    "date": ("date",),
    "word": ("quoted_word",),
    "answer": ("word_answer",),
    "line": (),
}


def slot_type(slot: str) -> str:
    """`name2` is a slot of type `name`."""
    return slot.rstrip("0123456789")


class Template:
    """A sentence with slots in braces: `Template("{name} saw {name2}.")`. The same slot twice holds the same words."""

    def __init__(self, text: str):
        self.text = text
        pieces = re.split(r"\{(\w+)\}", text)
        # literal, slot, literal, slot, …, literal
        self.literals, self.slots = pieces[0::2], pieces[1::2]
        self.parts = [
            (literal, slot, SLOT_LABELS.get(slot_type(slot), ()))
            for literal, slot in zip(self.literals, self.slots, strict=False)
        ]
        self.tail = self.literals[-1]

    def pattern(self, types: dict[str, str]) -> str:
        """A regular expression of the template; `types` maps a slot's type to the expression of its fillings."""
        seen: set[str] = set()
        pattern = ""
        for literal, slot in zip(self.literals, [*self.slots, ""], strict=True):
            pattern += re.escape(literal)
            if slot in seen:
                pattern += f"(?P={slot})"
            elif slot:
                seen.add(slot)
                pattern += f"(?P<{slot}>{types[slot_type(slot)]})"
        return pattern

    def __repr__(self) -> str:
        return f"Template({self.text!r})"


class Writer:
    """Collects a document's text piece by piece, and the labelled spans with it."""

    __slots__ = ("pieces", "position", "spans", "names")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.position = 0
        self.spans: list[Span] = []
        self.names: set[str] = set()

    def add(self, text: str, labels: Iterable[str] = ()) -> None:
        """Append `text`; each label becomes a span over it. A name that was written before is a `repeated_name` too."""
        self.pieces.append(text)
        start = self.position
        self.position = end = start + len(text)
        for label in labels:
            self.spans.append(Span(start, end, label))
            if label == "name":
                if text in self.names:
                    self.spans.append(Span(start, end, "repeated_name"))
                self.names.add(text)

    def fill(self, template: Template, values: dict[str, str]) -> None:
        """Append the template with its slots filled."""
        add, pieces = self.add, self.pieces
        for literal, slot, labels in template.parts:
            pieces.append(literal)
            self.position += len(literal)
            add(values[slot], labels)
        pieces.append(template.tail)
        self.position += len(template.tail)

    def span(self, start: int, label: str) -> None:
        """Label all that was written since position `start`."""
        self.spans.append(Span(start, self.position, label))

    def document(self, kind: str, labels: Iterable[str] = ()) -> Document:
        """The finished document; `labels` cover all of it, and so does its kind."""
        self.spans.append(Span(0, self.position, f"kind:{kind}"))
        for label in labels:
            self.spans.append(Span(0, self.position, label))
        return Document("".join(self.pieces), kind, self.spans)
