"""Transcoders of pico-gpt's MLPs: BatchTopK in plain torch, saved in sae_lens's format."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformer

from utils.models import load, load_tokenizer
from utils.training.config import CONFIGS, TranscoderRun
from utils.training.data import repeated_rows
from utils.training.loop import autocasts
from utils.transcoders import Transcoder
from utils.world import rows, sample

# World text that no model, no autoencoder and no measurement has seen.
FIRST_TRANSCODER_SEED = 2_500_000
DOCUMENTS_PER_SHARD = 2_000
ROWS = 64  # of text, through the model at once
CHECK_EVERY = 75  # steps between two looks for dead latents
DEAD_AFTER = 60_000  # tokens without a firing


@torch.no_grad()
def mlp_inputs(model: HookedTransformer, settings: TranscoderRun) -> list[Float[Tensor, "token d_model"]]:
    """What each layer's MLP reads on fresh rows, a share of them repeated random passages, in 16 bits."""
    tokenizer, hooks = load_tokenizer(), [f"blocks.{layer}.ln2.hook_normalized" for layer in range(model.cfg.n_layers)]
    config = replace(CONFIGS["pico-gpt"], n_ctx=settings.context)
    wanted = math.ceil(settings.n_different / settings.context)
    repeated = round(wanted * settings.repeated_share)
    parts, have, shard = [repeated_rows(repeated, config, FIRST_TRANSCODER_SEED)], repeated, 0
    while have < wanted:
        documents = sample(DOCUMENTS_PER_SHARD, FIRST_TRANSCODER_SEED + shard)
        parts.append(rows(documents, tokenizer, settings.context).long()[: wanted - have])
        have, shard = have + len(parts[-1]), shard + 1
    found = []
    for some in torch.cat(parts).split(ROWS):
        model.run_with_hooks(
            some,
            fwd_hooks=[(hook, lambda x, hook: found.append(x.flatten(0, 1).half())) for hook in hooks],
            return_type=None,
        )
    return [torch.cat(found[layer :: len(hooks)]) for layer in range(len(hooks))]


def kept_inputs(model: HookedTransformer, settings: TranscoderRun, folder: Path) -> Float[Tensor, "token d_model"]:
    """`mlp_inputs` of the settings' layer, from a file under `folder`: the transcoders of all layers share one run."""
    shared = f"{settings.n_different}-{settings.context}-{settings.repeated_share:g}"
    files = [folder / f"mlp-inputs-{shared}-{layer}.safetensors" for layer in range(model.cfg.n_layers)]
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        for file, x in zip(files, mlp_inputs(model, settings), strict=True):
            save_file({"x": x}, f"{file}.part")
            os.replace(f"{file}.part", file)
    return load_file(files[settings.layer])["x"]


def fit(
    x: Float[Tensor, "token d_in"],
    mlp: Callable[[Tensor], Tensor],
    settings: TranscoderRun,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Transcoder:
    """A transcoder of `mlp` on these inputs.

    BatchTopK by a threshold that is steered until `settings.k` latents are active a token on average; decoder rows of
    length 1; latents that have long been silent start anew from tokens that are rebuilt worst.
    """
    generator = torch.Generator().manual_seed(seed)

    def batch(indices: Tensor) -> tuple[Tensor, Tensor]:
        inputs = x[indices].float()
        return (inputs - in_mean) / in_scale, (mlp(inputs) - out_mean) / out_scale

    with torch.no_grad():
        some = x[torch.randperm(len(x), generator=generator)[:8192]].float()
        outputs = mlp(some)
        (in_mean, in_scale), (out_mean, out_scale) = ((t.mean(0), t.var(0).mean().sqrt()) for t in (some, outputs))
        inputs, targets = (some - in_mean) / in_scale, (outputs - out_mean) / out_scale
    coder = Transcoder(x.shape[1], outputs.shape[1], settings.d_sae, settings.skip)
    threshold = _start(coder, inputs, targets, settings, generator)
    optimizer = torch.optim.Adam(coder.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    size, steps = settings.batch_tokens, settings.n_tokens // settings.batch_tokens
    silent = torch.zeros(settings.d_sae)
    order, place = torch.randperm(len(x), generator=generator), 0
    for step in range(steps):
        if place + size > len(order):
            order, place = torch.randperm(len(x), generator=generator), 0
        with torch.no_grad():
            inputs, targets = batch(order[place : place + size])
        place += size
        share = min(1, (step + 1) / min(100, steps // 10), 3 * (steps - step) / steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * max(share, 1 / 30)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocasts(torch.device("cpu"))):
            acts = F.threshold(torch.addmm(coder.b_enc, inputs, coder.W_enc), threshold, 0.0)
            error = targets - coder.decode(acts, inputs).float()
        loss = error.pow(2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            active = acts > 0
            threshold *= math.exp(max(-0.05, min(0.05, 0.15 * (active.sum().item() / (settings.k * size) - 1))))
            silent = (silent + size).masked_fill(active.any(0), 0)
            # A gradient along a decoder row would only change its length.
            coder.W_dec.grad -= (coder.W_dec.grad * coder.W_dec).sum(1, keepdim=True) * coder.W_dec
        nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            coder.W_dec /= coder.W_dec.norm(dim=1, keepdim=True)
            dead = (silent > DEAD_AFTER).nonzero()[:, 0]
            if step % CHECK_EVERY == 0:
                fvu = (error.pow(2).mean() / targets.pow(2).mean()).item()
                report(f"{step}/{steps}  unexplained {fvu:.4f}  L0 {active.sum() / size:.1f}  dead {len(dead)}")
                if 0 < step < 0.6 * steps and len(dead):
                    dead = dead[: size // 2]
                    _set_anew(coder, optimizer, dead, inputs, error, threshold, generator)
                    silent[dead] = 0
    with torch.no_grad():
        _unscale(coder, threshold, in_mean, in_scale, out_mean, out_scale)
    return coder


@torch.no_grad()
def _start(coder: Transcoder, inputs: Tensor, targets: Tensor, settings: TranscoderRun, generator) -> float:
    """Set encoder and decoder from data; returns the threshold that k of the latents exceed."""
    chosen = torch.randperm(len(inputs), generator=generator)[: settings.d_sae]
    unit = []
    for values in (inputs, targets):
        rows_ = F.normalize(values[chosen], dim=1)
        noise = torch.randn(rows_.shape, generator=generator) / rows_.shape[1] ** 0.5
        unit.append(F.normalize(rows_ + 0.5 * noise, dim=1))
    coder.W_enc.copy_(unit[0].T)
    coder.W_dec.copy_(unit[1])
    pre = inputs[:2048] @ coder.W_enc
    threshold = pre.flatten()[::7].quantile(1 - settings.k / settings.d_sae).item() if pre.numel() < 1e8 else 0.0
    # Both to the scale at which the sum of the active decoder rows has the size of the output.
    rebuilt = F.threshold(pre, threshold, 0.0) @ coder.W_dec
    scale = max(((rebuilt * targets[:2048]).sum() / rebuilt.pow(2).sum()).item(), 0.02)
    coder.W_enc *= scale
    return max(threshold * scale, 1e-3)


@torch.no_grad()
def _set_anew(coder: Transcoder, optimizer, dead: Tensor, inputs: Tensor, error: Tensor, threshold: float, generator):
    """Each dead latent reads one badly rebuilt token and writes its error; Adam forgets what it knew of it."""
    size = error.norm(dim=1)
    tokens = torch.multinomial(size.pow(2), len(dead), generator=generator)
    read, length = inputs[tokens], inputs[tokens].norm(dim=1, keepdim=True)
    strength = size[tokens].clamp_min(1.3 * threshold)[:, None]
    coder.W_enc[:, dead] = (read / length * strength / length).T
    coder.b_enc[dead] = 0
    coder.W_dec[dead] = error[tokens] / size[tokens][:, None]
    for parameter, index in ((coder.W_enc, (slice(None), dead)), (coder.b_enc, (dead,)), (coder.W_dec, (dead,))):
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][name][index] = 0


def _unscale(coder: Transcoder, threshold: float, in_mean, in_scale, out_mean, out_scale) -> None:
    """Put means and scales of inputs and outputs into the weights."""
    W_enc = coder.W_enc * out_scale / in_scale
    coder.b_enc.copy_(coder.b_enc * out_scale - in_mean @ W_enc)
    coder.W_enc.copy_(W_enc)
    coder.threshold.fill_(threshold * out_scale)
    b_dec = coder.b_dec * out_scale + out_mean
    if coder.W_skip is not None:
        coder.W_skip.mul_(out_scale / in_scale)
        b_dec = b_dec - coder.W_skip @ in_mean
        coder.W_skip -= coder.W_skip.mean(0, keepdim=True)
    coder.b_dec.copy_(b_dec)
    # The MLP's input has mean 0, and so have all that is written to the processed model's stream: nothing is lost, and
    # a product of encoder and decoder rows is what a gradient through LayerNorm's centring would be.
    coder.W_enc -= coder.W_enc.mean(0, keepdim=True)
    coder.W_dec -= coder.W_dec.mean(1, keepdim=True)
    coder.b_dec -= coder.b_dec.mean()


def train(settings: TranscoderRun, folder: Path, model: HookedTransformer | None = None) -> Path:
    """Train one transcoder and save it in sae_lens's format, in 16 bits, under `folder`; returns its folder.

    The folder appears when the training is finished: a run that was killed leaves nothing behind.
    """
    begun, used = time.monotonic(), time.process_time()
    model = load("lm") if model is None else model
    x = kept_inputs(model, settings, folder)
    mlp = model.blocks[settings.layer].mlp
    coder = fit(x, mlp, settings, report=lambda line: print(f"{settings.name}  {line}", flush=True))
    training = {
        "settings": asdict(settings),
        "hardware": "one CPU core" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} CPU threads",
        "minutes": round((time.process_time() - used) / 60, 1),
        "wall_minutes": round((time.monotonic() - begun) / 60, 1),
    }
    target, part = folder / settings.name, folder / f"{settings.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    save(coder, part, settings, training)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    return target


def save(coder: Transcoder, folder: Path, settings: TranscoderRun, training: dict) -> None:
    """Write `cfg.json` and the weights, in 16 bits, as sae_lens reads them."""
    folder.mkdir(parents=True)
    weights = {name: tensor.half().contiguous() for name, tensor in coder.state_dict().items()}
    save_file(weights, folder / "sae_weights.safetensors")
    described = {
        "architecture": "jumprelu_skip_transcoder" if settings.skip else "jumprelu_transcoder",
        "d_in": coder.W_enc.shape[0],
        "d_out": coder.W_dec.shape[1],
        "d_sae": settings.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": version("sae-lens"),
            "model_name": "pico-gpt",
            "hook_name": f"blocks.{settings.layer}.ln2.hook_normalized",
            "hook_name_out": f"blocks.{settings.layer}.hook_mlp_out",
            "context_size": settings.context,
            "prepend_bos": True,
            "training": training,
        },
    }
    (folder / "cfg.json").write_text(json.dumps(described, indent=1) + "\n")
