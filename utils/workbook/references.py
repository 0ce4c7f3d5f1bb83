"""References of other models than the workbook's own: in `solutions/NAME/`, recorded only where their weights are real.

`solutions/` itself is of the workbook's own models.
"""

import math
import os
from pathlib import Path

from utils.workbook import SOLUTIONS, WorkbookError

BETTER = 1.0  # nats a token below chance, by which weights that were trained are told from drawn ones
TEXT = (
    "The city of Paris is the capital of France, and one of the largest cities in Europe. It is known for its museums "
    "and for its food. When Mary and John went to the store, John gave a drink to Mary. She said that it was very good."
)


def folder(profile: str, solutions: Path = SOLUTIONS) -> Path:
    """Where the references of `WORKBOOK_MODELS=profile` lie."""
    return solutions if profile in ("", "embedded") else solutions / Path(profile).stem


def require_real(profile: str) -> None:
    """Load the profile's models and make sure that they have learned a language.

    Raises:
        WorkbookError: one of them is not there, or predicts a text no better than a guess among its tokens would.
    """
    if profile in ("", "embedded"):
        return
    refused = f"Nothing was recorded: execute PROFILE={profile} needs the real weights"
    if profile.startswith("random"):
        raise WorkbookError(f"{refused}, and these are random.")
    os.environ["WORKBOOK_MODELS"] = profile
    from utils.models.registry import EMBEDDED, current

    for name in EMBEDDED.models:
        try:
            if name not in current().models:
                continue
            nats, chance = loss(name)
        except (ValueError, RuntimeError) as problem:
            raise WorkbookError(f"{refused}. {problem}") from None
        if not nats < chance - BETTER:
            raise WorkbookError(
                f"{refused}: {name} predicts a text at {nats:.1f} nats a token, where guessing costs {chance:.1f}."
            )


def loss(name: str) -> tuple[float, float]:
    """Nats a token of a model, on English or the small world, whichever it knows better; and those of a guess."""
    import torch

    from utils.models import load
    from utils.world import sample

    model, nats = load(name), []
    for text in (TEXT, sample(1, seed=20_004)[0].text):
        with torch.inference_mode():
            nats.append(model(model.to_tokens(text)[:, : model.cfg.n_ctx], return_type="loss").item())
    return min(nats), math.log(model.cfg.d_vocab)
