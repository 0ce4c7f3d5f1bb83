"""Write a guess down before a measurement, and grade it after."""

from collections.abc import Callable

from IPython.display import Markdown, display


class Hypotheses:
    """What the reader expected and what was measured: `expect` before the cell that measures, `grade` in it."""

    def __init__(self):
        self._questions: dict[str, str] = {}
        self._guesses: dict[str, object] = {}
        self._graded: dict[str, tuple[object, bool | None]] = {}

    def expect(self, key: str, question: str, guess: object = None) -> None:
        """Write down a guess; None or "..." means that there is none yet."""
        self._questions[key] = question
        self._guesses[key] = None if guess == "..." or guess is Ellipsis else guess
        self._graded.pop(key, None)

    def grade(self, key: str, measured: object, right: Callable[[object], bool] | None = None) -> None:
        """Print the question, the guess and what was measured.

        Args:
            measured: the answer.
            right: says whether a guess counts as right; by default it must equal `measured`.

        Raises:
            ValueError: there was no such question.
        """
        if key not in self._questions:
            raise ValueError(f"no question {key!r} was asked: run the cell with expect({key!r}, …) first")
        guess = self._guesses[key]
        try:
            good = None if guess is None else bool(right(guess) if right else guess == measured)
        except Exception:  # a guess of another kind than the answer
            good = False
        self._graded[key] = measured, good
        verdict = {
            None: "no guess was written down",
            True: f"you guessed {guess}: right",
            False: f"you guessed {guess}",
        }
        print(f"{self._questions[key]}\n  measured: {_shown(measured)}   ({verdict[good]})")

    def table(self) -> None:
        """Show all questions with guess and measurement."""
        rows = ["| question | guess | measured | |", "| --- | --- | --- | --- |"]
        sign = {None: "", True: "✓", False: "✗"}
        for key, question in self._questions.items():
            measured, good = self._graded.get(key, ("", None))
            guess = "" if self._guesses[key] is None else self._guesses[key]
            rows.append(f"| {question} | {guess} | {_shown(measured)} | {sign[good]} |")
        display(Markdown("\n".join(rows)))


def _shown(measured: object) -> str:
    return f"{measured:#.3g}" if isinstance(measured, float) else str(measured)
