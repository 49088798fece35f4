"The library reference: every public name of a module with its signature, docstring and the comment of each parameter, read from the source."

import ast
import re


def comments_of(lines, first, last):
    "Line number -> the comment at its end."
    found = {number: re.search(r"\s#\s(.*)$", lines[number - 1]) for number in range(first, last + 1)}
    return {number: match[1].strip() for number, match in found.items() if match}


def cell(text):
    "Text for a cell of a table."
    return text.replace("|", "\\|").replace("\n", " ").replace("$", "\\$")


def code(text):
    "Code for a cell of a table, nothing if there is none."
    return f"`{cell(text)}`".replace("\\$", "$") if text else ""


def parameter_rows(function, lines):
    "Name, type, default and meaning of each parameter."
    own = function.args
    plain = own.posonlyargs + own.args
    defaults = [None] * (len(plain) - len(own.defaults)) + own.defaults
    pairs = list(zip(plain, defaults)) + [(own.vararg, None)] * bool(own.vararg) + list(zip(own.kwonlyargs, own.kw_defaults))
    comments = comments_of(lines, function.lineno, function.body[0].lineno - 1)
    for argument, default in pairs:
        if argument.arg in ("self", "cls"): continue
        shown = ["" if part is None else ast.unparse(part) for part in (argument.annotation, default)]
        yield argument.arg, *shown, comments.get((default or argument).end_lineno, "")


def table(rows, head):
    "A Markdown table, nothing without rows."
    rows = list(rows)
    if not rows: return ""
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [f"| {code(name)} | {code(kind)} | {code(default)} | {cell(meaning)} |" for name, kind, default, meaning in rows]
    return "\n".join(lines) + "\n"


def signature(function):
    "The call with names only; types stand in the table."
    own = function.args
    names = [argument.arg for argument in own.posonlyargs + own.args if argument.arg not in ("self", "cls")]
    if own.vararg: names.append(f"*{own.vararg.arg}")
    elif own.kwonlyargs: names.append("*")
    names += [argument.arg for argument in own.kwonlyargs]
    if own.kwarg: names.append(f"**{own.kwarg.arg}")
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({', '.join(names)}){returns}"


def function_text(function, lines, level):
    "A function's entry."
    doc = cell_free(ast.get_docstring(function) or "")
    head = ("Parameter", "Type", "Default", "Meaning")
    rows = table(parameter_rows(function, lines), head)
    return f"{'#' * level} `{function.name}`\n\n```python\n{signature(function)}\n```\n\n{doc}\n\n{rows}\n"


def cell_free(doc):
    "A docstring as Markdown: stars, dollars and angle brackets stand for themselves."
    return re.sub(r"(?<!\\)([*<_$])", r"\\\1", doc) if "`" not in doc else doc.replace("$", "\\$")


def field_rows(node, lines):
    "Fields of a record."
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and not part.target.id.startswith("_"):
            default = "" if part.value is None else ast.unparse(part.value)
            comment = comments_of(lines, part.lineno, part.end_lineno)
            yield part.target.id, ast.unparse(part.annotation), default, comment.get(part.end_lineno, "")


def class_text(node, lines):
    "A class's entry: docstring, fields, public methods."
    fields = table(field_rows(node, lines), ("Field", "Type", "Default", "Meaning"))
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    text = f"## `{node.name}`\n\n```python\nclass {node.name}({bases})\n```\n\n{cell_free(ast.get_docstring(node) or '')}\n\n{fields}\n"
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
            text += function_text(part, lines, 3)
    return text


def module_text(path, name, notebook):
    "A module's page."
    source = path.read_text()
    tree, lines = ast.parse(source), source.split("\n")
    text = f"# {name}\n\n{cell_free(ast.get_docstring(tree) or '')}\n\nMade by the notebook [{notebook}](/{notebook}).\n\n"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text += function_text(node, lines, 2)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            text += class_text(node, lines)
    return text


def write_reference(package, out):
    "A page for each module and a list of them."
    out.mkdir(parents=True)
    names = []
    for path in sorted(package.rglob("*.py")):
        edited = re.search(r"File to edit: [./]*(nbs/\S+\.ipynb)\.", path.read_text())
        if not edited: continue
        name = ".".join(("colanb", *path.relative_to(package).with_suffix("").parts))
        names.append(name)
        (out / f"{name}.md").write_text(module_text(path, name, edited[1]))
    listed = "\n".join(names)
    (out / "index.md").write_text(
        "# Library reference\n\nEvery public name, with the shapes and units of its parameters, as the source says them. Each module is made by a\n"
        f"notebook that explains it and shows it at work.\n\n```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```\n")
