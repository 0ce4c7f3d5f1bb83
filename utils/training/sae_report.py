"""Measure a shipped autoencoder on held-out text, write `measured.json` beside its weights and its card from it."""

import json
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE, HookedSAETransformer
from torch import Tensor

from utils.models import load, load_sae, load_tokenizer
from utils.models.files import WEIGHTS
from utils.saes import best_units, labelled_rows, sae_metrics
from utils.training.config import SAERun
from utils.training.report import figure, figure_rows, print_figures, rounded
from utils.world import LABELS, sample

MEASURE_SEED = 40_000  # no training of a model or an autoencoder uses it
DETECTED = 0.8  # F1 from which a unit counts as a detector of a label


@torch.no_grad()
def _values(
    model: HookedSAETransformer, sae: SAE, tokens: Tensor, keep: Bool[Tensor, "row seq"]
) -> tuple[Float[Tensor, "token d_in"], Float[Tensor, "token latent"], Float[Tensor, "token neuron"]]:
    """Activation, latents and neurons of the MLP before (residual stream) or after (heads), on the kept tokens."""
    hook = sae.cfg.metadata.hook_name
    layer = int(hook.split(".")[1])
    mlp = f"blocks.{layer if hook.endswith('hook_z') else max(layer - 1, 0)}.mlp.hook_post"
    found = []
    for some, kept in zip(tokens.split(64), keep.split(64), strict=True):
        _, cache = model.run_with_cache(some, names_filter=[hook, mlp])
        found.append((cache[hook].flatten(2)[kept], sae.encode(cache[hook])[kept], cache[mlp][kept]))
    activation, latents, neurons = (torch.cat(parts) for parts in zip(*found, strict=True))
    return activation, latents, neurons


def measure(settings: SAERun, n_documents: int = 3000) -> tuple[list[dict], dict]:
    """Every figure of one autoencoder, and for each label of the world the latent that detects it best."""
    model = load("lm", cls=HookedSAETransformer)
    place, layer = settings.name.split("-")[-2:]
    sae = load_sae(place, int(layer))
    documents = sample(n_documents, MEASURE_SEED)
    tokens, labels = labelled_rows(documents, load_tokenizer(), settings.context)
    metrics = sae_metrics(model, sae, tokens[:256])
    keep = tokens != tokens[0, 0]
    activation, latents, neurons = _values(model, sae, tokens, keep)
    truth = labels[keep]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(activation.shape[1], settings.d_sae, generator=generator)
    latent, f1 = best_units(latents, truth)
    controls = {
        "best neuron": best_units(neurons, truth)[1],
        "random directions": best_units(activation @ directions, truth)[1],
        "labels of other tokens": best_units(latents, truth[torch.randperm(len(truth), generator=generator)])[1],
    }
    share = {name: (scores >= DETECTED).float().mean().item() for name, scores in controls.items()}
    mean = {name: scores.mean().item() for name, scores in controls.items()}
    figures = [
        figure("explained variance", metrics["explained_variance"], 0.9),
        figure(
            "loss recovered",
            metrics["loss_recovered"],
            0.95,
            control=", ".join(f"{x} {metrics[f'loss_{x}']:.3f}" for x in ("clean", "sae", "zero")) + " nats",
        ),
        figure("L0, active latents a token", metrics["L0"], 30, at_most=True, control=f"of {settings.d_sae}"),
        figure("dead latents", metrics["dead"], 0.1, at_most=True, control=f"on {256 * settings.context} tokens"),
        figure(
            f"share of the world's {len(LABELS)} labels that some latent detects with F1 of {DETECTED} or more",
            (f1 >= DETECTED).float().mean().item(),
            0.6,
            control=", ".join(f"{name} {x:.2f}" for name, x in share.items()),
        ),
        figure(
            "mean F1 of the best latent", f1.mean().item(), control=", ".join(f"{k} {x:.2f}" for k, x in mean.items())
        ),
    ]
    order = f1.argsort(descending=True).tolist()
    return figures, {"labels": [{"label": LABELS[i], "latent": int(latent[i]), "F1": f1[i].item()} for i in order]}


def card(settings: SAERun, measured: dict, training: dict) -> str:
    """The card, in Markdown, from measured numbers alone."""
    lines = [
        f"# {settings.name}",
        "",
        "Written by `make models-report` from `measured.json` and `cfg.json`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| reads | `{settings.hook_name}` of pico-gpt (LayerNorm folded, writers centred) |",
        f"| size | {settings.d_sae} latents |",
        f"| architecture | JumpReLU with one threshold, from sae_lens's BatchTopK trainer, k = {settings.k:g} |",
        f"| training | {settings.n_tokens / 1e6:.1f} M tokens of the small world in batches of "
        f"{settings.batch_tokens}, Adam, learning rate {settings.learning_rate:g}, falling over the last third |",
        f"| hardware | {training['hardware']}: {training['minutes']:.0f} minutes |",
        "| weights | stored in 16 bits, computed in 32 |",
        "",
        "Measured on documents that neither the model nor the autoencoder has seen; `<|endoftext|>` is not counted.",
        "Latent and threshold for a label are chosen on one half of the tokens and scored on the other.",
        "",
        "| figure | value | bar | reached | beside it |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += figure_rows(measured["figures"])
    lines += ["", "| label | latent | F1 |", "| --- | --- | --- |"]
    lines += [f"| {row['label']} | {row['latent']} | {row['F1']:.2f} |" for row in measured["details"]["labels"]]
    return "\n".join(lines) + "\n"


def report(settings: SAERun, root: Path = WEIGHTS) -> bool:
    """Measure one shipped autoencoder, write `measured.json` and its card, print the table; True if all bars reached.

    Raises:
        DamagedWeightsError: the shipped weights are not what the manifest says.
    """
    folder = root / settings.name
    figures, details = measure(settings)
    described = json.loads((folder / "cfg.json").read_text())["metadata"]["training"]
    trained = SAERun(**described["settings"])
    measured = rounded({"model": settings.name, "figures": figures, "details": details})
    (folder / "measured.json").write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(card(trained, measured, described))
    return print_figures(settings.name, measured["figures"])
