"""Our numbers beside the papers': runs the solved chapter and prints what it claims next to what the papers report.

    python tests/report_superposition.py

Takes some minutes. The numbers come from the chapter's own cells, so they can't drift from it. A paper's number stands
here only where the paper states it in words or where its geometry fixes it; figures that would have to be read off a
plot are described instead.
"""

import contextlib
import io

import jupytext
import plotly.graph_objects as go

from utils import show
from utils.workbook import SOURCE
from utils.workbook.build import solution_code

TOY, DESCENT, CAPACITY = "arXiv 2209.10652", "double-descent note", "arXiv 2210.01892"
# Start of the claim -> source, what it says.
PAPERS = {
    "features kept in 2 dimensions, dense": (TOY, "2 of 5: the most important ones, orthogonal"),
    "features kept in 2 dimensions, sparsity": (TOY, "5 of 5, as a pentagon"),
    "largest distance of a pentagon's angle": (TOY, "regular pentagon: 72° each"),
    "loss of the model / drop baseline, dense": (TOY, "dense: no superposition, like PCA"),
    "correlated pairs at a right angle": (TOY, "correlated: side by side, in local orthogonal bases"),
    "correlated pairs that are opposite": (TOY, "correlated: not opposite"),
    "anticorrelated pairs that are opposite": (TOY, "anticorrelated: preferably opposite each other"),
    "share of stored features within 0.03": (TOY, "n=400, m=30: levels at 1, 3/4, 2/3, 1/2, 2/5, 3/8"),
    "sum of the dimensionalities": (TOY, "at most the number of hidden dimensions"),
    "share of a feature's weight in its top neuron": (TOY, "ReLU hidden layer: features align with neurons"),
    "the same with very sparse features": (TOY, "very sparse: polysemantic neurons"),
    "neurons of 12 that serve one feature, dense": (TOY, "dense: monosemantic"),
    "neurons of 12 that serve one feature, sparse": (TOY, "sparse: polysemantic"),
    "5 memorised points": (DESCENT, "n=10,000: few points form regular polygons; pentagon: 2/5"),
    "peak of the test loss": (DESCENT, "n=10,000: a peak between the two regimes"),
    "largest dimensionality of a feature, most points": (DESCENT, "n=10,000: features in a pentagon: 2/5"),
    "share of features between none and all": (CAPACITY, "low kurtosis: all or none"),
    "capacity of the least important feature": (CAPACITY, "high kurtosis: features share"),
}


def run_chapter() -> list[tuple[str, str, str, str]]:
    """Run all code of the solved chapter, without its pictures; returns its claims."""
    go.Figure.show = lambda self, *args, **kwargs: None
    namespace: dict = {}
    for cell in jupytext.read(SOURCE / "06_superposition.md", fmt="md").cells:
        if cell.cell_type == "code" and "show.findings()" not in cell.source:
            target = cell.metadata.get("exercise")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(solution_code(target) if target else cell.source, namespace)
    return list(show.claims._claims)


def main() -> None:
    claims = run_chapter()
    print("\nour numbers (with control), and what the papers report")
    for what, value, interval, control in claims:
        print(f"\n{what}\n    ours   {value}  (must lie in {interval}; control: {control})")
        if source := next((PAPERS[start] for start in PAPERS if what.startswith(start)), None):
            print(f"    paper  {source[1]}  [{source[0]}]")
    missing = [start for start in PAPERS if not any(what.startswith(start) for what, *_ in claims)]
    if missing:
        raise SystemExit(f"the chapter no longer claims: {', '.join(missing)}")


if __name__ == "__main__":
    main()
