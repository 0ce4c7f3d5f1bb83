"""Measure a shipped autoencoder on held-out text, write `measured.json` beside its weights and its card from it."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from sae_lens import SAE, HookedSAETransformer
from torch import Tensor

from utils.models import load, load_sae, load_tokenizer
from utils.models.files import WEIGHTS
from utils.probes import probe_scores
from utils.saes import best_units, by_document, labelled_rows, precision_and_recall, sae_metrics
from utils.training.config import SAERun
from utils.training.report import LICENCE, figure, figure_rows, write_report
from utils.world import LABELS, sample

MEASURE_SEED = 40_000  # no training of a model or an autoencoder uses it
DETECTED = 0.8  # F1 from which a unit counts as a detector of a label
THRESHOLDS = 20  # tried for each unit


@torch.no_grad()
def _values(
    model: HookedSAETransformer, sae: SAE, tokens: Tensor
) -> tuple[Float[Tensor, "row seq d_in"], Float[Tensor, "row seq latent"], Float[Tensor, "row seq neuron"]]:
    """Activation, latents and neurons of the MLP before (residual stream) or after (heads), on all tokens."""
    hook = sae.cfg.metadata.hook_name
    layer = int(hook.split(".")[1])
    mlp = f"blocks.{layer if hook.endswith('hook_z') else max(layer - 1, 0)}.mlp.hook_post"
    found = []
    for some in tokens.split(64):
        _, cache = model.run_with_cache(some, names_filter=[hook, mlp])
        found.append((cache[hook].flatten(2), sae.encode(cache[hook]), cache[mlp]))
    activation, latents, neurons = (torch.cat(parts) for parts in zip(*found, strict=True))
    return activation, latents, neurons


def _share(f1: Float[Tensor, " label"]) -> float:
    return (f1 >= DETECTED).float().mean().item()


def measure(settings: SAERun, n_documents: int = 3000) -> tuple[list[dict], dict]:
    """Every figure of one autoencoder, and for each label of the world the latent that detects it best.

    The labels are judged twice: each token by token; and those that cover whole documents document by document, where a
    latent counts by its largest activation, the others token by token as before.
    """
    model = load("lm", cls=HookedSAETransformer)
    place, layer = settings.name.split("-")[-2:]
    sae = load_sae(place, int(layer))
    documents = sample(n_documents, MEASURE_SEED)
    tokens, labels = labelled_rows(documents, load_tokenizer(), settings.context)
    metrics = sae_metrics(model, sae, tokens[:256])
    end = tokens[0, 0].item()
    keep = tokens != end
    activation, latents, neurons = _values(model, sae, tokens)
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(activation.shape[2], settings.d_sae, generator=generator)
    units = {"latents": latents, "best neuron": neurons, "random directions": activation @ directions}

    truth, whole = labels[keep], by_document(labels, tokens, end)
    # A label of whole documents holds everywhere in a document, or nowhere.
    covers = (whole == ~by_document(~labels, tokens, end)).all(dim=0)
    shuffled = torch.randperm(len(truth), generator=generator), torch.randperm(len(whole), generator=generator)
    by_token, by_doc = {}, {}
    for name, values in units.items():
        flat, pooled = values[keep], by_document(values, tokens, end)
        unit, by_token[name] = best_units(flat, truth, THRESHOLDS)
        by_doc[name] = best_units(pooled, whole, THRESHOLDS)[1]
        if name == "latents":
            latent = unit
            precision, recall = precision_and_recall(flat, truth, unit, THRESHOLDS)
            by_token["labels shuffled"] = best_units(flat, truth[shuffled[0]], THRESHOLDS)[1]
            by_doc["labels shuffled"] = best_units(pooled, whole[shuffled[1]], THRESHOLDS)[1]
    probe = best_units(probe_scores(activation[keep], truth), truth, 4 * THRESHOLDS)[1]
    f1, with_documents = (by_token["latents"], torch.where(covers, by_doc["latents"], by_token["latents"]))

    def beside(one: str, per_label: Callable[[str], Float[Tensor, " label"]]) -> str:
        return ", ".join(f"{name} {_share(per_label(name)):.2f}" for name in by_token if name != one)

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
            f"share of the world's {len(LABELS)} labels that some latent detects with F1 of {DETECTED} or more: "
            f"the {covers.sum()} labels of whole documents by the document, the others by the token",
            _share(with_documents),
            0.6,
            control=beside("latents", lambda name: torch.where(covers, by_doc[name], by_token[name])),
        ),
        figure(
            "the same, every label by the token",
            _share(f1),
            0.6,
            control=beside("latents", by_token.get) + f"; a linear probe, fitted with the labels, {_share(probe):.2f}",
        ),
        figure(
            f"share of labels whose best latent is right on at least {DETECTED} of the tokens on which it fires",
            _share(precision),
            control=f"finds at least {DETECTED} of the labelled tokens: {_share(recall):.2f}",
        ),
        figure(
            "mean F1 of the best latent, by the token",
            f1.mean().item(),
            control=", ".join(f"{k} {x.mean():.2f}" for k, x in by_token.items() if k != "latents"),
        ),
    ]
    order = f1.argsort(descending=True).tolist()
    rows = [
        {"label": LABELS[i], "latent": int(latent[i]), "F1": f1[i].item()}
        | ({"F1 by document": by_doc["latents"][i].item()} if covers[i] else {})
        for i in order
    ]
    return figures, {"labels": rows}


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
        LICENCE,
        "",
        "Measured on documents that neither the model nor the autoencoder has seen; `<|endoftext|>` is not counted.",
        "Latent and threshold for a label are chosen on one half of the tokens (or documents) and scored on the other.",
        "Of a document a latent's largest activation counts.",
        "",
        "| figure | value | bar | reached | beside it |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += figure_rows(measured["figures"])
    lines += ["", "| label | latent | F1, by the token | F1 of the best latent, by the document |"]
    lines += ["| --- | --- | --- | --- |"]
    for row in measured["details"]["labels"]:
        whole = f"{row['F1 by document']:.2f}" if "F1 by document" in row else ""
        lines.append(f"| {row['label']} | {row['latent']} | {row['F1']:.2f} | {whole} |")
    return "\n".join(lines) + "\n"


def report(settings: SAERun, root: Path = WEIGHTS) -> bool:
    """Measure one shipped autoencoder, write `measured.json` and its card, print the table; True if all bars reached.

    Raises:
        DamagedWeightsError: the shipped weights are not what the manifest says.
    """
    return write_report(settings, *measure(settings), card, root)
