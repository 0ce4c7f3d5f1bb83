"""The Makefile's commands, as `python -m utils.workbook COMMAND`."""

import argparse
import sys

from utils.workbook import WorkbookError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m utils.workbook", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "build": "write chapters/ and solutions/ from the sources",
        "drift": "say where the notebooks differ from the sources",
        "arrival": "count what each chapter offers who goes through it: predictions, recall, sittings, links",
        "ours": "list the sentences that hold for the course's own models only",
        "coarse": "list the cells that print too few digits of a measured number",
        "execute": "run solved notebooks and record their outputs",
        "nbval": "run solved notebooks and compare with the recorded outputs",
        "unit": "run the unit tests and the proof of the checks",
        "test": "run everything, and say what it took",
        "mistakes": "put named mistakes into the solved notebooks: each must change an output",
        "hints": "run the solved notebooks with the last hints, filled, in place of the solutions",
        "mutants": "make wrong versions of every solution by rule: the checks must reject them",
        "portable": "run the solved notebooks and the checks' own solutions as other machines would",
        "spread": "say how far a chapter's numbers move from machine to machine",
        "random-control": "run every chapter on models that have learned nothing, and list the claims that hold",
        "start": "copy the chapters into work/ where no copy stands",
        "update": "bring the copies in work/ up to date, keeping what was written there",
        "progress": "show what is solved",
        "test-full": "run what is too long for every change, where it was not run for this state of the tree",
        "lab": "open JupyterLab in work/",
        "gpu": "run unit tests, notebooks and checks on a GPU, and say what it took",
        "ndif": "serve the language model by an NDIF server on this machine",
        "ndif-test": "run chapter 10 on such a server and compare",
    }.items():
        command = commands.add_parser(name, help=text)
        if name in (
            "build",
            "coarse",
            "ours",
            "execute",
            "nbval",
            "portable",
            "spread",
            "update",
            "mistakes",
            "mutants",
            "hints",
            "gpu",
            "random-control",
        ):
            command.add_argument("chapter", nargs="?", help="number or name; all without it")
        if name in ("execute", "nbval"):
            command.add_argument("--profile", help="other models than the workbook's own, as in WORKBOOK_MODELS")
        if name == "execute":
            command.add_argument("--changed", action="store_true", help="as far as the last cell that has changed")
        if name == "mistakes":
            command.add_argument("--sample", action="store_true", help="one a chapter, the quickest")
            command.add_argument("--search", action="store_true", help="find three a chapter and list them")
            command.add_argument("--every", action="store_true", help="with --search: try all")
        if name in ("portable", "spread", "mutants"):
            command.add_argument("--jobs", type=int, help="how many at once; the number of cores without it")
        if name == "mutants":
            command.add_argument("--sample", action="store_true", help="a few of every second exercise")
        if name in ("portable", "spread"):
            seeds = 3 if name == "portable" else 8
            command.add_argument("--seeds", type=int, default=seeds, help="how many machines with rounding noise")
        if name == "portable":
            command.add_argument("--setting", help="only this one: noise-1, cpu-default, threads-2, hash-7, …")
            command.add_argument("--sample", action="store_true", help="two short chapters under one seed")
        if name == "random-control":
            command.add_argument("--seeds", type=int, default=3, help="how many sets of models")
        if name == "gpu":
            command.add_argument("--device", default="cuda", help="cuda, pretend or cpu")
            command.add_argument("--models", default="embedded", help="embedded or hub")
        if name in ("ndif", "ndif-test"):
            command.add_argument("--dtype", default="float32")
        if name == "ndif":
            command.add_argument("--port", type=int, default=8001)
        if name == "lab":
            command.add_argument("--port")
            command.add_argument("--no-browser", action="store_true")
    args = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # where a terminal is not UTF-8, a bar of ? is better than a traceback
    try:
        return run(args) or 0
    except WorkbookError as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(args) -> int | None:
    # Each command imports what it needs: the checks pull in torch, which takes seconds.
    if args.command == "build":
        from utils.workbook.build import build

        written = build(wanted=args.chapter)
        print(
            "\n".join(f"wrote {p.parent.name}/{p.name}" for p in written) or "All notebooks are as their sources say."
        )
    elif args.command == "drift":
        from utils.workbook.build import drift

        said = drift()
        print("\n".join(said) or "All notebooks are as their sources say.")
        return bool(said)
    elif args.command == "arrival":
        from utils.workbook.arrival import arrival

        print("\n".join(arrival()))
    elif args.command == "coarse":
        from utils.workbook.build import coarse

        said = coarse(args.chapter)
        advice = 'Print another digit, or state coarse="…" in the cell\'s fence: why few digits are enough.'
        print("\n".join([*said, advice] if said else ["Every measured number is printed to within 2 %."]))
        return bool(said)
    elif args.command == "ours":
        from utils.workbook.ties import ours

        print("\n".join(ours(args.chapter)))
    elif args.command == "execute":
        from utils.workbook.execute import execute

        print("\n".join(execute(args.chapter, changed=args.changed, profile=args.profile)))
    elif args.command == "nbval":
        from utils.workbook.execute import nbval

        return nbval(args.chapter, profile=args.profile)
    elif args.command == "unit":
        from utils.workbook.execute import run_pytest

        return run_pytest(["tests"])
    elif args.command == "test-full":
        from utils.workbook.full import test_full

        return test_full()
    elif args.command == "mistakes":
        from utils.workbook import mistakes

        if not args.search:
            return min(1, mistakes.named_mistakes(args.chapter, args.sample))
        print("\n".join(mistakes.search(args.chapter, args.every)))
    elif args.command == "mutants":
        from utils.workbook.mutants import run as run_mutants

        return bool(run_mutants(args.chapter, args.jobs, args.sample))
    elif args.command == "hints":
        from utils.workbook.hints import notebooks

        return notebooks(args.chapter)
    elif args.command == "test":
        from utils.workbook.testing import test

        return test()
    elif args.command == "portable":
        from utils.workbook.portable import portable

        return bool(portable(args.chapter, args.seeds, args.setting, args.sample, args.jobs))
    elif args.command == "spread":
        from utils.workbook.portable import spread

        print("\n".join(spread(args.chapter, args.seeds, args.jobs)))
    elif args.command == "gpu":
        from utils.workbook.gpu import gpu

        return min(1, gpu(args.device, args.models, args.chapter))
    elif args.command == "random-control":
        from utils.workbook.control import control

        return min(1, control(args.chapter, range(args.seeds)))
    elif args.command == "ndif":
        from utils.workbook.ndif import serve

        serve(args.dtype, args.port)
    elif args.command == "ndif-test":
        from utils.workbook.ndif import test

        return min(1, test(args.dtype))
    elif args.command == "lab":
        from utils.workbook.lab import lab

        lab(args.port, browser=not args.no_browser)
    elif args.command == "start":
        from utils.workbook.delivery import start

        print("\n".join(start()) or "All chapters stand in work/.")
    else:
        from utils.workbook import learner

        if args.command == "update":
            print("\n".join(learner.update(args.chapter)))
        else:
            print(learner.progress_table())


if __name__ == "__main__":
    sys.exit(main())
