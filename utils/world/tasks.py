"""The in-context tasks: which word goes to which, which pairs are held out, how a list of pairs is laid out."""

import random
import zlib
from dataclasses import dataclass

from utils.world.lexicon import ADJECTIVES, COUNTRIES, NOUNS, VERBS

HELD_OUT_SHARE = 0.15

# A layout is what stands before the input, between input and output, and after the output. Every word has a space
# before it, so that it is the same token in every layout and in running text.
LAYOUTS: dict[str, tuple[str, str, str]] = {
    "arrow": ("-", " ->", "\n"),
    "qa": ("Q:", "\nA:", "\n\n"),
    "table": ("|", " |", " |\n"),
}


def held_out(*key: str) -> bool:
    """Whether a pair is kept out of the training documents: decided by a hash of its words, the same everywhere."""
    return zlib.crc32("/".join(key).encode()) % 1000 < 1000 * HELD_OUT_SHARE


@dataclass(frozen=True)
class Task:
    """A mapping from words to words. `seen` pairs may stand in training lists of this task, `held_out` never do."""

    name: str
    pairs: dict[str, str]

    @property
    def seen(self) -> dict[str, str]:
        return {x: y for x, y in self.pairs.items() if not held_out(self.name, x)}

    @property
    def held_out(self) -> dict[str, str]:
        return {x: y for x, y in self.pairs.items() if held_out(self.name, x)}


WORDS: list[str] = [entry.word for entry in [*NOUNS, *VERBS, *ADJECTIVES]]
_all_inputs = WORDS + [country.name for country in COUNTRIES]
assert len(set(_all_inputs)) == len(_all_inputs), "a word stands in two tables"

TASKS: dict[str, Task] = {
    name: Task(name, pairs)
    for name, pairs in {
        "antonym": {a.word: a.opposite for a in ADJECTIVES},
        "comparative": {a.word: a.comparative for a in ADJECTIVES},
        "plural": {n.word: n.plural for n in NOUNS},
        "past": {v.word: v.past for v in VERBS},
        "ing": {v.word: v.ing for v in VERBS},
        "capital": {c.name: c.capital for c in COUNTRIES},
        "language": {c.name: c.language for c in COUNTRIES},
        "currency": {c.name: c.currency for c in COUNTRIES},
        "continent": {c.name: c.continent for c in COUNTRIES},
        "upper": {word: word.upper() for word in WORDS},
        "first_letter": {word: word[0] for word in _all_inputs},
        "copy": {word: word for word in _all_inputs},
        "french": {entry.word: entry.french for entry in [*NOUNS, *VERBS, *ADJECTIVES]},
        "german": {entry.word: entry.german for entry in [*NOUNS, *VERBS, *ADJECTIVES]},
        "spanish": {entry.word: entry.spanish for entry in [*NOUNS, *VERBS, *ADJECTIVES]},
    }.items()
}


def task_prompt(shots: list[tuple[str, str]], query: str, layout: str = "arrow") -> str:
    """A list of solved pairs and one open one. The answer follows after a space.

    >>> task_prompt([("hot", "cold")], "big")
    '- hot -> cold\\n- big ->'

    Raises:
        ValueError: no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    before, between, after = LAYOUTS[layout]
    return "".join(f"{before} {x}{between} {y}{after}" for x, y in shots) + f"{before} {query}{between}"


def task_prompts(
    task: str, n: int, n_shots: int, seed: int, layout: str | None = None, held_out: bool = False
) -> list[tuple[str, str]]:
    """Prompts of one task with their answers (with the leading space), queries drawn from the seen or held-out pairs.

    The shots are always seen pairs, drawn without the query's word. `layout=None` draws a layout for each prompt.

    Raises:
        ValueError: no such task or layout.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}: choose one of {', '.join(TASKS)}")
    rng = random.Random(f"{task}/{seed}")
    seen = list(TASKS[task].seen.items())
    queries = list(TASKS[task].held_out.items()) if held_out else seen
    prompts = []
    for _ in range(n):
        x, y = rng.choice(queries)
        shots = rng.sample([pair for pair in seen if pair[0] != x], n_shots)
        prompts.append((task_prompt(shots, x, layout or rng.choice(list(LAYOUTS))), " " + y))
    return prompts
