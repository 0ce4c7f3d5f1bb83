"""How fast `train_bpe` is: beside the slow loop that the chapter shows first, and beside Hugging Face `tokenizers`.

    python tests/bench_tokenization.py [--characters 1000000] [--vocab-size 1000] [--repeat 3]

All three run in full, in turn, in one thread, on the same text, and must learn the same merges. Seconds are those of
the processor, so that other programs on the machine count little; of `--repeat` runs the fastest. Two texts: the small
world's, which has few different words, and the source of Python's own library, which has as many as ordinary text.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"

import jupytext
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

from utils import tokenization as tok
from utils.world import sample

SOURCE = Path(__file__).parents[1] / "chapters" / "source" / "01_tokenization.md"


@cache
def from_chapter(name: str) -> Callable:
    """A function that stands in the chapter's text, with the workbook's functions around it.

    Raises:
        ValueError: the chapter holds no such function.
    """
    for cell in jupytext.read(SOURCE, fmt="md").cells:
        if cell.cell_type == "code" and cell.source.startswith(f"def {name}("):
            namespace = dict(vars(tok))
            exec(cell.source, namespace)
            return namespace[name]
    raise ValueError(f"{SOURCE.name} has no cell that starts with def {name}(")


def world_corpus(characters: int, seed: int = 0) -> list[str]:
    """Documents of the small world with so many characters in all, the last one cut."""
    corpus, size, batch = [], 0, 0
    while size < characters:
        for document in sample(1000, seed + batch):
            corpus.append(document.text[: characters - size])
            size += len(corpus[-1])
            if size == characters:
                break
        batch += 1
    return corpus


def library_corpus(characters: int) -> list[str]:
    """Files of Python's own library with so many characters in all, the last one cut."""
    corpus, size = [], 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        corpus.append(path.read_text(encoding="utf-8", errors="replace")[: characters - size])
        size += len(corpus[-1])
        if size == characters:
            break
    return corpus


def train_hf(corpus: list[str], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges as `tokenizers` learns them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def race(name: str, corpus: list[str], vocab_size: int, repeat: int) -> bool:
    """Train all three, print the table, return whether they learned the same."""
    cut = chain.from_iterable(map(tok.pretokenize, corpus))
    start = time.process_time()
    pieces = Counter(cut)
    cutting = time.process_time() - start
    runners = {
        "train_bpe (the exercise)": tok.train_bpe,
        "tokenizers (Rust, one thread)": train_hf,
        "train_bpe_slowly (the chapter's loop)": from_chapter("train_bpe_slowly"),
    }
    ours, _, slow = runners
    seconds, learned = {}, {}
    for runner in tqdm([*runners] * repeat, desc=name, leave=False):
        start = time.process_time()
        vocab, merges = runners[runner](corpus, vocab_size)
        seconds[runner] = min(time.process_time() - start, seconds.get(runner, float("inf")))
        learned[runner] = vocab, list(merges)
    print(
        f"\n{name}: {sum(map(len, corpus)):,} characters, {pieces.total():,} pieces, {len(pieces):,} different; "
        f"to {vocab_size:,} tokens\n{'':40}{'seconds':>10}{'× train_bpe':>14}{'same merges':>14}"
    )
    for runner in runners:
        same = "yes" if learned[runner] == learned[ours] else "NO"
        print(f"{runner:40}{seconds[runner]:10.2f}{seconds[runner] / seconds[ours]:14.1f}{same:>14}")
    print(
        f"train_bpe is {seconds[slow] / seconds[ours]:.0f} times as fast as the slow loop. "
        f"(Cutting the text into pieces, which all do, takes {cutting:.2f} s in Python.)"
    )
    return all(result == learned[ours] for result in learned.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    texts = {
        "The small world": world_corpus(args.characters),
        "Python's own library": library_corpus(args.characters),
    }
    same = [race(name, corpus, args.vocab_size, args.repeat) for name, corpus in texts.items()]
    if not all(same):
        print("\nThe merges differ.", file=sys.stderr)
    return not all(same)


if __name__ == "__main__":
    sys.exit(main())
