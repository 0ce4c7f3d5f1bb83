"""Wrong versions of a solution, made by rule: one change each, in the lines that a learner writes.

mutmut and cosmic-ray are no help here: both start a test run for each mutant, which with our imports takes ten seconds
instead of a tenth, and neither knows axes, views, gradients or seeds.
"""

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch

AXES = {"dim", "axis", "dims", "dim0", "dim1", "dim2"}
TAKES_AXIS = set(
    "sum mean max min amax amin argmax argmin softmax log_softmax logsumexp norm cumsum any all prod std var unsqueeze "
    "squeeze flatten sort flip unbind split chunk index_select gather cat stack transpose permute movedim".split()
)
PLACES = {"range", "arange", "diagonal", "tril", "triu", "roll", "split", "enumerate", "islice"}
WRAPPERS = {"clone", "detach", "contiguous", "copy", "deepcopy"}
UNWRAPPED = set(
    "abs exp log sqrt softmax log_softmax relu float long bool int list dict tuple set sorted item tolist square "
    "normalize strip lower".split()
)
ASIDE = {"desc", "leave", "disable", "mininterval", "total", "unit", "progress", "show_progress", "verbose"}  # of bars
SEEDED = {"manual_seed", "Random", "seed_everything", "default_rng", "RandomState", "seed"}
OTHER = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS = {
    ast.Mult: ("operator", ast.Div),
    ast.Div: ("operator", ast.Mult),
    ast.FloorDiv: ("operator", ast.Mult),
    ast.Mod: ("operator", ast.FloorDiv),
    ast.Pow: ("operator", ast.Mult),
    ast.BitAnd: ("operator", ast.BitOr),
    ast.BitOr: ("operator", ast.BitAnd),
    ast.Add: ("sign", ast.Sub),
    ast.Sub: ("sign", ast.Add),
}
IN_PLACE = {ast.Add: "add_", ast.Sub: "sub_", ast.Mult: "mul_", ast.Div: "div_"}


@dataclass(frozen=True)
class Mutant:
    """A wrong version: the rule, the line of the solution (from 1), what was changed, and the whole source text."""

    rule: str
    line: int
    change: str
    source: str


def mutants_of(source: str, methods: list[str] | None = None) -> list[Mutant]:
    """All mutants of one function, or of the methods that are to be written of a class; no two have the same text.

    Args:
        methods: for a class, the names of those that the learner writes.
    """
    tree = ast.parse(source)
    root = tree.body[0]
    made, seen = [], {ast.unparse(tree)}
    if isinstance(root, ast.ClassDef):
        functions = [n for n in root.body if isinstance(n, ast.FunctionDef) and n.name in (methods or ())]
    else:
        functions = [root]
    for function in functions:
        for rule, node, change, undo in _changes(function):
            text = ast.unparse(ast.fix_missing_locations(tree))
            undo()
            if text not in seen:
                seen.add(text)
                made.append(Mutant(rule, node.lineno, change, text))
    return made


def _changes(function: ast.FunctionDef) -> Iterator[tuple]:
    """Make one change after the other in the tree, each to be undone before the next is asked for."""
    for parent, field, at, node in list(_places(function)):
        for rule, new in _instead_of(node, parent, field, function):
            old = getattr(parent, field) if at is None else getattr(parent, field)[at]
            _put(parent, field, at, new)
            change = f"{_text(node)} → {_text(new)}"
            if isinstance(parent, ast.keyword):
                change = f"{parent.arg}=: {change}"
            if rule == "dropped keyword":
                change = f"without {({k.arg for k in node.keywords} - {k.arg for k in new.keywords}).pop()}=: {change}"
            yield rule, node, change, lambda p=parent, f=field, a=at, o=old: _put(p, f, a, o)
    body = function.body
    for rule, line, change, new in _whole_bodies(function):
        function.body = new
        yield rule, line, change, lambda: setattr(function, "body", body)
    function.body = body
    for group in (function.args.defaults, function.args.kw_defaults):
        for i, value in enumerate(group):
            for _, new in _other_constants(value):
                group[i] = new
                yield "default", value, f"{_text(value)} → {_text(new)}", lambda g=group, i=i, v=value: _set(g, i, v)


def _set(group: list, i: int, value) -> None:
    group[i] = value


def _put(parent, field, at, new) -> None:
    if at is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[at] = new


def _text(node) -> str:
    if node is None:
        return "nothing"
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= 90 else text[:89] + "…"


def _places(function: ast.FunctionDef) -> Iterator[tuple]:
    """(parent, field, index, node) of every statement and expression below, but of annotations, docstrings and what an
    exception says."""

    def below(parent):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "type_comment", "exc", "cause", "ctx", "op", "ops"):
                continue
            if isinstance(parent, ast.arguments) or isinstance(value, ast.arguments):
                continue
            items = [(None, value)] if isinstance(value, ast.AST) else []
            if isinstance(value, list):
                items = [(i, item) for i, item in enumerate(value) if isinstance(item, ast.AST)]
            for i, item in items:
                docstring = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
                aside = isinstance(item, ast.keyword) and item.arg in ASIDE
                if not docstring and not aside and not isinstance(item, ast.JoinedStr):
                    yield parent, field, i, item
                    yield from below(item)

    return below(function)


# ---------------------------------------------------------------- in place of one node


def _instead_of(node, parent, field: str, function) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Constant) or (isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)):
        yield from _numbers(node, parent, field)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        axis = "axis" if _is_axis(node, parent) else "sign"
        yield (axis if isinstance(node.op, ast.USub) else "condition"), node.operand
    elif isinstance(node, ast.BinOp):
        yield from _of_two(node, parent, function)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "condition", ast.BoolOp(other, node.values)
        for i in range(len(node.values)):
            left = [*node.values[:i], *node.values[i + 1 :]]
            yield "dropped term", left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in OTHER.get(type(op), ()):
                yield (
                    "comparison",
                    ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators),
                )
    elif isinstance(node, ast.Call):
        yield from _of_call(node, function)
    elif isinstance(node, ast.Tuple) and field == "slice" and len(node.elts) > 1:
        a, b, *rest = node.elts
        if ast.dump(a) != ast.dump(b):
            yield "axis", ast.Tuple([b, a, *rest], ast.Load())
    elif isinstance(node, ast.Slice):
        for bound in ("lower", "upper", "step"):
            if getattr(node, bound) is not None:
                yield "offset", ast.Slice(**{**{f: v for f, v in ast.iter_fields(node)}, bound: None})
    elif isinstance(node, ast.stmt):
        yield from _of_statement(node, function)
    if field == "test" or (field == "ifs" and isinstance(parent, ast.comprehension)):
        for value in (False,) if isinstance(parent, ast.While) else (True, False):
            yield "condition", ast.Constant(value)


def _numbers(node, parent, field: str) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.Constant) and isinstance(parent, ast.UnaryOp):
        return  # -1 is one number
    if _is_axis(node, parent):
        value = ast.literal_eval(node)
        if type(value) is int:
            yield from (("axis", _number(n)) for n in (value + 1, value - 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "->" in node.value:
        inputs, _, output = node.value.partition("->")
        names = output.split()
        for i in range(len(names) - 1):
            if not set("()1") & set(names[i] + names[i + 1]):
                swapped = [*names[:i], names[i + 1], names[i], *names[i + 2 :]]
                yield "axis", ast.Constant(f"{inputs}-> {' '.join(swapped)}")
    else:
        place = field in ("slice", "lower", "upper", "step") or _name_of(parent) in PLACES
        for _, new in _other_constants(node):
            yield ("offset" if place else "constant"), new


def _is_axis(node, parent) -> bool:
    if isinstance(parent, ast.keyword):
        return parent.arg in AXES
    return _name_of(parent) in TAKES_AXIS and node in parent.args


def _other_constants(node) -> Iterator[tuple[str, ast.AST]]:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, int):
        yield from (("constant", _number(n)) for n in (value + 1, value - 1))
    elif isinstance(value, float):
        yield "constant", _number(2 * value or 1.0)


def _number(value) -> ast.AST:
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)


def _name_of(node) -> str:
    """The last name of what is called: "sum" of `x.sum(0)` and of `torch.sum(x, 0)`."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", None) or getattr(node.func, "id", "")


def _of_two(node: ast.BinOp, parent, function) -> Iterator[tuple[str, ast.AST]]:
    squared = getattr(parent, "attr", "") in ("abs", "square", "pow", "norm") or (
        isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Pow)
    )
    if type(node.op) in OPERATORS:
        rule, other = OPERATORS[type(node.op)]
        yield rule, ast.BinOp(node.left, other(), node.right)
    if isinstance(node.op, ast.Div | ast.Pow | ast.MatMult) or (isinstance(node.op, ast.Sub) and not squared):
        yield "swapped arguments", ast.BinOp(node.right, node.op, node.left)
    yield "dropped term", node.left
    if isinstance(node.op, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr):
        yield "dropped term", node.right
    if type(node.op) in IN_PLACE and isinstance(node.left, ast.Name) and node.left.id in _tensors(function):
        yield "in place", ast.Call(ast.Attribute(node.left, IN_PLACE[type(node.op)], ast.Load()), [node.right], [])


def _of_call(node: ast.Call, function) -> Iterator[tuple[str, ast.AST]]:
    name, args = _name_of(node), node.args
    of = node.func.value if isinstance(node.func, ast.Attribute) else None
    wrapped = args[0] if len(args) == 1 and (of is None or _text(of) in ("torch", "F", "copy")) else of
    if name in WRAPPERS and wrapped is not None:
        yield "clone or detach", wrapped
    elif name in UNWRAPPED and wrapped is not None:
        yield "unwrapped", wrapped
    if (
        len(args) > 1
        and not any(isinstance(a, ast.Starred) for a in args[:2])
        and ast.dump(args[0]) != ast.dump(args[1])
    ):
        yield "swapped arguments", ast.Call(node.func, [args[1], args[0], *args[2:]], node.keywords)
    for i, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg not in ASIDE:
            yield "dropped keyword", ast.Call(node.func, args, [*node.keywords[:i], *node.keywords[i + 1 :]])
    if name in SEEDED and len(args) == 1 and not isinstance(args[0], ast.Constant):
        yield "fixed seed", ast.Call(node.func, [ast.Constant(0)], node.keywords)
    if isinstance(of, ast.Name) and of.id in _tensors(function) and hasattr(torch.Tensor, f"{name}_"):
        yield "in place", ast.Call(ast.Attribute(of, f"{name}_", ast.Load()), args, node.keywords)
    if name == "sorted" and args and isinstance(args[0], ast.Name) and args[0].id in _parameters(function):
        sort = ast.Call(ast.Attribute(args[0], "sort", ast.Load()), args[1:], node.keywords)
        yield "in place", ast.BoolOp(ast.Or(), [sort, args[0]])


def _of_statement(node: ast.stmt, function) -> Iterator[tuple[str, ast.AST]]:
    bound = _parameters(function) | {
        t.id
        for other in ast.walk(function)
        if isinstance(other, ast.Assign) and other.lineno < node.lineno
        for t in other.targets
        if isinstance(t, ast.Name)
    }
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        if {n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} <= bound:
            yield "dropped statement", ast.Pass()
        value = node.value
        if (
            isinstance(target, ast.Name)
            and isinstance(value, ast.BinOp)
            and isinstance(value.left, ast.Name)
            and value.left.id == target.id
        ):
            yield "in place", ast.AugAssign(ast.Name(target.id, ast.Store()), value.op, value.right)
    elif isinstance(node, ast.Expr | ast.AugAssign | ast.Raise | ast.Delete | ast.Break | ast.Continue):
        yield "dropped statement", ast.Pass()
    elif isinstance(node, ast.For):
        yield "early return", ast.For(node.target, node.iter, [*node.body, ast.Break()], node.orelse)
        yield "first row only", ast.For(node.target, _helper("first_row", node.iter), node.body, node.orelse)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "clone or detach", ast.Return(_helper("detached", node.value))


# ---------------------------------------------------------------- in place of a body


def _whole_bodies(function: ast.FunctionDef) -> Iterator[tuple]:
    start = 1 if ast.get_docstring(function) is not None else 0
    head, body = function.body[:start], function.body[start:]
    yield "fixed seed", body[0], "torch.manual_seed(0) at the beginning", [*head, _line("_torch.manual_seed(0)"), *body]
    within = ast.With([ast.withitem(ast.parse("_torch.no_grad()", mode="eval").body)], body)
    yield "no_grad", body[0], "all under torch.no_grad()", [*head, within]
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults = dict(zip([a.arg for a in arguments][::-1], function.args.defaults[::-1], strict=False))
    defaults |= {a.arg: d for a, d in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if d}
    for name, default in defaults.items():
        if name in ASIDE:
            continue
        line = ast.Assign([ast.Name(name, ast.Store())], deepcopy(default))
        yield "ignored parameter", body[0], f"{name} is always {_text(default)}", [*head, line, *body]
    for a in arguments:
        if a.annotation is not None and any(
            kind in ast.unparse(a.annotation) for kind in ("Tensor", "list", "Sequence")
        ):
            line = ast.Assign([ast.Name(a.arg, ast.Store())], _helper("first_row", ast.Name(a.arg, ast.Load())))
            yield "first row only", body[0], f"the first of `{a.arg}` for all", [*head, line, *body]
    for i, statement in enumerate(body[:-1]):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            leave = ast.Return(ast.Name(statement.targets[0].id, ast.Load()))
            yield "early return", statement, f"return {statement.targets[0].id}", [*head, *body[: i + 1], leave]


def _line(text: str) -> ast.stmt:
    return ast.parse(text).body[0]


def _helper(name: str, value: ast.AST) -> ast.Call:
    return ast.Call(ast.Name(f"_{name}", ast.Load()), [value], [])


def _parameters(function) -> set[str]:
    args = function.args
    return {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs) if a.arg != "self"}


def _tensors(function) -> set[str]:
    args = function.args
    annotated = (*args.posonlyargs, *args.args, *args.kwonlyargs)
    return {a.arg for a in annotated if a.annotation is not None and "Tensor" in ast.unparse(a.annotation)}


# ---------------------------------------------------------------- what mutants call


def first_row(value):
    """The first of the rows or items, in the place of all."""
    if isinstance(value, torch.Tensor):
        return value[:1].expand_as(value).clone() if value.ndim and len(value) else value
    items = list(value)
    return items[:1] * len(items) if isinstance(value, list | tuple) else items[:1]


def detached(value):
    """Cut off from the gradient, also in lists, tuples and tables."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(detached(item) for item in value)
    return {key: detached(item) for key, item in value.items()} if type(value) is dict else value


HELPERS = {"_first_row": first_row, "_detached": detached, "_torch": torch}
