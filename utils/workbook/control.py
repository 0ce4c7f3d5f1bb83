"""`make random-control`: every chapter on models that have learned nothing; a claim that holds there is no claim.

Each chapter that loads a model runs on three sets of ours with shuffled numbers (`utils/models/shuffled.py`), each that
trains its own on models that no step changes. Cells that judge exercises are left out. What raises is a fault: an empty
selection is a result, so every claim must be reached. A claim that holds on two of three is listed with its reason in
`chapters/control.toml`, or is a fault too. Results lie in `.cache/random_control`; what is there for the same notebook
and code is not run again.
"""

import hashlib
import json
import os
import re
import tomllib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell
from tqdm import tqdm

from utils.models.files import SHIPPED
from utils.models.shuffled import shuffled
from utils.workbook import CHAPTERS, ROOT, SOLUTIONS, WorkbookError
from utils.workbook.build import read_notebook
from utils.workbook.chapters import Chapter, table
from utils.workbook.execute import KEEP_MEMORY, OFFLINE, ONE_THREAD, START_SECONDS, _time_limit, kernel_seconds
from utils.workbook.files import write_whole

RESULTS = ROOT / ".cache" / "random_control"
LIST = CHAPTERS / "control.toml"
SEEDS = (0, 1, 2)
MOST = 5  # claims that may hold on random models
CHECK = re.compile(r"^\w+ = check\(\w+\)$|^check\(\)$")


@dataclass
class Result:
    """One run of a chapter: what each claim came to, which cells raised, which claims were not reached."""

    digest: str
    cells: int = 0
    seconds: float = 0.0  # of processor time
    claims: list[list[str]] = field(default_factory=list)  # [what, the number, why it doesn't hold (or nothing)]
    raised: dict[str, str] = field(default_factory=dict)  # cell's id → exception
    unreached: list[str] = field(default_factory=list)  # ids of cells that raised before their last claim

    def __str__(self):
        hold = sum(not problem for *_, problem in self.claims)
        return (
            f"{self.cells} cells, {len(self.raised)} raised, {len(self.unreached)} of them with claims; "
            f"{len(self.claims)} claims reached, {hold} hold; {self.seconds:.0f} s"
        )

    @property
    def held(self) -> set[str]:
        return {plain(what) for what, _, problem in self.claims if not problem}


def plain(what: str) -> str:
    """A claim's name without its numbers: heads and sizes in it differ from model to model."""
    return re.sub(r"\d+(?:[.,]\d+)*", "#", what)


def run_chapter(path: Path, seed: int, trains: bool, to: Path, digest: str) -> Result:
    """Run a solved notebook on the models of a seed and write what came of it to `to`."""
    notebook, log = read_notebook(path), to.with_suffix(".log")
    notebook.cells = [c for c in notebook.cells if c.cell_type == "code" and not CHECK.match(c.source)]
    log.parent.mkdir(parents=True, exist_ok=True)
    write_whole(log, "")
    begin = f"from utils.workbook import control_cell\ncontrol_cell.begin({str(log)!r}, {seed if trains else None})"
    notebook.cells.insert(0, new_code_cell(begin))
    result = Result(digest, cells=len(notebook.cells) - 1)
    client = NotebookClient(notebook, timeout=None, startup_timeout=START_SECONDS, kernel_name="python3")
    client.resources, client.allow_errors = {"metadata": {"path": str(path.parent)}}, True
    bar = tqdm(total=len(notebook.cells), desc=f"{path.stem}, seed {seed}", unit="cell", mininterval=10)

    def executed(cell, cell_index, execute_reply):
        bar.update()
        said = execute_reply["content"]
        if said["status"] == "error":
            result.raised[cell.id] = f"{said['ename']}: {said['evalue']}"[:300]
            if re.search(r"\b(?:claim|identity)\(", cell.source):
                result.unreached.append(cell.id)
        result.seconds = round(kernel_seconds(client.km), 1)

    client.on_cell_executed = executed
    environment = {**os.environ, **ONE_THREAD, **KEEP_MEMORY, **OFFLINE, "WORKBOOK_MODELS": f"random-{seed}"}
    try:
        with bar, _time_limit(client):
            client.execute(env=environment)
    except DeadKernelError:
        result.raised["kernel"] = "the kernel died"
    result.claims = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    write_whole(to, json.dumps(asdict(result), indent=1, ensure_ascii=False))
    log.unlink(missing_ok=True)
    return result


def digest_of(row: Chapter, path: Path) -> str:
    """Of what a run depends on: the notebook's code, the package's modules, the weights."""
    found = hashlib.sha256((SHIPPED / "manifest.json").read_bytes())
    cells = (c.source for c in read_notebook(path).cells if c.cell_type == "code")
    found.update("\0".join(cells).encode())
    for module in sorted((ROOT / "utils").glob("*.py")) + sorted((ROOT / "utils" / "show").glob("*.py")):
        found.update(module.read_bytes())
    return found.hexdigest()[:16]


def control(wanted: str | None = None, seeds=SEEDS, rows: list[Chapter] | None = None, results: Path = RESULTS) -> int:
    """Run what was not run yet, print what each chapter came to, and return how many faults there are.

    Raises:
        WorkbookError: there is no such chapter, or the list of claims that may hold is too long.
    """
    chosen = [row for row in rows or table() if not wanted or wanted in (row.number, row.name)]
    if not chosen:
        raise WorkbookError(f"There is no chapter {wanted!r}.")
    faults: list[str] = []
    holding: Counter = Counter()
    reasons = listed()
    for row in chosen:
        path, trains = SOLUTIONS / row.file, row.models == "none"
        if trains and not any("optim" in (ROOT / "utils" / f"{m}.py").read_text(encoding="utf-8") for m in row.modules):
            continue  # it has no model at all
        digest = digest_of(row, path)
        for seed in seeds:
            shuffled(seed)
            to = results / f"{row.name}-{seed}.json"
            result = kept(to, digest) or run_chapter(path, seed, trains, to, digest)
            holding.update((row.number, what) for what in result.held)
            print(f"{row.number}, seed {seed}: {result}", flush=True)
            faults += [f"{row.number}, seed {seed}, cell {cell}: {said}" for cell, said in result.raised.items()]
    held = {key for key, times in holding.items() if times >= min(2, len(seeds))}
    here = {row.number for row in chosen}
    gone = {key for key in reasons.keys() - held if key[0] in here} if tuple(seeds) == SEEDS else set()
    faults += [f"{n}: random models make this claim true: {what}" for n, what in sorted(held - reasons.keys())]
    faults += [f"{n}: {LIST.name} lists a claim that random models don't make true: {what}" for n, what in gone]
    print("\n".join(faults) or f"Every claim is reached, and the {len(held)} that hold on random models have a reason.")
    return len(faults)


def kept(file: Path, digest: str) -> Result | None:
    """The result that lies in the file, where it is of the same notebook and code."""
    try:
        found = Result(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.digest == digest else None


def listed(file: Path = LIST) -> dict[tuple[str, str], str]:
    """(chapter, claim without its numbers) → why it holds on random models, too.

    Raises:
        WorkbookError: there are more than `MOST`, or one has no reason.
    """
    rows = tomllib.loads(file.read_text(encoding="utf-8")).get("claim", []) if file.is_file() else []
    if len(rows) > MOST:
        raise WorkbookError(f"{file.name} lists {len(rows)} claims that random models make true: {MOST} are the most.")
    if any(not row.get("why") for row in rows):
        raise WorkbookError(f"{file.name}: each claim needs `why`, the reason.")
    return {(row["chapter"], plain(row["what"])): row["why"] for row in rows}
