"""Speed of our cached sampling and beam search beside transformers' `generate` with its cache: same model, same run.

The contestants take turns in one thread, and the best of several rounds counts.
"""

import argparse
import logging
import time
import warnings

import torch

from utils.models import load, load_hf, load_tokenizer
from utils.sampling import TransformerSampler, beam_search
from utils.transformer import from_transformer_lens

warnings.filterwarnings("ignore")
logging.getLogger("transformers").setLevel(logging.ERROR)
BATCH, NEW, BEAMS, ROUNDS = 16, 200, 8, 3


def seconds(run) -> float:
    """Seconds of the processor, so that other programs on the machine count little."""
    began = time.process_time()
    run()
    return time.process_time() - began


def compare(title: str, names: tuple[str, str], first, second, rounds: int) -> None:
    times = [(seconds(first), seconds(second)) for _ in range(rounds)]
    own, other = (min(column) for column in zip(*times, strict=True))
    print(f"{title}: {names[0]} {own:.2f} s, {names[1]} {other:.2f} s: {other / own:.2f} times as fast", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model, hf, tokenizer = from_transformer_lens(load("lm", processed=False)), load_hf("lm").cpu(), load_tokenizer()
    sampler = TransformerSampler(model, tokenizer)
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, model.cfg.d_vocab, (BATCH, 20), generator=draw)
    one = prompts[:1]
    eos = tokenizer.eos_token_id
    # No text may end early, or the two would not do the same work.
    common = dict(max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=eos)
    mask, mask_one = torch.ones_like(prompts), torch.ones_like(one)

    compare(
        f"sampling {NEW} tokens, batch of {BATCH}, cached",
        ("ours", "transformers"),
        lambda: sampler.generate(prompts.tolist(), NEW, stop_at_eos=False),
        lambda: hf.generate(prompts, attention_mask=mask, do_sample=True, top_k=0, **common),
        rounds,
    )
    compare(
        f"beam search with {BEAMS} beams, {NEW} tokens, cached",
        ("ours", "transformers"),
        lambda: beam_search(model, one[0], BEAMS, NEW),
        lambda: hf.generate(
            one, attention_mask=mask_one, do_sample=False, num_beams=BEAMS, length_penalty=0.0, **common
        ),
        rounds,
    )
    compare(
        f"sampling 100 tokens, batch of {BATCH}",
        ("with our cache", "without"),
        lambda: sampler.generate(prompts.tolist(), 100, stop_at_eos=False),
        lambda: sampler.generate(prompts.tolist(), 100, stop_at_eos=False, use_cache=False),
        1,
    )


if __name__ == "__main__":
    main()
