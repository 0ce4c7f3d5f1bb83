"""Pages and pictures about a language model's latents: histograms, examples, logits, and one dashboard for each.

All HTML is static with inline colours: it shows in a notebook that is not trusted, and in both themes.
"""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from IPython.display import HTML
from jaxtyping import Float
from sae_lens import SAE, ActivationsStore, HookedSAETransformer
from torch import Tensor

from utils import show
from utils.saes import (
    Example,
    get_k_largest_indices,
    get_sae_acts,
    index_with_buffer,
    logit_weights,
    positive_activations,
    token_batches,
)

# A long line of tokens breaks anywhere, rather than run out of the page.
ROW = "display: flex; gap: 8px; overflow-wrap: anywhere"


def plot_latents(acts: Float[Tensor, " d_sae"], title: str) -> go.Figure:
    """Every latent's activation on one token, as a thin line for each active one."""
    active = acts.nonzero().squeeze(1)
    figure = go.Figure(go.Bar(x=active.tolist(), y=show.to_numpy(acts[active]), width=max(1, len(acts) / 300)))
    figure.update_layout(title=title, xaxis_title="latent", yaxis_title="activation", height=300)
    figure.update_xaxes(range=[0, len(acts)])
    return figure


def show_activation_histogram(
    model: HookedSAETransformer, sae: SAE, act_store: ActivationsStore, latent_idx: int, total_batches: int = 10
) -> go.Figure:
    """How large a latent's activation is where it is active, and on which share of the tokens it is."""
    acts, share = positive_activations(model, sae, act_store, latent_idx, total_batches)
    counts, edges = _histogram(acts)
    figure = go.Figure(go.Bar(x=(edges[:-1] + edges[1:]) / 2, y=counts, width=np.diff(edges)))
    figure.update_layout(
        title=f"Latent {latent_idx} is active on {100 * share:#.3g}% of the tokens",
        xaxis_title="activation", yaxis_title="tokens", bargap=0.02, height=320,
    )  # fmt: skip
    return figure


def _histogram(acts: Float[Tensor, " active"], bins: int = 30) -> tuple[np.ndarray, np.ndarray]:
    return np.histogram(show.to_numpy(acts), bins=bins, range=(0, max(1e-6, acts.max().item() if len(acts) else 0)))


def neuronpedia_link(sae: SAE, latent_idx: int) -> str | None:
    """The latent's page on neuronpedia.org; None for autoencoders that are not there, as the workbook's own."""
    place = sae.cfg.metadata.neuronpedia_id
    return f"https://www.neuronpedia.org/{place}/{latent_idx}" if place else None


def show_top_logits(model: HookedSAETransformer, sae: SAE, latent_idx: int, k: int = 10) -> HTML:
    """The `k` tokens that a latent makes most likely and the `k` that it makes least likely, by the direct path."""
    return HTML(_logits(model, sae, latent_idx, k))


def show_examples(examples: Sequence[Example]) -> HTML:
    """Windows of text, each token shaded by the latent's activation; one scale for all of them."""
    return HTML(_examples(examples))


def dashboard(
    model: HookedSAETransformer,
    sae: SAE,
    act_store: ActivationsStore,
    latent_idx: int,
    total_batches: int = 10,
    k: int = 8,
    buffer: int = 8,
    f1: dict[str, float] | None = None,
) -> HTML:
    """One page about a latent: histogram, top examples, top and bottom logits, and what it detects.

    Args:
        f1: for each of the world's labels the latent's F1 as its detector; the three largest are shown.
    """
    # As `positive_activations` and `fetch_max_activating_examples`, from one pass over the text.
    batches = token_batches(act_store, total_batches)
    all_acts = torch.cat([get_sae_acts(model, sae, tokens)[..., latent_idx] for tokens in batches])
    acts, share = all_acts[all_acts > 0], (all_acts > 0).float().mean().item()
    indices = get_k_largest_indices(all_acts, k, buffer)
    windows = (index_with_buffer(x, indices, buffer) for x in (torch.cat(batches), all_acts))
    examples = [Example(model.to_str_tokens(t), a) for t, a in zip(*windows, strict=True) if a[buffer] > 0]
    parts = [f"<h4>{html.escape(str(sae.cfg.metadata.hook_name))}, latent {latent_idx}</h4>"]
    if link := neuronpedia_link(sae, latent_idx):
        parts.append(f'<div><a href="{link}">this latent on Neuronpedia</a></div>')
    if f1:
        best = sorted(f1.items(), key=lambda item: -item[1])[:3]
        parts.append("<div>Label, F1: " + ", ".join(f"{html.escape(k)} {v:#.3g}" for k, v in best) + "</div>")
    most = acts.max().item() if len(acts) else 0.0
    parts.append(f"<div>Active on {100 * share:#.3g}% of the tokens, at most {most:#.3g}.</div>")
    parts += [_bars(acts), _examples(examples), _logits(model, sae, latent_idx, k)]
    return HTML('<div style="margin: 8px 0">' + "".join(parts) + "</div>")


def _bars(acts: Float[Tensor, " active"], width: int = 420, height: int = 70) -> str:
    """The histogram as plain HTML, which JupyterLab shows in any notebook (an SVG only in one that it trusts).

    Heights are the counts' roots, so that a thin tail shows.
    """
    counts, edges = _histogram(acts)
    tall = np.sqrt(counts) / max(1.0, np.sqrt(counts.max()))
    bar = f"display: inline-block; width: {width // len(counts)}px; background-color: {show.BLUE}; margin-right: 1px"
    bars = "".join(
        f'<span title="{edges[i]:#.3g} to {edges[i + 1]:#.3g}: {c} tokens" '
        f'style="{bar}; height: {height * t:.1f}px"></span>'
        for i, (t, c) in enumerate(zip(tall, counts, strict=True))
    )
    scale = f"activation, from 0 to {edges[-1]:#.3g} (height: the root of the number of tokens)"
    return f'<div>{bars}</div><div style="color: {show.GREY}">{scale}</div>'


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return "<div>Active on none of these tokens.</div>"
    largest = max(example.acts.max().item() for example in examples)
    strips = (show.token_strip(tokens, acts, limit=largest).data for tokens, acts in examples)
    peaks = (example.acts[len(example.acts) // 2].item() for example in examples)
    rows = (
        f'<div style="{ROW}"><span style="min-width: 44px; color: {show.GREY}">{peak:#.3g}</span>{strip}</div>'
        for peak, strip in zip(peaks, strips, strict=True)
    )
    return "".join(rows)


def _logits(model: HookedSAETransformer, sae: SAE, latent_idx: int, k: int) -> str:
    weights = logit_weights(model, sae, latent_idx)
    lines = []
    for name, (values, tokens) in (("raises", weights.topk(k)), ("lowers", (-weights).topk(k))):
        sign = 1 if name == "raises" else -1
        words = model.tokenizer.batch_decode(tokens[:, None])
        strip = show.token_strip(words, sign * values, limit=weights.abs().max().item()).data
        lines.append(f'<div style="{ROW}"><span style="min-width: 44px">{name}</span>{strip}</div>')
    return "".join(lines)


# ---------------------------------------------------------------- ground truth


def plot_label_f1(
    names: Sequence[str], f1: dict[str, Float[Tensor, " label"]], bar: float = 0.8, on: str = "tokens"
) -> go.Figure:
    """For each label the F1 of its best detector of each kind, labels sorted by the first kind; `on` says of what."""
    kinds = list(f1)
    order = f1[kinds[0]].argsort(descending=True, stable=True).tolist()
    figure = go.Figure()
    for kind, values in f1.items():
        figure.add_scatter(x=[names[i] for i in order], y=show.to_numpy(values)[order], mode="markers", name=kind)
    figure.add_hline(y=bar, line=dict(dash="dot", color=show.GREY))
    share, *controls = (f"{100 * (values >= bar).float().mean():.3g}%" for values in f1.values())
    figure.update_layout(
        title=f"A {kinds[0]} detects {share} of the labels with F1 of at least {bar:g}; others: {', '.join(controls)}",
        xaxis_title="label of the world", yaxis_title=f"F1 on held-out {on}", height=430,
    )  # fmt: skip
    figure.update_xaxes(tickangle=-60, tickfont=dict(size=9))
    return figure


def plot_precision_recall(
    names: Sequence[str], precision: Float[Tensor, " label"], recall: Float[Tensor, " label"]
) -> go.Figure:
    """Each label's best latent: how often it is right where it fires, against how much of the label it finds."""
    figure = go.Figure()
    figure.add_scatter(
        x=show.to_numpy(recall),
        y=show.to_numpy(precision),
        mode="markers", text=list(names), hovertemplate="%{text}<br>precision %{y:.2f}, recall %{x:.2f}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        title=f"The best latents are right, but find a part: median precision {precision.median():#.3g}, "
        f"recall {recall.median():#.3g}",
        xaxis_title="recall: share of the labelled tokens that it finds",
        yaxis_title="precision: share of its tokens that are labelled",
        height=400,
    )
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(range=[-0.02, 1.02])
    return figure


def plot_cover(history: dict[str, list[float]]) -> go.Figure:
    """F1 of the first 1, 2, 3 … latents together, one line for each label."""
    figure = go.Figure()
    for label, values in history.items():
        figure.add_scatter(x=list(range(1, len(values) + 1)), y=show.to_numpy(values), mode="lines+markers", name=label)
    most = max(history, key=lambda label: history[label][-1] - history[label][0])
    values = history[most]
    figure.update_layout(
        title=f"{most} is split: F1 {values[0]:#.3g} with one latent, {values[-1]:#.3g} with {len(values)}",
        xaxis_title="latents taken together", yaxis_title="F1 of 'any of them is active'", height=380,
    )  # fmt: skip
    figure.update_xaxes(dtick=1)
    return figure


def plot_k_sparse(read: dict[str, dict[int, tuple[float, float, float]]], whole: float) -> go.Figure:
    """Share of labels read by k units together, with 95 % intervals, a line for each kind; `whole`: all the stream."""
    figure = go.Figure()
    for kind, by_k in read.items():
        share, low, high = show.to_numpy([list(ends) for ends in zip(*by_k.values(), strict=True)])
        bars = dict(type="data", symmetric=False, array=high - share, arrayminus=share - low)
        figure.add_scatter(x=[str(k) for k in by_k], y=share, error_y=bars, mode="lines+markers", name=kind)
    figure.add_hline(y=whole, line_dash="dot", annotation_text="a probe of the whole stream")
    most = max(read["latents"])
    figure.update_layout(
        title=f"{most} latents read {read['latents'][most][0]:.0%} of the labels, the whole stream {whole:.0%}",
        xaxis_title="units that a probe may read (k)",
        yaxis_title="share of labels with F1 of at least 0.8", height=420,
    )  # fmt: skip
    figure.update_yaxes(range=[-0.03, 1])
    return figure


def plot_scores(
    f1: Float[Tensor, " latent"],
    detection: Float[Tensor, " latent"],
    simulation: Float[Tensor, " latent"],
    texts: Sequence[str],
) -> go.Figure:
    """Each latent's two scores against the F1 of its best label or token."""
    figure = go.Figure()
    fit = {}
    for name, values in (("detection", detection), ("simulation", simulation)):
        figure.add_scatter(x=show.to_numpy(f1), y=show.to_numpy(values), mode="markers", name=name, text=list(texts))
        fit[name] = np.corrcoef(show.to_numpy(f1), show.to_numpy(values))[0, 1]
    figure.update_layout(
        title="The scores follow the F1: correlation "
        + ", ".join(f"{name} {value:#.3g}" for name, value in fit.items()),
        xaxis_title="F1 of the latent's best label or token", yaxis_title="score of the explanation", height=400,
    )  # fmt: skip
    return figure
