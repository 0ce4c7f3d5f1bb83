"""A hub's cache as the hub lays it out, with real names and file formats, and small models of random weights in it.

Nothing here says what the real weights would do: only that they would be found, read, and given to the right names.
"""

import json
from pathlib import Path

import torch
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory as pretrained_saes
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformer_lens import HookedTransformerConfig
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils import world
from utils.checks.models import new_model

COMMIT = "0" * 39 + "1"
LAYERS, D_MODEL, HEADS = 2, 16, 2


def repository(cache: Path, name: str) -> Path:
    """The folder in which a repository's one snapshot lies, as `huggingface_hub` caches it."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def tokenizer(bos: str = "<|endoftext|>", last: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE on world text; as in GPT-2 the token that begins a text is the last one, and not 0."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator((document.text for document in world.sample(200, 3)), trainer)
    made.add_special_tokens([bos])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=bos, unk_token=bos)


def gpt2(folder: Path, seed: int = 0) -> GPT2LMHeadModel:
    """GPT-2's files: config.json, model.safetensors, the tokenizer's."""
    words = tokenizer()
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=D_MODEL, n_layer=LAYERS, n_head=HEADS, bos_token_id=len(words) - 1
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


def llama(folder: Path) -> LlamaForCausalLM:
    """A small Llama: rotary positions, RMSNorm, two queries to a key, a vocabulary without GPT-2's first token."""
    words = tokenizer("<s>")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=D_MODEL,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=len(words) - 1,
        eos_token_id=len(words) - 1,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model


def attention_only(layers: int, d_vocab: int, normalization: str | None, positions: str):
    """A model in transformer_lens's own form, with weights drawn."""
    torch.manual_seed(layers)
    cfg = HookedTransformerConfig(
        n_layers=layers,
        d_model=D_MODEL,
        n_heads=HEADS,
        d_head=D_MODEL // HEADS,
        n_ctx=64,
        d_vocab=d_vocab,
        attn_only=True,
        normalization_type=normalization,
        positional_embedding_type=positions,
        init_weights=True,
        device="cpu",
    )
    return new_model(cfg)


def fill(cache: Path) -> None:
    """All that `hub.toml` names, except the autoencoders of all layers but the first and the large model."""
    gpt2(repository(cache, "gpt2"))
    words = tokenizer()
    words.save_pretrained(repository(cache, "EleutherAI/gpt-neox-20b"))
    two = attention_only(2, len(words), None, "shortformer")
    torch.save(two.state_dict(), repository(cache, "callummcdougall/attn_only_2L_half") / "attn_only_2L_half.pth")
    one, place = (
        attention_only(1, len(words), "LN", "standard"),
        repository(cache, "NeelNanda/Attn_Only_1L512W_C4_Code"),
    )
    torch.save(one.state_dict(), place / "model_final.pth")
    c = one.cfg
    sizes = {key: getattr(c, key) for key in ("d_model", "n_layers", "d_head", "n_heads", "n_ctx", "d_vocab")}
    config = sizes | dict(d_mlp=4 * D_MODEL, act_fn="gelu", attn_only=True, normalization="LN", shortformer_pos=False)
    (place / "config.json").write_text(json.dumps(config | {"tokenizer_name": "NeelNanda/gpt-neox-tokenizer-digits"}))
    words.save_pretrained(repository(cache, "NeelNanda/gpt-neox-tokenizer-digits"))
    autoencoders(cache)


def autoencoders(cache: Path) -> None:
    """The released autoencoders of layer 0, of the residual stream and of the heads, each in its release's layout."""
    torch.manual_seed(5)
    d_sae = 4 * D_MODEL
    weights = {
        "W_enc": torch.randn(D_MODEL, d_sae),
        "b_enc": torch.randn(d_sae),
        "W_dec": torch.randn(d_sae, D_MODEL),
        "b_dec": torch.randn(D_MODEL),
    }
    folder = repository(cache, "jbloom/GPT2-Small-SAEs-Reformatted") / "blocks.0.hook_resid_pre"
    folder.mkdir(parents=True)
    save_file(weights, folder / "sae_weights.safetensors")
    save_file({"sparsity": torch.zeros(d_sae)}, folder / "sparsity.safetensors")
    (folder / "cfg.json").write_text(json.dumps(RELEASED | {"d_in": D_MODEL, "d_sae": d_sae}))
    release = pretrained_saes()["gpt2-small-hook-z-kk"]
    file = repository(cache, release.repo_id) / release.saes_map["blocks.0.hook_z"]
    torch.save(weights, file)
    sizes = {"act_size": D_MODEL, "dict_size": d_sae, "act_name": "blocks.0.attn.hook_z"}
    file.with_name(f"{file.stem}_cfg.json").write_text(json.dumps(sizes))


# As jbloom/GPT2-Small-SAEs-Reformatted has it.
RELEASED = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.0.hook_resid_pre",
    "hook_point_layer": 0,
    "hook_point_head_index": None,
    "dataset_path": "Skylion007/openwebtext",
    "is_dataset_tokenized": False,
    "context_size": 128,
    "use_cached_activations": False,
    "dtype": "torch.float32",
    "device": "cpu",
}
