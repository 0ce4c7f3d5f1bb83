"""How fast the causal effects of all heads are: restarted at each head's layer, beside nnsight's own ways.

    python tests/bench_function_vectors.py [--prompts 16]

All on the shipped model, on the same prompts, in one thread; measured is processor time, which does not depend on what
else the machine does.
"""

import argparse
import sys
import time

import nnsight
import torch

from utils import function_vectors as fv
from utils.models import load_nnsight
from utils.world import TASKS

FASTER = 4


def one_trace_with_all_heads(model, dataset):
    """nnsight's other way: one invoke for each head, all in one pass of a giant batch."""
    corrupted = dataset.create_corrupted_dataset()
    right = fv.completion_ids(model.tokenizer, dataset.completions)
    rows, n_layers, n_heads = torch.arange(len(right)), model.config.n_layer, model.config.n_head
    d_head = model.config.n_embd // n_heads
    mean_z = fv.mean_head_outputs(model, dataset)
    with model.trace() as tracer:
        results = nnsight.save([])
        with tracer.invoke(corrupted.prompts):
            results.append(model.lm_head.output[:, -1].softmax(dim=-1)[rows, right].mean())
        for layer in range(n_layers):
            for head in range(n_heads):
                with tracer.invoke(corrupted.prompts):
                    z = fv.out_projection(model, layer).input
                    z[:, -1, head * d_head : (head + 1) * d_head] = mean_z[layer, head]
                    results.append(model.lm_head.output[:, -1].softmax(dim=-1)[rows, right].mean())
    before, *after = list(results)
    return (torch.stack(after) - before).reshape(n_layers, n_heads)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    prompts = parser.parse_args().prompts
    torch.set_num_threads(1)
    model = load_nnsight("lm")
    dataset = fv.ICLDataset(fv.one_token_pairs(model.tokenizer, TASKS["capital"].seen), prompts, 5)
    ways = {
        "one trace a head": fv.calculate_fn_vectors_and_intervene,
        "one trace, one invoke a head": one_trace_with_all_heads,
        "causal_effects_fast": fv.causal_effects_fast,
    }
    results, seconds = {}, {}
    for name, way in ways.items():
        start = time.process_time()
        results[name] = way(model, dataset)
        seconds[name] = time.process_time() - start
    slow, _, fast = ways
    worst = max((results[name] - results[slow]).abs().max().item() for name in ways)
    print(
        f"{model.config.n_layer * model.config.n_head} heads, {prompts} prompts with five shots; "
        "processor seconds, one thread\n"
    )
    for name in ways:
        print(f"{name:32}{seconds[name]:8.2f} s {seconds[slow] / seconds[name]:7.1f} ×")
    print(f"largest difference of the numbers: {worst:.1e}")
    if worst > 1e-4 or seconds[slow] / seconds[fast] < FASTER:
        print(f"The fast way must give the same numbers, at least {FASTER} times faster.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
