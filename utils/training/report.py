"""Measure a shipped model on held-out data, write `measured.json` beside its weights and the model card from it."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from utils.models.files import WEIGHTS, verified
from utils.training import measure
from utils.training.config import CONFIGS, Config
from utils.world import KINDS, TASKS

LICENCE = "| licence | MIT, as the workbook: see LICENSE |"  # a row of every card
HALF = 50  # length of the repeated passages that are measured


def rounded(value):
    """The same with every float rounded to four digits."""
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    if isinstance(value, list):
        return [rounded(x) for x in value]
    return round(value, 4) if isinstance(value, float) else value


def figure(about: str, value: float, bar: float | None = None, at_most: bool = False, control: str = "") -> dict:
    """One row of a card: what was measured, the value, the bar and whether it is reached (None: no bar)."""
    reached = None if bar is None else bool(value <= bar if at_most else value >= bar)
    return {
        "figure": about,
        "value": value,
        "bar": bar,
        "at_most": at_most,
        "reached": reached,
        "control": control,
    }


def write_report(settings, figures: list[dict], details: dict, card: Callable, root: Path) -> bool:
    """Write `measured.json` and the card of an autoencoder or a transcoder, print its table; True if all bars reached.

    Args:
        settings: of today; the card states those with which the shipped weights were trained.
        card: (settings, measured, what is known of the training) → the card's text.
    """
    folder = root / settings.name
    described = json.loads((folder / "cfg.json").read_text())["metadata"]["training"]
    trained = type(settings)(**described["settings"])
    measured = rounded({"model": settings.name, "figures": figures, "details": details})
    (folder / "measured.json").write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(card(trained, measured, described))
    return print_figures(settings.name, measured["figures"])


def print_figures(name: str, figures: list[dict]) -> bool:
    """Print the table of one model; True if all bars are reached."""
    print(name)
    for row in figures:
        mark = {True: "reached", False: "NOT REACHED", None: ""}[row["reached"]]
        bar = "" if row["bar"] is None else f"{'<=' if row['at_most'] else '>='} {row['bar']:g}"
        print(f"  {row['value']:8.3f}  {bar:8} {mark:12} {row['figure']}  ({row['control']})")
    return all(row["reached"] is not False for row in figures)


def measure_gpt(folder: Path, config: Config) -> tuple[list[dict], dict]:
    """Every figure of the language model, and the details behind them."""
    from utils.models import load_hf, load_tokenizer

    model, tokenizer = load_hf("lm"), load_tokenizer("lm").backend_tokenizer

    def predict(tokens):
        return model(tokens.to(model.device)).logits.cpu()

    facts = measure.fact_accuracies(predict, tokenizer)
    ioi = measure.ioi_figures(predict, tokenizer)
    tasks = measure.task_accuracies(predict, tokenizer)
    mean = {key: statistics.mean(row[key] for row in tasks.values()) for key in ("zero", "seen", "held_out")}
    first, second = measure.repeated_losses(predict, config.vocabulary_size, HALF)
    texts = measure.samples(model, tokenizer, context=config.n_ctx)
    parsing = measure.parsing_figures(texts)
    about_facts = "capitals, languages, currencies, top 1"
    figures = [
        figure(
            f"{about_facts}, wordings seen in training", statistics.mean(row["seen"] for row in facts.values()), 0.95
        ),
        figure(f"{about_facts}, held-out wording", statistics.mean(row["held_out"] for row in facts.values()), 0.8),
        figure(
            "indirect object over subject, held-out name pairs, both orders",
            ioi["accuracy"],
            0.99,
            control=f"order ABBA {ioi['accuracy_ABBA']:.3f}, BABA {ioi['accuracy_BABA']:.3f}",
        ),
        figure(
            "its mean logit difference",
            ioi["logit_diff"],
            3.0,
            control=f"third name as subject: {ioi['abc_logit_diff']:.2f}; flipped: {ioi['flipped_logit_diff']:.2f}",
        ),
        figure(f"{len(tasks)} in-context tasks at 5 shots, seen pairs", mean["seen"], 0.95),
        figure(f"{len(tasks)} in-context tasks at 5 shots, held-out pairs", mean["held_out"], 0.6),
        figure("the same seen pairs at 0 shots (the task is open)", mean["zero"], 0.5, at_most=True),
        figure(
            f"loss on the second copy of a random passage of {HALF} tokens, nats",
            second,
            0.3,
            at_most=True,
            control=f"first copy {first:.2f}; ln of the vocabulary {torch.tensor(config.vocabulary_size).log():.2f}",
        ),
        figure(
            "samples at temperature 0.8 that parse as a document of the world",
            parsing["parsed"],
            0.8,
            control=f"with two words exchanged: {parsing['parsed_after_exchanging_two_words']:.2f}",
        ),
    ]
    return figures, {
        "facts": facts,
        "ioi": ioi,
        "tasks": tasks,
        "parsing": parsing,
        "samples": [t for t, _ in texts[:6]],
    }


def measure_attention_only(folder: Path, config: Config) -> tuple[list[dict], dict]:
    """Every figure of an attention-only model, and the scores of its heads."""
    from utils.models import load

    name = "attn2l" if config.n_layers == 2 else "attn1l"
    model = load(name)
    first, second = measure.repeated_losses(lambda t: model(t), config.vocabulary_size, HALF)
    state = {key: tensor.float() for key, tensor in load_file(folder / "model.safetensors").items()}
    scores = measure.head_scores(state, config, HALF, n=16)
    if config.n_layers == 1:
        figures = [
            figure(
                f"loss on the first minus the second copy of a random passage of {HALF} tokens, nats",
                first - second,
                0.3,
                at_most=True,
                control=f"first {first:.2f}, second {second:.2f}",
            ),
            figure("best induction score of a head", max(scores["induction"][0])),
        ]
        return figures, {"scores": scores}
    last = config.n_layers - 1
    order = sorted(range(config.n_heads), key=lambda head: -scores["induction"][last][head])
    single = [measure.copying_accuracy(state, last, [head]) for head in order[:3]]
    two, three = (measure.copying_accuracy(state, last, order[:n]) for n in (2, 3))
    others = measure.copying_accuracy(state, last, order[3:6])
    figures = [
        figure(
            f"loss on the second copy of a random passage of {HALF} tokens, nats",
            second,
            0.7,
            at_most=True,
            control=f"first copy {first:.2f}; ln of the vocabulary {torch.tensor(config.vocabulary_size).log():.2f}",
        ),
        figure("induction score of the best head", scores["induction"][last][order[0]], 0.8),
        figure(
            "induction score of the second head",
            scores["induction"][last][order[1]],
            0.8,
            control=f"fourth best: {scores['induction'][last][order[3]]:.3f}",
        ),
        figure("best previous-token head in layer 0", max(scores["previous"][0]), 0.9),
        figure(
            "full OV copying, top 1, best single induction head",
            max(single),
            control="the three: " + ", ".join(f"{x:.2f}" for x in single),
        ),
        figure(
            "full OV copying, top 1, the two or three induction heads together",
            max(two, three),
            0.98,
            control=f"two {two:.3f}, three {three:.3f}; three other heads of the layer: {others:.3f}",
        ),
    ]
    return figures, {"scores": scores, "induction_heads": [f"{last}.{head}" for head in order[:3]]}


def figure_rows(figures: list[dict]) -> list[str]:
    """The rows of a card's table of figures, in Markdown."""
    lines = []
    for row in figures:
        bar = "" if row["bar"] is None else f"{'at most' if row['at_most'] else 'at least'} {row['bar']:g}"
        reached = {True: "yes", False: "**no**", None: ""}[row["reached"]]
        lines.append(f"| {row['figure']} | {row['value']:.3f} | {bar} | {reached} | {row['control']} |")
    return lines


def card(config: Config, measured: dict, training: dict) -> str:
    """The model card, in Markdown, from measured numbers alone."""
    n = measured["parameters"]
    kind = "GPT-2 architecture" if config.architecture == "gpt2" else "attention-only, shortformer positions"
    rest = (
        "LayerNorm, MLPs of 4 × d_model, output tied to the embedding"
        if config.architecture == "gpt2"
        else "no LayerNorm, no MLP, no biases"
    )
    lines = [
        f"# {config.name}",
        "",
        "Written by `make models-report` from `measured.json` and `training.json`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| architecture | {kind}: {rest} |",
        f"| size | {config.n_layers} layers, {config.n_heads} heads of {config.d_head}, d_model {config.d_model}, "
        f"context {config.n_ctx}, vocabulary {config.vocabulary_size}: {n / 1e6:.2f} M parameters |",
        f"| data | the small world (`utils/world`): {len(KINDS)} kinds of document, {len(TASKS)} in-context tasks; "
        f"{_share(config):.0%} of the rows are repeated random passages |",
        f"| training | {training['tokens'] / 1e6:.1f} M tokens in {training['steps']} steps of {config.batch_rows} "
        f"rows, {'Muon and AdamW' if config.muon else 'AdamW'}, learning rate {_rates(config)} |",
        f"| hardware | {training['hardware']}: {training['minutes']:.0f} minutes |",
        "| weights | stored in 16 bits, computed in 32 |",
        LICENCE,
        "",
        "Measured on held-out data: name pairs, task pairs, wordings and passages that training never saw.",
        "",
        "| figure | value | bar | reached | beside it |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += figure_rows(measured["figures"])
    details = measured["details"]
    if "tasks" in details:
        lines += [
            "",
            "| in-context task | 0 shots | 5 shots, seen pairs | 5 shots, held-out pairs |",
            "| --- | --- | --- | --- |",
        ]
        for task, row in details["tasks"].items():
            lines.append(f"| {task} | {row['zero']:.2f} | {row['seen']:.2f} | {row['held_out']:.2f} |")
        lines += ["", "| fact | seen wordings | held-out wording |", "| --- | --- | --- |"]
        for relation, row in details["facts"].items():
            lines.append(f"| {relation} | {row['seen']:.3f} | {row['held_out']:.3f} |")
        lines += ["", "Samples at temperature 0.8, the first six drawn:", ""]
        lines += ["```text\n" + text + "\n```\n" for text in details["samples"]]
    return "\n".join(lines).rstrip() + "\n"


def _rates(config: Config) -> str:
    """The plateau's learning rate and where it changed."""
    later, before = "", config.learning_rate
    for step, rate, _ in config.changes:
        if rate != before:
            later += f", {rate:g} from step {step}"
        before = rate
    return (
        f"{config.learning_rate:g}{later}; warm-up {config.warmup} steps, fall to zero over the last {config.decay:.0%}"
        + (f", again after each of steps {', '.join(map(str, config.restarts))}" if config.restarts else "")
    )


def _share(config: Config) -> float:
    """The share of repeated rows that the last step saw."""
    return round(config.batch_rows * config.rates(config.steps)[1]) / config.batch_rows


def report(config: Config, root: Path = WEIGHTS) -> bool:
    """Measure one shipped model, write `measured.json` and its card, print the table; True if all bars are reached.

    Raises:
        DamagedWeightsError: the shipped weights are not what the manifest says.
    """
    folder = root / config.name
    verified(folder / "model.safetensors", folder / "training.json", root=root)
    torch.manual_seed(0)
    with torch.no_grad():
        measured_by = measure_gpt if config.architecture == "gpt2" else measure_attention_only
        figures, details = measured_by(folder, config)
    training = json.loads((folder / "training.json").read_text())
    trained = CONFIGS[config.name].__class__(**training["config"])
    parameters = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    measured = rounded({"model": config.name, "parameters": parameters, "figures": figures, "details": details})
    (folder / "measured.json").write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(card(trained, measured, training))
    return print_figures(config.name, measured["figures"])
