"""How fast the sweep over all heads and positions is, beside one run of the whole model for each.

    python tests/bench_ioi.py [--prompts 16]

Both in one thread, on the shipped model, and on the same numbers. Measured is processor time, which does not depend on
what else the machine does. "flipped" prompts differ from the clean ones late (at S2), as in the chapter; "ABC" prompts
from the first name on, so that hardly any position can be skipped.
"""

import argparse
import sys
import time
from functools import partial

import torch
from tqdm import tqdm
from transformer_lens import patching

from utils import ioi
from utils.models import load

FASTER = 5


def one_at_a_time(model, corrupted_tokens, clean_cache, patching_metric):
    """The specification: for each layer, position and head a run with one vector patched."""
    results = torch.zeros(model.cfg.n_layers, corrupted_tokens.shape[1], model.cfg.n_heads)
    for layer, pos, head in tqdm(list(torch.cartesian_prod(*map(torch.arange, results.shape)).tolist())):

        def swap(z, hook, pos=pos, head=head):
            z[:, pos, head] = clean_cache[hook.name][:, pos, head]

        hooks = [(f"blocks.{layer}.attn.hook_z", swap)]
        results[layer, pos, head] = patching_metric(model.run_with_hooks(corrupted_tokens, fwd_hooks=hooks))
    return results


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    prompts = parser.parse_args().prompts
    torch.set_num_threads(1)
    model = load("lm")
    clean = ioi.IOIDataset.sample(model.tokenizer, prompts, template=1)
    _, cache = model.run_with_cache(clean.tokens)
    ask = partial(ioi.logits_to_ave_logit_diff, answer_tokens=clean.answer_tokens)
    size = f"{model.cfg.n_layers} × {clean.tokens.shape[1]} × {model.cfg.n_heads}"
    print(f"{size} patches (layer × position × head) on {prompts} prompts; processor seconds, one thread\n")
    ways = {
        "one run each": one_at_a_time,
        "transformer_lens.patching": patching.get_act_patch_attn_head_out_by_pos,
        "get_act_patch_heads_by_pos": ioi.get_act_patch_heads_by_pos,
    }
    fine = True
    for name, corrupted in (("flipped", clean.flipped()), ("ABC", clean.abc())):
        results, seconds = {}, {}
        for way, sweep in ways.items():
            start = time.process_time()
            results[way] = sweep(model, corrupted.tokens, cache, ask)
            seconds[way] = time.process_time() - start
        slow, _, fast = ways
        worst = max((results[way] - results[slow]).abs().max().item() for way in ways)
        for way in ways:
            print(f"{name:8} {way:28}{seconds[way]:8.2f} s {seconds[slow] / seconds[way]:7.1f} ×")
        print(f"{name:8} largest difference of the numbers: {worst:.1e}\n")
        fine &= worst < 1e-3 and (name != "flipped" or seconds[slow] / seconds[fast] >= FASTER)
    if not fine:
        print(
            f"The fast sweep must give the same numbers, at least {FASTER} times faster on flipped prompts.",
            file=sys.stderr,
        )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
