"""Prompts with known answers: facts, indirect objects. Held-out names and wordings are asked for by name."""

import random
from typing import NamedTuple

from utils.world.kinds import HELD_OUT_NAME_PAIRS, country_values, held_out_names
from utils.world.lexicon import COUNTRIES, GIFTS, NAMES, PLACES, Country
from utils.world.templates import FORWARD, HELD_OUT_WORDING, IOI

# The facts a learner can ask for: relation -> country -> answer.
FACTS: dict[str, dict[str, str]] = {
    "capital": {c.name: c.capital for c in COUNTRIES},
    "language": {c.name: c.language for c in COUNTRIES},
    "currency": {c.name: c.currency for c in COUNTRIES},
    "continent": {c.name: c.continent for c in COUNTRIES},
}
_SLOT = {"capital": "capital", "language": "tongue", "currency": "currency", "continent": "continent"}


def fact_prompts(relation: str, held_out_wording: bool = False) -> list[tuple[str, str]]:
    """Prompts and answers (with the leading space) for every country in every wording seen in training, or in the one
    that no training document contains.

    >>> fact_prompts("capital")[0]
    ('The capital of France is', ' Paris')

    Raises:
        ValueError: no such relation, or it has no held-out wording.
    """
    wordings = {r: [t] for r, t in HELD_OUT_WORDING.items()} if held_out_wording else FORWARD
    if relation not in wordings:
        raise ValueError(f"no relation {relation!r}: choose one of {', '.join(wordings)}")
    prompts = []
    for template in wordings[relation]:
        before = template.text.split(" {" + _SLOT[relation] + "}")[0]
        for country in COUNTRIES:
            prompts.append((before.format(**country_values(country)), " " + FACTS[relation][country.name]))
    return prompts


def country(name: str) -> Country:
    """The row of the table of countries.

    Raises:
        ValueError: no such country.
    """
    for row in COUNTRIES:
        if row.name == name:
            return row
    raise ValueError(f"no country {name!r} in the small world: see utils.world.COUNTRIES")


class IOIPrompt(NamedTuple):
    """An indirect-object prompt and its variants. All three have the same length in tokens and end before the answer.

    `clean`: "... Mary and John ..., John gave a book to". `flipped`: the second subject is replaced by the other name,
    so that the answers change places. `abc`: it is replaced by a third name, so that neither name is repeated; no
    training document has this form. `io` and `s` are the answers with their leading space, `third` is the third name.
    `order`: "ABBA" if the indirect object is named first, "BABA" if the subject is. `template`: index into
    `utils.world.IOI_TEMPLATES`; prompts of one template have the same length.
    """

    clean: str
    flipped: str
    abc: str
    io: str
    s: str
    third: str
    order: str
    template: int


IOI_TEMPLATES: list[str] = [template.text.replace("{recipient}.", "").rstrip() for template in IOI]
# Sentences whose object of giving stands at the end, before " to": the answer is the very next token.
_PROMPTABLE = [i for i, template in enumerate(IOI) if template.text.endswith("to {recipient}.")]


def ioi_prompts(
    n: int, seed: int, held_out: bool = True, template: int | None = None, order: str | None = None
) -> list[IOIPrompt]:
    """`n` indirect-object prompts, alternating between both orders unless `order` is given.

    Args:
        held_out: draw the two names from pairs that no training document holds together (else from the others).
        template: use this template only (then all prompts have the same length); default: all in turn.
        order: "ABBA" or "BABA" only.

    Raises:
        ValueError: no such template or order.
    """
    if template is not None and template not in _PROMPTABLE:
        raise ValueError(f"no template {template!r}: choose one of {_PROMPTABLE}")
    if order not in (None, "ABBA", "BABA"):
        raise ValueError(f"no order {order!r}: choose ABBA or BABA")
    rng = random.Random(f"ioi/{seed}")
    prompts = []
    for i in range(n):
        if held_out:
            a, b = rng.sample(rng.choice(HELD_OUT_NAME_PAIRS), 2)
        else:
            a, b = rng.sample(NAMES, 2)
            while held_out_names(a, b):
                a, b = rng.sample(NAMES, 2)
        third = rng.choice([name for name in NAMES if name not in (a, b)])
        index = template if template is not None else _PROMPTABLE[i // 2 % len(_PROMPTABLE)]
        this_order = order or ("ABBA", "BABA")[i % 2]
        io, s = (a, b) if this_order == "ABBA" else (b, a)
        values = {"name": a, "name2": b, "place": rng.choice(PLACES), "gift": rng.choice(GIFTS)}
        clean, flipped, abc = (IOI_TEMPLATES[index].format(subject=subject, **values) for subject in (s, io, third))
        prompts.append(IOIPrompt(clean, flipped, abc, " " + io, " " + s, " " + third, this_order, index))
    return prompts
