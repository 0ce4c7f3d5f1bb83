"""`python -m utils.training train [MODEL] | smoke | export [MODEL] | report`."""

import argparse
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from utils.training.config import CONFIGS, Config, config
from utils.world.tokens import save_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
RUNS = ROOT / ".cache" / "training"
WEIGHTS = ROOT / "utils" / "models" / "weights"
TOKENIZER = WEIGHTS / "pico-gpt"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m utils.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one model, or all; goes on where a killed run stopped")
    train.add_argument("model", nargs="?", help=f"one of {', '.join(CONFIGS)} (default: all)")
    train.add_argument("--fresh", action="store_true", help="forget an earlier run of the model")
    train.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    train.add_argument("--compile", action="store_true", help="torch.compile: slower to start, a fifth faster")
    export = commands.add_parser("export", help="put the newest weights of a run where the workbook loads them")
    export.add_argument("model", nargs="?", help=f"one of {', '.join(CONFIGS)} (default: all)")
    smoke = commands.add_parser(
        "smoke", help="train tiny versions: the loss falls, and a resumed run equals a whole one"
    )
    smoke.add_argument("model", nargs="?", help=f"one of {', '.join(CONFIGS)} (default: all)")
    report = commands.add_parser("report", help="measure the shipped models and write their cards")
    report.add_argument("model", nargs="?", help=f"one of {', '.join(CONFIGS)} (default: all)")
    chosen = parser.parse_args(arguments)
    try:
        configs = [config(chosen.model)] if chosen.model else list(CONFIGS.values())
        return {"train": _train, "export": _export, "smoke": _smoke, "report": _report}[chosen.command](configs, chosen)
    except (ValueError, FileNotFoundError) as problem:
        print(problem, file=sys.stderr)
        return 2


def _tokenizer() -> Tokenizer:
    """The shipped tokenizer; trained anew where there is none."""
    if not (TOKENIZER / "tokenizer.json").exists():
        TOKENIZER.mkdir(parents=True, exist_ok=True)
        save_tokenizer(train_tokenizer(), str(TOKENIZER), CONFIGS["pico-gpt"].n_ctx)
    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


def _train(configs: list[Config], chosen: argparse.Namespace) -> int:
    from utils.training.loop import Run, forget

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    for each in configs:
        if chosen.fresh:
            forget(RUNS / each.name)
        Run(each, _tokenizer(), RUNS / each.name, compiled=chosen.compile).train()
    return _export(configs, chosen)


def _export(configs: list[Config], chosen: argparse.Namespace) -> int:
    from utils.models.files import write_manifest
    from utils.training.export import export

    for each in configs:
        export(each, RUNS / each.name, WEIGHTS / each.name, TOKENIZER)
        write_manifest()
        print(f"{each.name}: exported to {WEIGHTS / each.name}")
    return 0


def _smoke(configs: list[Config], chosen: argparse.Namespace) -> int:
    from utils.training.smoke import run_smoke

    return 0 if all([run_smoke(each) for each in configs]) else 1


def _report(configs: list[Config], chosen: argparse.Namespace) -> int:
    from utils.training.report import report

    return 0 if all([report(each) for each in configs]) else 1


if __name__ == "__main__":
    sys.exit(main())
