"""`python -m utils.training train [MODEL] | smoke | export [MODEL] | report`."""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from utils.training import processes
from utils.training.config import CONFIGS, SAE_RUNS, TRANSCODER_RUNS, Config, SAERun, TranscoderRun
from utils.world.tokens import save_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
RUNS = ROOT / ".cache" / "training"
WEIGHTS = ROOT / "utils" / "models" / "weights"
TOKENIZER = WEIGHTS / "pico-gpt"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m utils.training", description=__doc__)
    everything = CONFIGS | SAE_RUNS | TRANSCODER_RUNS
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train one model, or all; goes on where a killed run stopped")
    train.add_argument("model", nargs="?", help=f"one of {', '.join(everything)} (default: all)")
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
    report.add_argument("model", nargs="?", help=f"one of {', '.join(everything)} (default: all)")
    chosen = parser.parse_args(arguments)
    try:
        known = everything if chosen.command in ("train", "report") else CONFIGS
        if chosen.model and chosen.model not in known:
            raise ValueError(f"no model {chosen.model!r} to {chosen.command}: choose one of {', '.join(known)}")
        configs = [known[chosen.model]] if chosen.model else list(known.values())
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


def _train(configs: list[Config | SAERun | TranscoderRun], chosen: argparse.Namespace) -> int:
    from utils.training.loop import Run, forget
    from utils.training.saes import train as train_sae
    from utils.training.transcoders import train as train_transcoder

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    for each in configs:
        if chosen.fresh:
            forget(RUNS / each.name)
        if isinstance(each, SAERun | TranscoderRun):
            # It takes minutes: one that was killed begins anew, one that is finished is not trained again.
            if not (RUNS / each.name).exists():
                (train_sae if isinstance(each, SAERun) else train_transcoder)(each, RUNS)
        else:
            Run(each, _tokenizer(), RUNS / each.name, compiled=chosen.compile).train()
        # Autoencoders and transcoders read the model that is shipped.
        if processes.first():
            _export([each], chosen)
        processes.wait()
    return 0


def _export(configs: list[Config | SAERun | TranscoderRun], chosen: argparse.Namespace) -> int:
    from utils.models.files import write_manifest
    from utils.training.export import export

    for each in configs:
        if isinstance(each, SAERun | TranscoderRun):
            shutil.copytree(RUNS / each.name, WEIGHTS / each.name, dirs_exist_ok=True)
            for path in (WEIGHTS / each.name).iterdir():
                path.chmod(0o644)
        else:
            export(each, RUNS / each.name, WEIGHTS / each.name, TOKENIZER)
        write_manifest(folder=each.name)
        print(f"{each.name}: exported to {WEIGHTS / each.name}")
    return 0


def _smoke(configs: list[Config], chosen: argparse.Namespace) -> int:
    from utils.training.smoke import run_smoke

    return 0 if all([run_smoke(each) for each in configs]) else 1


def _report(configs: list[Config | SAERun | TranscoderRun], chosen: argparse.Namespace) -> int:
    from utils.models.files import write_manifest
    from utils.training import report, sae_report, transcoder_report

    by_kind = {Config: report.report, SAERun: sae_report.report, TranscoderRun: transcoder_report.report}
    reached = []
    for each in configs:
        reached.append(by_kind[type(each)](each))
        write_manifest(folder=each.name)
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
