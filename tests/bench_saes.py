"""The ablation sweep over an autoencoder's live latents, many in each pass, beside one run of the whole model for each.

    python tests/bench_saes.py [--prompts 16]

Both in one thread, on the shipped model and its autoencoders of the heads' outputs, and on the same numbers. Measured
is processor time, which does not depend on what else the machine does.
"""

import argparse
import logging
import sys
import time
import warnings
from functools import partial

import torch
from sae_lens import HookedSAETransformer

from utils import sae_causes, saes
from utils.ioi import IOIDataset
from utils.models import load, load_sae, sae_layers

FASTER = 5


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    prompts = parser.parse_args().prompts
    warnings.simplefilter("ignore")
    logging.getLogger("sae_lens").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    model = load("lm", cls=HookedSAETransformer)
    data = IOIDataset.sample(model.tokenizer, prompts, template=1)
    right, wrong = data.answer_tokens.T
    metric = partial(sae_causes.logits_to_ave_logit_diff, correct_toks=right, incorrect_toks=wrong, keep_as_tensor=True)
    print(f"{prompts} prompts of {data.tokens.shape[1]} tokens; processor seconds, one thread\n")
    fine, total = True, {"loop": 0.0, "batched": 0.0}
    for layer in sae_layers("z"):
        sae = load_sae("z", layer)
        _, cache = model.run_with_cache_with_saes(data.tokens, saes=[sae], names_filter=[saes.acts_name(sae)])
        for role in ("S2", "END"):
            pos = data.positions[role][0].item()
            latents = (cache[saes.acts_name(sae)][:, pos] > 0).any(dim=0).nonzero().squeeze(1)
            results, seconds = {}, {}
            for way, sweep in (("loop", sae_causes.ablation_sweep), ("batched", sae_causes.ablation_effects)):
                start = time.process_time()
                results[way] = sweep(model, sae, data.tokens, latents, metric, pos)
                seconds[way] = time.process_time() - start
                total[way] += seconds[way]
            worst = (results["loop"] - results["batched"]).abs().max().item()
            print(
                f"layer {layer} at {role:4}{len(latents):4} latents: loop {seconds['loop']:6.2f} s, batched "
                f"{seconds['batched']:6.3f} s, {seconds['loop'] / seconds['batched']:6.1f} times faster, "
                f"largest difference {worst:.0e} of effects up to {results['loop'].abs().max():.2f}"
            )
            fine &= worst < 1e-3
    ratio = total["loop"] / total["batched"]
    print(f"\nall layers: loop {total['loop']:.1f} s, batched {total['batched']:.2f} s, {ratio:.1f} times faster")
    if not fine or ratio < FASTER:
        print(f"The batched sweep must give the same numbers, at least {FASTER} times faster.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
