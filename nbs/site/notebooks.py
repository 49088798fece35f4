"Notebooks as pages: the executed ones with their outputs, those of the pipeline as source."

import re
import shutil

import nbformat

LINK = re.compile(r"(?<!\!)\[([^\]]*)\]\(([^)\s]+)\)")
COPIED = {".yaml", ".csv", ".json"}   # files that a notebook may link to


def staged_paths(root):
    "Notebooks of the site: figures of the main profile, the library, the pipeline's stages."
    figures = sorted((root / "figures").glob("*.ipynb")) + sorted((root / "figures/evidence").glob("*.ipynb"))
    library = [path for path in sorted((root / "nbs").rglob("*.ipynb")) if path.name != "index.ipynb"]
    return figures + library


def repaired_link(found, root, path, source, staged):
    "A link that leads nowhere on the site becomes its text; a small file that it names comes along."
    text, target = found.groups()
    if re.match(r"https?:|mailto:", target):
        return found[0]
    if target.startswith("#"):
        return text
    file = (path.parent / target.partition("#")[0]).resolve()
    if not file.is_relative_to(root) or not file.is_file():
        return text
    if file.suffix == ".ipynb":
        return found[0] if file in staged else text
    if file.suffix not in COPIED or file.stat().st_size > 200_000:
        return text
    copy = source / file.relative_to(root)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, copy)
    return found[0]


def clean_source(cell):
    "Code without nbdev's directives; whether the cell should be folded."
    lines = cell.source.split("\n")
    hidden = any(re.match(r"#\| *hide", line) for line in lines) or cell.metadata.get("jupyter", {}).get("source_hidden", False)
    cell.source = "\n".join(line for line in lines if not line.startswith("#|")).strip()
    return hidden


def prepare(notebook, fold, repair):
    "A copy's cells for reading: directives gone, links repaired, code of figures folded, pictures described."
    title = notebook.cells[0].source.split("\n")[0].lstrip("# ")
    cells, pictures = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(repair, cell.source)
        if cell.cell_type == "code":
            hidden = clean_source(cell) or fold
            if "injected-parameters" in cell.metadata.get("tags", []) or (not cell.source and not cell.get("outputs")):
                continue
            cell.metadata = nbformat.from_dict({"tags": ["hide-input"] if hidden else []})
            for output in cell.outputs:
                data = output.get("data", {})
                if "text/markdown" in data:
                    data["text/markdown"] = LINK.sub(repair, "".join(data["text/markdown"]))
                if "image/png" in data or "image/svg+xml" in data:
                    pictures += 1
                    cell.metadata["mystnb"] = {"image": {"alt": f"Picture {pictures} of the notebook: {title}"}}
        cells.append(cell)
    notebook.cells = cells


def stage_notebooks(root, source):
    "Write every notebook of the site below `source`, where it stands in the repository."
    paths = staged_paths(root)
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        place = path.relative_to(root)
        prepare(notebook, place.parts[0] == "figures", lambda found, path=path: repaired_link(found, root, path, source, set(paths)))
        target = source / place
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
