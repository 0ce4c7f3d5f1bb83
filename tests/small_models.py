"""A small random GPT-2, the same weights as `DemoTransformer` and as transformers' `GPT2LMHeadModel`."""

import einops
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from utils.transformer import Config, DemoTransformer

SMALL = Config(d_model=24, n_layers=3, n_heads=3, d_head=8, d_mlp=40, d_vocab=50, n_ctx=40)


def random_demo(cfg: Config = SMALL, seed: int = 0, spread: float = 0.35) -> DemoTransformer:
    """All weights random, biases and LayerNorms too, large enough for peaked predictions."""
    model = DemoTransformer(cfg)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread)
            if name.endswith((".ln1.w", ".ln2.w", "ln_final.w")):
                parameter += 1
        model.unembed.b_U.zero_()  # GPT-2 has none
    return model.eval().requires_grad_(False)


def to_hf(model: DemoTransformer, eos_token_id: int | None = 0) -> GPT2LMHeadModel:
    """The same model in transformers."""
    cfg = model.cfg
    config = GPT2Config(
        vocab_size=cfg.d_vocab,
        n_positions=cfg.n_ctx,
        n_embd=cfg.d_model,
        n_layer=cfg.n_layers,
        n_head=cfg.n_heads,
        n_inner=cfg.d_mlp,
        layer_norm_epsilon=cfg.layer_norm_eps,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=eos_token_id,
        pad_token_id=0,
    )
    state = {
        "transformer.wte.weight": model.embed.W_E,
        "transformer.wpe.weight": model.pos_embed.W_pos,
        "transformer.ln_f.weight": model.ln_final.w,
        "transformer.ln_f.bias": model.ln_final.b,
        "lm_head.weight": model.unembed.W_U.T,
    }
    for layer, block in enumerate(model.blocks):
        attn, mlp, h = block.attn, block.mlp, f"transformer.h.{layer}"
        into = [einops.rearrange(W, "h d e -> d (h e)") for W in (attn.W_Q, attn.W_K, attn.W_V)]
        state |= {
            f"{h}.ln_1.weight": block.ln1.w,
            f"{h}.ln_1.bias": block.ln1.b,
            f"{h}.ln_2.weight": block.ln2.w,
            f"{h}.ln_2.bias": block.ln2.b,
            f"{h}.attn.c_attn.weight": torch.cat(into, dim=1),
            f"{h}.attn.c_attn.bias": torch.cat([b.flatten() for b in (attn.b_Q, attn.b_K, attn.b_V)]),
            f"{h}.attn.c_proj.weight": einops.rearrange(attn.W_O, "h e d -> (h e) d"),
            f"{h}.attn.c_proj.bias": attn.b_O,
            f"{h}.mlp.c_fc.weight": mlp.W_in,
            f"{h}.mlp.c_fc.bias": mlp.b_in,
            f"{h}.mlp.c_proj.weight": mlp.W_out,
            f"{h}.mlp.c_proj.bias": mlp.b_out,
        }
    hf = GPT2LMHeadModel(config).eval()
    missing, unexpected = hf.load_state_dict({k: v.contiguous() for k, v in state.items()}, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return hf
