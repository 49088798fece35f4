"Small wrong changes of a module's source: each replaces one expression or statement, found in the syntax tree."
import ast
import difflib
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import NamedTuple

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
     ast.BitOr: ast.BitAnd}
FLIPS = {
    ast.Lt: (
        ast.LtE, ast.Gt), ast.LtE: (
            ast.Lt, ast.GtE), ast.Gt: (
                ast.GtE, ast.Lt), ast.GtE: (
                    ast.Gt, ast.LtE), ast.Eq: (
                        ast.NotEq,), ast.NotEq: (
                            ast.Eq,), ast.Is: (
                                ast.IsNot,), ast.IsNot: (
                                    ast.Is,), ast.In: (
                                        ast.NotIn,), ast.NotIn: (
                                            ast.In,)}
RENAMED = {
    "min": "max",
    "max": "min",
    "sum": "mean",
    "mean": "sum",
    "ceil": "floor",
    "floor": "ceil",
    "square": "abs",
    "any": "all",
    "all": "any",
    "argmax": "argmin",
    "cos": "sin",
    "sin": "cos",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
     "new_zeros": "new_ones"}
DROPPED = {
    "detach",
    "exp",
    "log",
    "sqrt",
    "clamp",
    "masked_fill",
    "round",
    "softmax",
    "log_softmax",
    "cumsum",
    "flip",
     "sort"}
SWAPPED = {"lerp": (0, 1), "where": (1, 2), "arange": (0, 1), "max": (0, 1), "min": (0, 1)}
FIRST_TWO = 2                                  # other calls have their first two plain arguments swapped
MASKS = ("valid", "mask", "hit", "count", "keep", "free", "own", "rows", "weight")
SILENT = {"tqdm", "ValueError", "record", "print", "namedtuple", "TypeVar",
    "compile", "add_argument"}   # what they say is not behaviour


class Mutant(NamedTuple):
    "A changed module."
    module: str
    line: int
    kind: str      # what was done
    source: str    # of the whole module
    diff: str      # the changed lines, one with - and one with +

    @property
    def name(self) -> str: return f"{self.module}:{self.line} {self.kind}"


def changed(node: ast.AST, **fields) -> ast.AST:
    "A copy of a node with other fields."
    copy = deepcopy(node)
    for name, value in fields.items(): setattr(copy, name, value)
    return copy


def constants(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(value, bool): yield "flip constant", ast.Constant(not value)
    elif isinstance(value, int): yield "constant + 1", ast.Constant(value + 1)
    elif isinstance(value, float) and value: yield "constant doubled", ast.Constant(2 * value)
    elif isinstance(value, float): yield "constant 0 -> 1", ast.Constant(1.0)


def calls(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    method = isinstance(node.func, ast.Attribute)
    name = node.func.attr if method else getattr(node.func, "id", "")
    if name in RENAMED:
        other = changed(node.func, **{"attr" if method else "id": RENAMED[name]})
        yield f"{name} -> {RENAMED[name]}", changed(node, func=other)
    if method and name in DROPPED:
        receiver = node.func.value
        library = isinstance(receiver, ast.Name) and receiver.id in ("math", "torch", "np", "F")
        if not library: yield f"drop .{name}()", receiver
    first, second = SWAPPED.get(name, (0, 1))
    plain = [a for a in node.args if not isinstance(a, ast.Starred)]
    commutes = name in ("min", "max", "maximum", "isinstance", "len", "getattr")
    if len(plain) == len(node.args) > second and not commutes:
        args = list(node.args)
        args[first], args[second] = args[second], args[first]
        yield "swap arguments", changed(node, args=args)


def negative(node: ast.AST) -> bool:
    "Whether it is a constant like -1: an axis from the end, a weight below 0."
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)


def expressions(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    "What can be put in the place of an expression."
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield "operator", changed(node, op=SWAPS[type(node.op)]())
    if negative(node): yield "negative constant -> 0", ast.Constant(0)
    elif isinstance(node, ast.UnaryOp): yield f"drop {type(node.op).__name__}", node.operand
    if isinstance(node, ast.BoolOp):
        yield "and / or", changed(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for op in FLIPS[type(node.ops[0])]: yield "comparison", changed(node, ops=[op()])
    if isinstance(node, ast.IfExp):
        yield "other branch", node.orelse
        yield "other branch", node.body
    if isinstance(node, ast.Constant): yield from constants(node)
    if isinstance(node, ast.Call): yield from calls(node)
    if isinstance(
    node, ast.Subscript) and isinstance(
        node.ctx, ast.Load) and isinstance(
            node.slice, (ast.Name, ast.Subscript)):
        if any(word in ast.unparse(node.slice) for word in MASKS): yield "drop mask", node.value


def statements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    "What can be put in the place of a statement."
    if isinstance(node, ast.If) and not node.orelse: yield "drop if", ast.Pass()
    if isinstance(node, ast.AugAssign): yield "drop assignment", ast.Pass()
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call): yield "drop call", ast.Pass()


def behaviour(node: ast.AST) -> Iterator[ast.AST]:
    "The nodes that decide what a module computes: no docstrings, annotations, messages or progress bars."
    yield node
    if negative(node): return
    skipped = {"annotation", "returns", "decorator_list", "bases"}
    for name, value in ast.iter_fields(node):
        if name in skipped: continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST): continue
            if isinstance(child, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Raise, ast.Assert)): continue
            called = getattr(child.func, "id", getattr(child.func, "attr", "")) if isinstance(child, ast.Call) else ""
            if called not in SILENT: yield from behaviour(child)


def refuses(node: ast.AST) -> bool:
    "Whether a statement only raises an error for wrong input, which the tests of bad input are for."
    return isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)


def spliced(source: str, node: ast.AST, text: str) -> str:
    "The source with other text in the place of a node."
    lines = source.encode().splitlines(keepends=True)
    before = b"".join(lines[:node.lineno - 1]) + lines[node.lineno - 1][:node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset:] + b"".join(lines[node.end_lineno:])
    return (before + text.encode() + after).decode()


def difference(old: str, new: str) -> str:
    "The lines that differ."
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def mutants(module: str, source: str) -> list[Mutant]:
    "Every mutant of a module, in the order of its lines."
    found = []
    for node in behaviour(ast.parse(source)):
        if not hasattr(node, "lineno"): continue
        for kind, other in [*expressions(node), *statements(node)]:
            if refuses(node) or ast.dump(other) == ast.dump(node): continue
            text = ast.unparse(other) if isinstance(
    other, (ast.Pass, ast.Constant, ast.Name)) else f"({ast.unparse(other)})"
            made = spliced(source, node, text)
            try: compile(made, module, "exec")
            except SyntaxError: continue
            found.append(Mutant(module, node.lineno, kind, made, difference(source, made)))
    return sorted(found, key=lambda mutant: mutant.line)


def replaced(module: str, source: str, old: str, new: str, kind: str = "known") -> Mutant:
    "A mutant that is written down; `ValueError` unless the old text occurs once."
    if source.count(old) != 1: raise ValueError(f"{old!r} occurs {source.count(old)} times in {module}, not once")
    made = source.replace(old, new)
    return Mutant(module, source[:source.index(old)].count("\n") + 1, kind, made, difference(source, made))


def sample(everyone: list[Mutant], count: int, seed: int) -> list[Mutant]:
    "Some mutants, drawn without replacement, the same for a seed."
    if count >= len(everyone): return everyone
    return sorted(random.Random(seed).sample(everyone, count), key=lambda mutant: mutant.line)
