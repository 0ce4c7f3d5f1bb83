"""The check engine: what a learner is told in every kind of trouble."""

import functools
import os
import random
import re
import signal
import sys
import threading
import time
import types
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from jaxtyping import Float
from torch import Tensor

from utils import checks, kv_cache
from utils.checks import engine, hints, progress, sampling
from utils.checks import transformer as transformer_checks
from utils.checks.compare import difference
from utils.checks.engine import Chapter


def double(x):
    """Twice x."""
    return 2 * x


double.__module__ = "utils.sample"


@pytest.fixture
def chapter():
    chapter = Chapter(types.SimpleNamespace(__name__="utils.sample"))
    exercise = chapter.exercise(double)

    @exercise.cases
    def _():
        yield (torch.tensor([[1.0, 2.0, 3.0]]),)
        yield (torch.zeros(2, 0),)

    @exercise.mistake("you squared: add the value to itself")
    def _(x):
        return x**2

    @exercise.mistake("you forgot to double: multiply by 2")
    def _(x):
        return x

    @exercise.law("half of the result must be the input")
    def _(double):
        return torch.equal(double(torch.tensor([7.0])) / 2, torch.tensor([7.0]))

    return chapter


def told(chapter, fn, capsys):
    fn.__name__ = "double"
    result = chapter.check(fn)
    text = re.sub(r"\033\[\d+m", "", capsys.readouterr().out)
    assert len(text.splitlines()) <= 5
    return result, text


def test_right_answer_is_returned(chapter, capsys):
    def answer(x):
        return x + x

    result, text = told(chapter, answer, capsys)
    assert result is answer
    assert text.startswith("✓ double: right.") and "1 of 1" in text


WRONG = {
    "not written yet": lambda x: (_ for _ in ()).throw(NotImplementedError),
    "you squared: add the value to itself": lambda x: x * x,
    "you forgot to double": lambda x: x.clone(),
    "returned None, expected a tensor of shape [1, 3]: is a `return` missing?": lambda x: None,
    "returned str": lambda x: "a",
    "returned shape [3, 1], expected [1, 3]": lambda x: 2 * x.mT,
    "3 of 3 values differ, first at [0, 0]: got 3, expected 2": lambda x: 3 * x,
    "raised ZeroDivisionError: division by zero": lambda x: 1 / 0,
    "raised SystemExit": lambda x: exit(),
    "raised RecursionError": lambda x: (lambda f: f(f))(lambda f: f(f)),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_problem_is_named_and_the_solution_returned(sentence, chapter, capsys):
    result, text = told(chapter, WRONG[sentence], capsys)
    assert result.__wrapped__ is double and result(3) == 6
    assert sentence in text
    assert "hint(double)" in text


def test_line_of_the_exception_is_shown(chapter, capsys):
    def answer(x):
        y = x + 1
        return y.no_such_attribute

    assert "return y.no_such_attribute" in told(chapter, answer, capsys)[1]


def test_broken_law_is_named_where_the_cases_agree(chapter, capsys):
    def answer(x):
        return 2 * x if x.shape != (1,) else x

    assert "half of the result must be the input" in told(chapter, answer, capsys)[1]


def test_endless_loop_is_stopped(chapter, capsys, monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 0.3)

    def answer(x):
        while True:
            try:
                pass
            except Exception:
                pass

    result, text = told(chapter, answer, capsys)
    assert result.__wrapped__ is double
    assert "did not finish within 0.3 s" in text and "in line" in text


def test_inputs_are_copied_and_a_changed_one_is_said(chapter, capsys):
    def answer(x):
        x *= 2
        return x

    assert "changes its argument `x` in place" in told(chapter, answer, capsys)[1]


def test_solution_itself_counts_as_taken(chapter, capsys):
    assert chapter.check(double) is double
    assert "the workbook's own version" in capsys.readouterr().out
    assert chapter._states == {"double": "taken"}


def test_a_wrong_answer_stays_reachable_and_is_checked_again(chapter, capsys):
    def answer(x):
        return 3 * x

    result, text = told(chapter, answer, capsys)
    assert "yours: double.mine(*double.failed)" in text
    assert result.mine is answer and torch.equal(result.mine(*result.failed), torch.tensor([[3.0, 6.0, 9.0]]))
    again = chapter.check(result)
    assert "3 of 3 values differ" in capsys.readouterr().out and again.mine is answer
    assert chapter._states == {"double": "tried"}


def test_a_stub_checked_twice_is_not_taken(chapter, capsys):
    def double(x):
        raise NotImplementedError

    twice = chapter.check(chapter.check(double))
    assert capsys.readouterr().out.count("not written yet") == 2 and twice.mine is double
    assert chapter._states == {"double": "open"}


def test_a_stand_in_of_a_class_is_one_of_it(capsys):
    class Counter:
        def one(self):
            return 1

    chapter = Chapter(types.SimpleNamespace(__name__="utils.sample"))
    exercise = chapter.exercise(Counter, use=lambda cls: cls().one())
    solution = exercise.solution

    class Counter:
        def one(self):
            return 2

    stand_in = chapter.check(Counter)
    assert issubclass(stand_in, solution) and stand_in().one() == 1 and stand_in.mine is Counter
    assert "yours: Counter.mine" in capsys.readouterr().out
    assert chapter.check(stand_in).mine is Counter


ANONYMOUS = {"a lambda": lambda x: x + x, "a partial": functools.partial(lambda two, x: two * x, 2)}


@pytest.mark.parametrize("what", ANONYMOUS)
def test_an_answer_without_a_name_is_found_by_what_it_is_bound_to(what, chapter, capsys):
    names = {"double": ANONYMOUS[what], "chapter": chapter}
    exec("result = chapter.check(double)", names)
    assert names["result"] is ANONYMOUS[what] and "✓ double: right." in capsys.readouterr().out


LOST_NAME = """
def loud(f):
    def inner(x):
        return f(x)
    return inner

@loud
def double(x):
    return x + x

chapter.check(double)
"""


def test_a_decorated_answer_whose_name_is_lost_is_found(chapter, capsys):
    exec(LOST_NAME, {"chapter": chapter})
    assert "✓ double: right." in capsys.readouterr().out


OF_THE_NOTEBOOK = """
import torch

n = 3
def double(x):
    return x[:, : n - 1] * torch.tensor([2.0])

chapter.check(double)
"""


def test_the_notebooks_values_in_an_answer_are_named(chapter, capsys):
    exec(OF_THE_NOTEBOOK, {"chapter": chapter, "__name__": "__main__"})
    assert "uses the notebook's `n`: in a check it comes with the arguments" in capsys.readouterr().out


def test_input_and_results_are_shown_whole_where_they_are_small(chapter, capsys):
    text = told(chapter, lambda x: 3 * x, capsys)[1]
    assert "on the input: x = [[1.0, 2.0, 3.0]]" in text
    assert "yours gives [[3.0, 6.0, 9.0]], expected [[2.0, 4.0, 6.0]]" in text


def test_dimensions_are_named_where_the_annotation_names_them():
    def square(x) -> Float[Tensor, "row column"]:
        return x

    exercise = engine.Exercise(square)
    exercise.cases(lambda: [(torch.zeros(2, 3),)])
    assert exercise.verdict(lambda x: x.mT).says == "returned shape [3, 2], expected [2, 3] (row column)"


def test_strings_are_shown_as_they_are():
    assert difference("a  b", "a b") == "got 'a  b', expected 'a b'"


def test_compare_waits_for_the_learners_own(chapter, capsys):
    def answer(x):
        return x + x

    chapter.compare("double")
    assert "First yours" in capsys.readouterr().out
    told(chapter, answer, capsys)
    chapter.compare(answer)
    text = capsys.readouterr().out
    assert text.index("return x + x") < text.index("The workbook's") < text.index("return 2 * x")


def test_an_exercise_that_was_not_run_is_named():
    lines = [
        "from utils.checks.tokenization import check, hint",
        "hint('merge_pair')",
        "merge_pair = check(merge_pair)",
    ]
    shell = InteractiveShell.instance()
    try:
        engine._explain_missing_names()
        with capture_output() as said:
            ran = [shell.run_cell(line).success for line in [*lines, "hint(merge_pair)", "something_else"]]
    finally:
        InteractiveShell.clear_instance()
    assert ran == [True, True, False, False, False]
    assert said.stdout.count("merge_pair is not there yet: run its exercise's cell first") == 2
    assert "name 'something_else' is not defined" in said.stdout


def test_unknown_name_and_no_function(chapter, capsys):
    assert chapter.check(len) is len
    assert "no exercise called 'len'" in capsys.readouterr().out
    chapter.check(3)
    assert "no function" in capsys.readouterr().out


def test_expected_exception():
    def solution(x):
        raise ValueError("no")

    exercise = engine.Exercise(solution)
    exercise.cases(lambda: [(1,)])
    assert exercise.verdict(solution).state == "solved"
    assert exercise.verdict(lambda x: x).says == "accepted this input, but should raise ValueError: no"
    assert exercise.verdict(lambda x: {}[x]).says.startswith("raised KeyError")


def test_a_mistake_is_named_by_the_inputs_that_are_taken():
    def root(x):
        if x < 0:
            raise ValueError("below 0")
        return x**0.5

    exercise = engine.Exercise(root)
    exercise.cases(lambda: [(4.0,), (9.0,)])
    exercise.refused(lambda: [(-1.0,)])

    @exercise.mistake("you halved")
    def _(x):
        if x < 0:
            raise ValueError
        return x / 2

    assert exercise.verdict(lambda x: x / 2).says == "you halved"
    assert "should raise ValueError: below 0" in exercise.verdict(lambda x: abs(x) ** 0.5).says


def test_hints_come_one_by_one(tmp_path, monkeypatch, capsys):
    source = tmp_path / "01_sample.md"
    source.write_text(
        '```python exercise="utils.sample.double" difficulty=1\n```\n\n'
        + "".join(
            f"<details>\n<summary>Hint {i}: more</summary>\n\ntext {i}\n\n```python\nx = {i}\n```\n\n</details>\n\n"
            for i in (1, 2)
        )
        + "```python\nafter\n```\n\n<details>\n<summary>Hint 9: of another</summary>\nno\n</details>\n"
    )
    found = hints.read_hints("utils.sample.double", tmp_path)
    assert [title for title, _ in found] == ["Hint 1: more", "Hint 2: more"]
    assert "x = 2" in found[1][1]
    monkeypatch.setattr(engine, "read_hints", lambda target: found)
    chapter = Chapter(types.SimpleNamespace(__name__="utils.sample"))
    chapter.exercise(double)
    for expected in ("text 1", "text 2", "from utils.sample import double"):
        chapter.hint("double")
        assert expected in capsys.readouterr().out


def test_checks_of_a_second_module_are_read_when_asked_for(monkeypatch, tmp_path, capsys):
    (tmp_path / "sample_more.py").write_text(
        """
        from utils.sample import chapter

        def treble(x):
            return 3 * x

        treble.__module__ = "utils.sample_more"
        chapter.exercise(treble)
        """.replace("\n        ", "\n")
    )
    first, second = (types.SimpleNamespace(__name__=f"utils.{name}") for name in ("sample", "sample_more"))
    first.chapter = chapter = Chapter(first, second)
    chapter.exercise(double)
    monkeypatch.setitem(sys.modules, "utils.sample", first)
    monkeypatch.setattr(checks, "__path__", [str(tmp_path)])
    monkeypatch.setattr(progress, "WORK", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert list(chapter.exercises) == ["double", "treble"]
    chapter.check(chapter.exercises["treble"].solution)
    assert "0 of 2 in this chapter" in capsys.readouterr().out
    assert progress.load(tmp_path) == {"sample": {"treble": "taken"}}
    chapter.hint("treble")
    assert "from utils.sample_more import treble" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "utils.checks.sample_more")


# ---------------------------------------------------------------- what every exercise asks


class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0, 3.0, 5.0]))
        self.use_error_term = False
        self.inner = torch.nn.Identity()

    def forward(self, x):
        return self.inner(x) * self.weight


def weigh(model, x, seed=0):
    """The model's output plus noise."""
    return model(x) + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


SHARED = Part()


@pytest.fixture
def exercise():
    exercise = engine.Exercise(weigh)
    exercise.cases(lambda: [(SHARED, torch.tensor([[1.0, 2.0, 4.0]]))])
    return exercise


def leaving(deed):
    """A right answer that leaves something behind."""

    def answer(model, x, seed=0):
        out = weigh(model, x, seed)
        deed(model, x)
        return out

    return answer


LEFT = {
    "changes its argument `x` in place": lambda model, x: x.mul_(2),
    "left a hook on `inner` of `model`": lambda model, x: model.inner.register_forward_hook(lambda *a: None),
    "left an autoencoder or another module attached to `model`": lambda model, x: setattr(
        model, "inner", torch.nn.ReLU()
    ),
    "changed `weight` of `model`": lambda model, x: model.weight.data.add_(1),
    "replaced a parameter of `model`": lambda model, x: setattr(model, "weight", torch.nn.Parameter(torch.ones(3))),
    "left `model` in another mode": lambda model, x: model.eval(),
    "left `use_error_term` of `model` changed": lambda model, x: setattr(model, "use_error_term", True),
    "changed whether `model` needs gradients": lambda model, x: model.requires_grad_(False),
    "changed torch's default dtype": lambda model, x: torch.set_default_dtype(torch.float64),
    "changed whether gradients are computed": lambda model, x: torch.set_grad_enabled(False),
    "changed the working directory": lambda model, x: os.chdir("/"),
    "changed the number of torch's threads": lambda model, x: torch.set_num_threads(torch.get_num_threads() + 1),
    "changed what the kernel does on a signal": lambda model, x: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "left a thread running": lambda model, x: threading.Thread(target=time.sleep, args=(0.5,)).start(),
    "seeds the random numbers of the whole kernel": lambda model, x: torch.manual_seed(3),
}


@pytest.mark.parametrize("sentence", LEFT)
def test_what_is_left_behind_is_said_and_taken_away(sentence, exercise):
    before = {name: value.clone() for name, value in SHARED.state_dict().items()}
    settings = torch.get_default_dtype(), torch.is_grad_enabled(), os.getcwd(), torch.get_num_threads()
    verdict = exercise.verdict(leaving(LEFT[sentence]))
    assert verdict.state == "wrong" and sentence in verdict.says, verdict
    assert exercise.verdict(weigh).state == "solved"
    assert SHARED.training and not SHARED.use_error_term and not SHARED.inner._forward_hooks
    assert isinstance(SHARED.inner, torch.nn.Identity) and SHARED.weight.requires_grad
    assert all(torch.equal(SHARED.state_dict()[name], value) for name, value in before.items())
    assert settings == (torch.get_default_dtype(), torch.is_grad_enabled(), os.getcwd(), torch.get_num_threads())


def test_a_new_hook_point_is_as_good_as_the_old(exercise):
    """sae_lens puts one where an autoencoder was."""
    answer = leaving(lambda model, x: setattr(model, "inner", torch.nn.Identity()))
    assert exercise.verdict(answer).state == "solved", exercise.verdict(answer)


def test_a_seed_is_found_where_the_check_seeds_too():
    def use(fn, n):
        torch.manual_seed(5)
        return fn(n)

    exercise = engine.Exercise(lambda n: 2 * n, use=use)
    exercise.cases(lambda: [(3,)])
    assert exercise.verdict(lambda n: n + n).state == "solved"
    assert "seeds the random numbers" in exercise.verdict(lambda n: torch.manual_seed(0) and 2 * n).says


def test_a_seed_is_found_where_gradients_are_needed():
    def use(fn, x):
        fn(x.requires_grad_()).sum().backward()
        return x.grad

    exercise = engine.Exercise(lambda x: 2 * x, use=use)
    exercise.cases(lambda: [(torch.ones(3),)])
    assert exercise.verdict(lambda x: x + x).state == "solved"
    assert "seeds the random numbers" in exercise.verdict(lambda x: torch.manual_seed(0) and 2 * x).says


def test_what_is_refused_without_gradients_must_be():
    def slope(x):
        """Twice x.

        Raises:
            ValueError: gradients are off.
        """
        if not torch.is_grad_enabled():
            raise ValueError("gradients are off")
        return 2 * x

    exercise = engine.Exercise(slope)
    exercise.cases(lambda: [(torch.ones(3),)])
    assert exercise.verdict(slope).state == "solved"
    assert "without gradients: accepted this input" in exercise.verdict(lambda x: 2 * x).says


def test_defaults_are_those_asked_for():
    def power(x, exponent=2):
        return x**exponent

    class Power:
        def of(self, x, exponent=2):
            return x**exponent

    exercise = engine.Exercise(power)
    exercise.cases(lambda: [(3.0, 2)])
    assert exercise.verdict(lambda x, exponent=2: x**exponent).state == "solved"
    assert exercise.verdict(lambda *args: power(*args)).state == "solved"
    assert exercise.verdict(lambda x, exponent=3: x**exponent).says == "the default of `exponent` is 2, not 3"
    assert exercise.verdict(lambda x, exponent: x**exponent).says == "`exponent` needs its default: exponent=2"
    assert exercise.verdict(lambda x=0.0, exponent=2: x**exponent).state == "solved", "one default more harms nobody"
    exercise = engine.Exercise(lambda x, fn=power: fn(x, 2))
    exercise.cases(lambda: [(3.0,)])
    own = types.FunctionType(power.__code__, {}, "power", (2,))  # the notebook's, as good as ours
    assert exercise.verdict(lambda x, fn=own: fn(x, 2)).state == "solved"
    assert "the default of `fn`" in exercise.verdict(lambda x, fn=pow: fn(x, 2)).says
    exercise = engine.Exercise(Power, use=lambda cls, x: cls().of(x, 2))
    exercise.cases(lambda: [(3.0,)])
    assert exercise.verdict(Power).state == "solved"
    other = type("Power", (Power,), {"of": lambda self, x, exponent=1: x**exponent})
    assert exercise.verdict(other).says == "the default of `exponent` is 2, not 1"


ASKED = {
    "no gradient reaches `x`": lambda model, x, seed=0: weigh(model, x.detach(), seed),
    "no gradient reaches `weight` of the model": lambda model, x, seed=0: (
        model.inner(x) * model.weight.detach() + weigh(model, 0 * x, seed)
    ),
    "where its input needs gradients, it raised RuntimeError": lambda model, x, seed=0: torch.from_numpy(
        weigh(model, x, seed).detach().numpy() * (x.numpy() ** 0)
    ),
    "with another `seed`": lambda model, x, seed=0: weigh(model, x),
    "called again, without gradients": lambda model, x, seed=0: weigh(model, x, seed) + (not torch.is_grad_enabled()),
}


@pytest.mark.parametrize("sentence", ASKED)
def test_what_no_case_shows_is_asked(sentence, exercise):
    verdict = exercise.verdict(ASKED[sentence])
    assert verdict.state == "wrong" and sentence in verdict.says, verdict


def test_a_part_of_the_gradient_is_missed(exercise):
    exercise = engine.Exercise(square := lambda x: x * x)
    exercise.cases(lambda: [(torch.tensor([1.0, 2.0, 4.0]),)])
    assert exercise.verdict(square).state == "solved"
    assert "another gradient with respect to `x`" in exercise.verdict(lambda x: x * x.detach()).says


def test_gradients_of_a_class_s_own_weights_are_compared():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0])) for _ in range(2))

        def forward(self, n):
            return n * self.a + self.b

    class Cut(Scale):
        def forward(self, n):
            return n * self.a.detach() + self.b

    exercise = engine.Exercise(Scale, use=lambda cls, n: cls()(n))
    exercise.cases(lambda: [(2,)])
    assert exercise.verdict(type("Scale", (Scale,), {})).state == "solved"
    assert "no gradient reaches `self.a`" in exercise.verdict(Cut).says


def test_an_iterable_may_be_a_generator():
    def mean(values: Iterable[float]) -> float:
        values = list(values)
        return sum(values) / len(values)

    exercise = engine.Exercise(mean)
    exercise.cases(lambda: [([1.0, 2.0],)])
    assert exercise.verdict(lambda values: mean(values)).state == "solved"
    assert "only once" in exercise.verdict(lambda values: sum(values) / sum(1 for _ in values)).says


def test_a_batch_of_one_is_tried():
    def last(x: Float[Tensor, "batch pos"], scale: float = 1.0) -> Float[Tensor, " batch"]:
        return scale * x[:, -1]

    exercise = engine.Exercise(last)
    exercise.cases(lambda: [(torch.arange(6.0).reshape(2, 3), 2.0)])
    assert exercise.verdict(lambda x, scale=1.0: x[:, 2] * scale).state == "solved"
    assert "a batch of one" in exercise.verdict(lambda x, scale=1.0: (scale * x[:, -1]).squeeze()).says


def test_a_gradient_that_is_nothing_but_rounding_is_not_compared():
    def sums_to_one(x):
        return x.softmax(dim=-1).sum(dim=-1)

    def built(x):
        return (x.exp() / x.exp().sum(dim=-1, keepdim=True)).sum(dim=-1)

    exercise = engine.Exercise(sums_to_one)
    exercise.cases(lambda: [(torch.randn(4, 7, generator=torch.Generator().manual_seed(3)),)])
    assert exercise.verdict(built).state == "solved", exercise.verdict(built)


def test_another_seed_is_tried_on_every_input():
    def noisy(x, seed=0):
        return x + torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))

    exercise = engine.Exercise(noisy)
    exercise.cases(lambda: [(torch.zeros(3),), (torch.ones(3),)])
    assert exercise.verdict(noisy).state == "solved"
    assert "another `seed`" in exercise.verdict(lambda x, seed=0: noisy(x)).says
    assert exercise.verdict(lambda *args, **kwargs: noisy(*args, **kwargs)).state == "solved"


def test_draws_must_be_new_in_each_call():
    def draw(n):
        return torch.rand(n)

    def fixed(n):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.rand(n)

    exercise = engine.Exercise(draw, same=lambda got, want, n: difference(got.shape, want.shape))
    exercise.cases(lambda: [(20,)])
    assert exercise.verdict(lambda n: torch.rand(n, dtype=torch.float64)).state == "solved"
    assert "draws the same numbers in every call" in exercise.verdict(fixed).says


def test_what_the_task_says_to_change_may_change(exercise):
    def double_in_place(x):
        return x.mul_(2)

    stated = engine.Exercise(double_in_place, in_place={"x": "the task says so"})
    stated.cases(lambda: [(torch.ones(3),)])
    assert stated.verdict(double_in_place).state == "solved"
    unstated = engine.Exercise(double_in_place)
    unstated.cases(lambda: [(torch.ones(3),)])
    assert unstated.verdict(double_in_place).state == "wrong"


def test_methods_are_watched_and_the_class_stays_as_it_is():
    class Adder:
        def __init__(self, start):
            self.total = start

        def add(self, x):
            self.total = self.total + x
            return self.total

    class Greedy(Adder):
        def add(self, x):
            x += self.total
            return x

    exercise = engine.Exercise(Adder, use=lambda cls, x: cls(0).add(x))
    exercise.cases(lambda: [(torch.ones(3),)])
    methods = dict(vars(Greedy))
    assert exercise.verdict(Adder).state == "solved"
    assert "changes its argument `x` in place" in exercise.verdict(Greedy).says
    assert dict(vars(Greedy)) == methods


def test_random_state_goes_on_as_if_no_check_had_run(exercise):
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(3).tolist(), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    exercise.verdict(leaving(LEFT["seeds the random numbers of the whole kernel"]))
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected


def test_inputs_that_cannot_be_made_are_said(chapter, capsys):
    chapter.exercises["double"].cases(lambda: 1 / 0)
    assert "can't make its inputs (ZeroDivisionError" in told(chapter, lambda x: 2 * x, capsys)[1]


def test_law_takes_any_precision_and_shows_what_it_raised(chapter):
    exercise = chapter.exercises["double"]
    assert exercise.verdict(lambda x: 2 * x.double()).state == "solved"
    exercise.laws["other inputs must do as well"] = lambda double: double(torch.tensor([1]))[0] == 2
    verdict = exercise.verdict(lambda x: 2 * x if x.is_floating_point() else {}["a"])
    assert verdict.says == "other inputs must do as well" and "KeyError: 'a'" in verdict.detail[0]


# ---------------------------------------------------------------- what an answer may use


def ignores_alarms(x):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    while True:
        try:
            sum(range(1000))
        except:  # noqa: E722
            pass


def swallows_all(x):
    kept = []
    while True:
        try:
            try:
                time.sleep(0.001)
            except BaseException as error:
                kept.append(error)
        except BaseException as error:
            kept.append(error)


class Lazy(Sequence):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        while True:
            pass


ENDLESS = [ignores_alarms, swallows_all, lambda x: time.sleep(1e6), lambda x: Lazy()]


@pytest.mark.parametrize("answer", ENDLESS, ids=["ignores alarms", "swallows all", "sleeps", "lazy"])
def test_no_answer_outlives_its_limit(answer, chapter, capsys, monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 0.2)
    before = signal.getsignal(signal.SIGALRM), sys.gettrace()
    assert "did not finish within 0.2 s" in told(chapter, answer, capsys)[1]
    assert (signal.getsignal(signal.SIGALRM), sys.gettrace()) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_output_is_capped(chapter, capsys):
    def answer(x):
        print("word " * 100_000)
        return 2 * x

    answer.__name__ = "double"
    assert chapter.check(answer) is answer
    out = capsys.readouterr().out
    assert len(out) < 3000 and "more characters that your function printed" in out


def test_keyboard_interrupt_of_an_answer_is_its_error(chapter, capsys):
    def answer(x):
        raise KeyboardInterrupt

    assert "raised KeyboardInterrupt" in told(chapter, answer, capsys)[1]


def test_interrupt_of_the_learner_interrupts(chapter):
    def double(x):
        signal.raise_signal(signal.SIGINT)
        return 2 * x

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        chapter.check(double)
    assert signal.getsignal(signal.SIGINT) is handler


def test_library_that_lacks_an_operation_is_no_stub(chapter, capsys):
    def answer(x):
        raise NotImplementedError("\"addmm_impl_cpu_\" not implemented for 'Bool'")

    assert "raised NotImplementedError" in told(chapter, answer, capsys)[1]


def test_decorated_stub_is_a_stub_and_its_line_the_learners(chapter, capsys):
    @torch.no_grad()
    def double(x):
        raise NotImplementedError

    assert "not written yet." in told(chapter, double, capsys)[1]

    @torch.no_grad()
    def broken(x):
        return x.no_such_attribute

    assert "return x.no_such_attribute" in told(chapter, broken, capsys)[1]


def test_name_that_fits_only_one_case_is_a_guess(chapter, capsys):
    def answer(x):
        return x**2 if x.numel() else torch.zeros(3)

    assert "perhaps you squared" in told(chapter, answer, capsys)[1]


# ---------------------------------------------------------------- progress


def test_nothing_is_recorded_outside_of_work(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "WORK", tmp_path / "work")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    progress.record("sample", "double", "solved")
    assert not list(tmp_path.rglob("*solved*"))
    monkeypatch.chdir(tmp_path / "work")
    progress.record("sample", "double", "solved")
    assert progress.load(tmp_path / "work") == {"sample": {"double": "solved"}}


# ---------------------------------------------------------------- comparing results


@pytest.mark.parametrize(
    "got, want",
    [
        (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 2.0])),
        (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])),
        ([1.0, 2.0], torch.tensor([1.0, 2.0])),
        (torch.tensor(0.5), 0.5),
        (float("nan"), float("nan")),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
        ((1, "a"), [1, "a"]),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}),
        ({1, 2}, frozenset({2, 1})),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0])),
    ],
)
def test_same(got, want):
    assert difference(got, want) is None


@pytest.mark.parametrize(
    "got, want, sentence",
    [
        (torch.tensor([5001]), torch.tensor([5000]), "1 of 1 values differ"),
        (5001, 5000, "got 5001, expected 5000"),
        (True, 1, "returned bool"),
        ([True, False], [True, True], "item 1: got False, expected True"),
        ([1, 2], [1, 2, 3], "has 2 items, expected 3"),
        ([1, 3, 3], [1, 2, 3], "item 1: got 3, expected 2"),
        ({"a": 1}, {"a": 1, "b": 2}, "the key 'b' is missing"),
        ({"a": 1, "c": 2}, {"a": 1}, "the key 'c' should not be there"),
        ({1}, {1, 2}, "2 is missing"),
        ("abc", b"abc", "returned str, expected bytes"),
        (torch.ones(2, 3), torch.ones(3, 2), "returned shape [2, 3], expected [3, 2]"),
        (torch.ones(3), 1.0, "returned a tensor of shape [3], expected float"),
        ("x" * 40 + "a", "x" * 40 + "b", "differs from character 40 on"),
        (float("nan"), 1.0, "got nan, expected 1"),
    ],
)
def test_different(got, want, sentence):
    assert sentence in difference(got, want)


# ---------------------------------------------------------------- a class in steps


def cache_with(**methods) -> type:
    """The learner's cache: methods that are not given are still stubs."""

    class Stubs:
        def append(self, layer, k, v):
            raise NotImplementedError

        def positions(self, new):
            raise NotImplementedError

        def allowed(self, new):
            raise NotImplementedError

    ours = kv_cache.KeyValueCache
    given = {name: vars(ours)[name] for name in ("__init__", "select")}
    return type("KeyValueCache", (), {**vars(Stubs), **given, **methods})


def test_each_step_of_a_class_is_judged_beside_the_workbooks_others(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBOOK_WORK", str(tmp_path))
    ours = vars(kv_cache.KeyValueCache)

    def append(self, layer, k, v):
        return ours["append"](self, layer, k, v)

    def forgets(self, layer, k, v):
        ours["append"](self, layer, k, v)
        return k, v

    def positions(self, new):
        return ours["positions"](self, new)

    def said(**methods):
        sampling.check(cache_with(**methods))
        return capsys.readouterr().out

    assert "○ KeyValueCache: not written yet (`append`, `positions`, `allowed`)." in said()
    right = "○ KeyValueCache: right so far: `append`; not written yet (`positions`, `allowed`)."
    assert right in said(append=append)
    assert "right so far: `append`, `positions`; not written yet (`allowed`)" in said(
        append=append, positions=positions
    )
    wrong = said(append=forgets)
    assert "✗ KeyValueCache: " in wrong and "not written yet (`positions`, `allowed`)" in wrong


def test_each_step_of_a_long_function_is_judged_by_itself(chapter):
    exercise = chapter.exercises["double"]
    exercise.step("the shape", part=lambda result: result.shape)(lambda x: True)
    exercise.step("of nothing")(lambda x: x.numel() == 0)

    def at_first(x):
        if x.numel():
            raise NotImplementedError
        return x

    def shapes(x):
        return x + 7

    assert exercise.verdict(shapes).detail[0] == "right so far: step 1, the shape; step 2, of nothing"
    assert "so far" not in exercise.verdict(at_first).says
    del exercise.steps["the shape"]
    assert exercise.verdict(at_first).says == "right so far: step 1, of nothing; the rest is not written yet"
    assert not any("so far" in line for line in exercise.verdict(lambda x: None).detail)


def test_weights_of_an_answers_own_must_be_trainable():
    """No input of the check needs a gradient there: that the result carries none is seen all the same."""
    embed = transformer_checks.chapter.exercises["Embed"]

    class Embed(embed.solution):
        @torch.no_grad()
        def forward(self, tokens):
            return super().forward(tokens)

    assert "carries no gradient" in embed.verdict(Embed).says
