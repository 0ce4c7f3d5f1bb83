"""What a model needs, computed from its sizes: against the models themselves, and the page that shows it."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from utils.models import load, load_hf
from utils.models.needs import MODELS, engine, tables
from utils.workbook import ROOT

PICO, SMALL, *LLAMAS = MODELS


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_parameters_are_those_of_the_model_itself(model):
    with torch.device("meta"):
        if model.build == "gpt2":
            sizes = {"n_layer": model.n_layers, "n_embd": model.d_model, "n_head": model.n_heads}
            built = GPT2LMHeadModel(GPT2Config(vocab_size=model.d_vocab, n_positions=model.n_ctx, **sizes))
        else:
            sizes = {"num_hidden_layers": model.n_layers, "hidden_size": model.d_model, "vocab_size": model.d_vocab}
            sizes |= {"num_attention_heads": model.n_heads, "num_key_value_heads": model.n_kv_heads}
            built = LlamaForCausalLM(LlamaConfig(intermediate_size=model.d_mlp, tie_word_embeddings=False, **sizes))
    assert sum(p.numel() for p in built.parameters()) == model.parameters()


def test_memory_and_arithmetic_are_those_of_the_shipped_model():
    hf, tokens = load_hf("lm"), torch.randint(1, PICO.d_vocab, (3, 40))
    assert sum(p.numel() * p.element_size() for p in hf.parameters()) == PICO.weights(4)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hf(tokens)
    assert counter.get_total_flops() == pytest.approx(tokens.numel() * PICO.flops(40), rel=0.01)
    _, cache = load("lm").run_with_cache(tokens)
    assert sum(value.numel() for value in cache.values()) == tokens.numel() * PICO.cached(40)
    optimizer = torch.optim.AdamW(hf.parameters())
    hf(tokens).logits.sum().backward()
    optimizer.step()
    held = [t for p in hf.parameters() for t in (p, p.grad, *optimizer.state[p].values()) if t.dim()]
    assert sum(t.numel() * t.element_size() for t in held) == PICO.training()


def test_the_page_shows_what_the_formulas_say():
    assert tables() in (ROOT / "docs" / "larger-models.md").read_text(encoding="utf-8")
    assert [engine(model) for model in MODELS] == ["laptop", "laptop", "one GPU", "NDIF"]
