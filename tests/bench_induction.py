"""The ablation sweep in batched passes against the loop of one full run for each head: same numbers, how much faster?

Run by `make bench`, on one thread, so that the figures do not depend on how many cores are free.
"""

import sys
import time
from functools import partial

import torch

from utils.induction import (
    generate_repeated_tokens,
    get_ablation_scores,
    get_ablation_scores_batched,
    head_ablation_hook,
)
from utils.models import load
from utils.runtime import device, seed_everything

TIMES, SEQ_LEN = 5, 50
WANTED = 3.0


def seconds(fn) -> float:
    """The fastest of some calls, in seconds of this process's own computing time (of the clock's on a GPU)."""
    clock = time.process_time if device().type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(TIMES):
        start = clock()
        fn().cpu()
        best = min(best, clock() - start)
    return best


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = load("attn2l")
    print(f"{model.cfg.n_layers} layers of {model.cfg.n_heads} heads, {model.cfg.d_vocab} tokens, {device()}")
    slow = []
    for batch in (1, 8):
        seed_everything(0)
        tokens = generate_repeated_tokens(model, SEQ_LEN, batch)
        hook = partial(head_ablation_hook, kind="mean" if batch > 1 else "zero")
        loop = get_ablation_scores(model, tokens, hook)
        batched = get_ablation_scores_batched(model, tokens, hook)
        gap = (loop - batched).abs().max().item()
        assert gap <= 1e-5, f"the batched sweep differs from the loop by {gap:.1e} nats"
        before = seconds(lambda t=tokens, h=hook: get_ablation_scores(model, t, h))
        after = seconds(lambda t=tokens, h=hook: get_ablation_scores_batched(model, t, h))
        print(
            f"{batch} × {tokens.shape[1]} tokens: loop {before:.3f} s, batched {after:.3f} s, "
            f"{before / after:.1f} times faster, largest difference {gap:.0e} nats"
        )
        if before / after < WANTED:
            slow.append(batch)
    if slow:
        sys.exit(f"less than {WANTED:g} times faster on a batch of {slow}")


if __name__ == "__main__":
    main()
