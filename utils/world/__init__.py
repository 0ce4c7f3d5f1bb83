"""The small world: documents written from a seed, each with labels that say what its parts are.

`sample(n, seed)` gives `Document(text, kind, spans)`; `token_labels(documents, tokenizer)` turns documents into tokens
with one set of labels for each, `encode(tokenizer, texts)` any other text. `TASKS`, `COUNTRIES`, `NAMES` and the other
tables hold the ground truth. What is held out from all training documents: the pairs of names in
`HELD_OUT_NAME_PAIRS`, the pairs `TASKS[name].held_out` (never in a list of that task), the wordings `HELD_OUT_WORDING`
of the facts, and every passage of `repeated_tokens`.
"""

from utils.world.document import Document, Span, Template
from utils.world.grammar import Parse, parse
from utils.world.kinds import HELD_OUT_NAME_PAIRS, KINDS, held_out_names, sample
from utils.world.lexicon import ADJECTIVES, COUNTRIES, NAMES, NOUNS, VERBS
from utils.world.prompts import FACTS, IOI_TEMPLATES, IOIPrompt, country, fact_prompts, ioi_prompts
from utils.world.tasks import LAYOUTS, TASKS, Task, task_prompt, task_prompts
from utils.world.templates import FORWARD, HELD_OUT_WORDING
from utils.world.tokens import LABELS, WORD_LABELS, bos_id, encode, repeated_tokens, rows, token_labels, train_tokenizer

__all__ = [
    "ADJECTIVES",
    "COUNTRIES",
    "Document",
    "FACTS",
    "FORWARD",
    "HELD_OUT_NAME_PAIRS",
    "HELD_OUT_WORDING",
    "IOIPrompt",
    "IOI_TEMPLATES",
    "KINDS",
    "LABELS",
    "WORD_LABELS",
    "LAYOUTS",
    "NAMES",
    "NOUNS",
    "Parse",
    "Span",
    "TASKS",
    "Task",
    "Template",
    "VERBS",
    "bos_id",
    "country",
    "encode",
    "fact_prompts",
    "held_out_names",
    "ioi_prompts",
    "parse",
    "repeated_tokens",
    "rows",
    "sample",
    "task_prompt",
    "task_prompts",
    "token_labels",
    "train_tokenizer",
]
