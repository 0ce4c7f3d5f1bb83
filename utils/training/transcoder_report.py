"""Measure a shipped transcoder on held-out text, write `measured.json` beside its weights and its card from it."""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from sae_lens import HookedSAETransformer
from torch import Tensor

from utils.models import load, load_tokenizer, load_transcoder
from utils.models.files import WEIGHTS
from utils.saes import labelled_rows, next_token_losses
from utils.training.config import CONFIGS, TranscoderRun
from utils.training.data import repeated_rows
from utils.training.report import LICENCE, figure, figure_rows, write_report
from utils.transcoders import jacobian_agreement, places, tasks_right, transcoder_hooks, transcoder_metrics
from utils.world import sample

MEASURE_SEED = 40_000  # no training of a model, an autoencoder or a transcoder uses it


@torch.no_grad()
def _replaced(model: HookedSAETransformer, tokens: Int[Tensor, "batch seq"]) -> tuple[float, dict[str, float]]:
    """What all transcoders in place cost, in nats, and the share of right answers of each task."""
    hooks = transcoder_hooks(model, [load_transcoder(layer) for layer in range(model.cfg.n_layers)])

    def run(tokens: Tensor) -> Tensor:
        return model.run_with_hooks(tokens, fwd_hooks=hooks)

    clean, replaced = (next_token_losses(logits, tokens).mean().item() for logits in (model(tokens), run(tokens)))
    return replaced - clean, tasks_right(run, load_tokenizer())


@torch.no_grad()
def measure(settings: TranscoderRun) -> tuple[list[dict], dict]:
    """Every figure of one transcoder; with the last layer's also those of all together."""
    model = load("lm", cls=HookedSAETransformer)
    transcoder = load_transcoder(settings.layer)
    tokens, _ = labelled_rows(sample(1500, MEASURE_SEED), load_tokenizer(), settings.context)
    more, tokens = tokens[:256], tokens[:64]
    found = transcoder_metrics(model, transcoder, tokens)
    reads = places(transcoder)[0]
    _, cache = model.run_with_cache(more, names_filter=reads, stop_at_layer=settings.layer + 1)
    seen = torch.zeros(settings.d_sae, dtype=torch.bool)
    for x, row in zip(cache[reads], more, strict=True):
        seen |= (transcoder.encode(x[row != tokens[0, 0]]) > 0).any(0)
    repeated = repeated_rows(16, replace(CONFIGS["pico-gpt"], n_ctx=settings.context), MEASURE_SEED)
    on_repeated = transcoder_metrics(model, transcoder, repeated)
    x = cache[reads][:2, 1:].flatten(0, 1)
    mean = (found["loss_mean"] - found["loss_transcoder"]) / (found["loss_mean"] - found["loss_clean"])
    figures = [
        figure("explained variance of the MLP's output", found["explained_variance"], 0.92),
        figure("L0, active latents a token", found["L0"], 26, at_most=True, control=f"of {settings.d_sae}"),
        figure("dead latents", 1 - seen.float().mean().item(), 0.1, at_most=True, control=f"on {more.numel()} tokens"),
        figure(
            "loss recovered, beside zeros in the MLP's place",
            found["loss_recovered"],
            0.98,
            control=", ".join(f"{x} {found[f'loss_{x}']:.3f}" for x in ("clean", "transcoder", "zero", "mean")),
        ),
        figure("loss recovered, beside its mean output", mean),
        figure("what it costs, in nats", found["loss_transcoder"] - found["loss_clean"]),
        figure("explained variance on repeated random passages", on_repeated["explained_variance"]),
        figure(
            "cosine of its Jacobian and the MLP's, mean over tokens",
            jacobian_agreement(model, transcoder, x).mean().item(),
        ),
    ]
    if settings.layer == model.cfg.n_layers - 1:
        cost, right = _replaced(model, tokens)
        figures.append(figure("all MLPs replaced: what it costs, in nats", cost, 0.03, at_most=True))
        clean = tasks_right(lambda tokens: model(tokens), load_tokenizer())
        for name, bar in {"capitals": 0.98, "indirect objects": 0.98, "closing brackets": 0.95}.items():
            figures.append(
                figure(f"all MLPs replaced: {name} right", right[name], bar, control=f"model {clean[name]:.3f}")
            )
    return figures, {}


def card(settings: TranscoderRun, measured: dict, training: dict) -> str:
    """The card, in Markdown, from measured numbers alone."""
    lines = [
        f"# {settings.name}",
        "",
        "Written by `make models-report` from `measured.json` and `cfg.json`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| reads | `blocks.{settings.layer}.ln2.hook_normalized` of pico-gpt (LayerNorm folded, writers centred) |",
        f"| writes | `blocks.{settings.layer}.hook_mlp_out` |",
        f"| size | {settings.d_sae} latents |",
        f"| architecture | JumpReLU with one threshold, from BatchTopK with k = {settings.k:g}"
        f"{', and a skip connection' if settings.skip else ''}; encoder and decoder centred |",
        f"| training | {settings.n_tokens / 1e6:.1f} M tokens in batches of {settings.batch_tokens}, "
        f"{settings.n_different / 1e6:.1f} M of them different, {settings.repeated_share:.0%} of the rows repeated "
        f"random passages; Adam, learning rate {settings.learning_rate:g}, falling over the last third |",
        f"| hardware | {training['hardware']}: {training['minutes']:.1f} minutes of processor time |",
        "| weights | stored in 16 bits, computed in 32 |",
        LICENCE,
        "",
        "Measured on documents that neither the model nor the transcoder has seen; `<|endoftext|>` is not counted.",
        "",
        "| figure | value | bar | reached | beside it |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *figure_rows(measured["figures"])]) + "\n"


def report(settings: TranscoderRun, root: Path = WEIGHTS) -> bool:
    """Measure one shipped transcoder, write `measured.json` and its card, print the table; True if all bars reached.

    Raises:
        DamagedWeightsError: the shipped weights are not what the manifest says.
    """
    return write_report(settings, *measure(settings), card, root)
