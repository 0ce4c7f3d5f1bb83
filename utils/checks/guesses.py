"""Predictions: `expect` writes a guess down, `grade` shows it beside what was measured, `guesses` shows them all."""

import re
from contextlib import suppress

from IPython.display import Markdown, display

_guesses: dict[str, object] = {}
_measured: dict[str, tuple[str, bool | None]] = {}


def expect(question: str, *guess: object) -> None:
    """Write a guess down: a number, or words in quotes.

    Dots mean that there is none yet; they don't undo one that is written down. Several guesses are a list of them.
    """
    guess = guess[0] if len(guess) == 1 else list(guess)
    guess = None if _is_open(guess) else guess
    if guess is not None or question not in _guesses:
        _guesses[question] = guess


def grade(question: str, measured: object, within: float | None = None) -> None:
    """Show the guess beside what was measured; nothing that was guessed raises.

    Numbers are right within `within`, by default exactly if whole, else within a tenth of what was measured. A word is
    right if it is the same word. A guess in several words gets no verdict: it stands beside the measurement.
    """
    guess = _guesses.get(question)
    good = None
    with suppress(Exception):  # a guess of another kind than the answer
        good = None if guess is None else _verdict(_plain(guess), _plain(measured), within)
    _measured[question] = _shown(measured), good
    print(question)
    if question not in _guesses:
        print("  your guess: run the cell under the question first, then this one again")
        return
    print(f"  your guess: {'none yet' if guess is None else _shown(guess)}")
    print(f"  measured:   {_shown(measured)}{_sign(good)}")


def guesses() -> None:
    """Show a table of all predictions: what was asked, guessed and measured."""
    rows = ["| predicted | your guess | measured |", "| --- | --- | --- |"]
    for question, guess in _guesses.items():
        measured, good = _measured.get(question, ("", None))
        cells = question, "" if guess is None else _shown(guess), measured + _sign(good)
        rows.append("| " + " | ".join(c.replace("|", "\\|").replace("<", "&lt;") for c in cells) + " |")
    display(Markdown("\n".join(rows)))


def _is_open(guess: object) -> bool:
    if isinstance(guess, list):
        return all(map(_is_open, guess))
    return guess is ... or guess is None or isinstance(guess, str) and not guess.strip(" .…")


def _sign(good: bool | None) -> str:
    return {None: "", True: "  ✓", False: "  ✗"}[good]


def _plain(value: object) -> object:
    """As Python's own kinds: a tensor's numbers, yes and no as words, a number that was written as text."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        found = re.fullmatch(r"(?:about|~|≈)?\s*(-?\d*\.?\d+(?:e[-+]?\d+)?)\s*(%?)", value.strip())
        number = found and float(found[1]) / (100 if found[2] else 1)
        return value if found is None else number
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _verdict(guess: object, measured: object, within: float | None) -> bool | None:
    if isinstance(measured, int | float) and isinstance(guess, int | float):
        default = 0 if isinstance(measured, int) else abs(measured) / 10
        return abs(guess - measured) <= (default if within is None else within)
    if isinstance(measured, str) and isinstance(guess, str):
        a, b = (re.findall(r"\w+", text.casefold()) or [text.strip()] for text in (guess, measured))
        return True if a == b else False if len(a) == len(b) == 1 else None
    if isinstance(measured, list) and isinstance(guess, list) and len(measured) == len(guess):
        each = [_verdict(g, m, within) for g, m in zip(guess, measured, strict=True)]
        return None if None in each else all(each)
    return None


def _shown(value: object) -> str:
    """On one line; floats with three digits."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:#.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    try:
        return " ".join(str(value).split())
    except Exception:
        return f"a {type(value).__name__}"
