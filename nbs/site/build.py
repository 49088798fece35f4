"""Build the site into _site/ from committed files: `make site`. Nothing is trained, nothing is fetched but the packages of npm.

The sources are laid out in .scratch/site as in the repository, so that the notebooks' own links hold, and Sphinx makes pages of them."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jinja2

from content import Content
from data import write_data
from export import export_model
from notebooks import stage_notebooks
from record import density_record, draw_flow, flow_record
from reference import write_reference

from colanb.config import shipped_models
from colanb.release.hub import open_any_model

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "nbs/site"
STAGE = ROOT / ".scratch/site"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def install_packages():
    "What package.json names, by npm, into the scratch folder; kept while the lock file stays the same."
    lock = HERE / "package-lock.json"
    folder = STAGE / "npm"
    done = folder / "installed.json"
    if done.exists() and done.read_text() == lock.read_text():
        return folder / "node_modules"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(HERE / name, folder)
    if subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=folder).returncode:
        raise SystemExit("make site needs npm (Node.js 18 or newer) and a package registry for katex and onnxruntime-web")
    shutil.copy(lock, done)
    return folder / "node_modules"


def stage_static(source, modules):
    "Styles, widgets, figures, measured data and the fonts of equations."
    static = source / "_static"
    shutil.copytree(HERE / "static", static)
    shutil.copytree(modules / "katex/dist/fonts", static / "katex/fonts", ignore=shutil.ignore_patterns("*.ttf", "*.woff"))
    shutil.copy(modules / "katex/dist/katex.min.css", static / "katex")
    (static / "figures").mkdir()
    for path in sorted((ROOT / "figures").glob("*.svg")):
        shutil.copy(path, static / "figures")
    write_data(ROOT, static / "data")
    stage_records(static / "data")
    stage_model(static, modules)


def write_record(record, path, folder):
    "What the shipped model in a folder did, with where it comes from."
    sources = [str(folder.relative_to(ROOT)), "nbs/site/record.py"]
    path.write_text(json.dumps({**record, "sources": sources}, allow_nan=False))


def stage_records(data):
    "What the model does on its way from noise to text and back."
    folder = shipped_models()["english"]
    run, model, tokenizer = open_any_model(folder)
    flow = flow_record(model, tokenizer, run.sampling())
    write_record(flow, data / "flow.json", folder)
    draw_flow(flow, data / "flow.svg")
    write_record(density_record(run, model, tokenizer), data / "density.json", folder)


def stage_model(static, modules):
    "The model that writes in the page, and what runs it: the processor's part of onnxruntime-web, in one thread on a plain server."
    program = static / "ort"
    program.mkdir()
    for name in RUNTIME:
        shutil.copy(modules / "onnxruntime-web/dist" / name, program)
    folder = shipped_models()["english"]
    run, model, tokenizer = open_any_model(folder)
    record = export_model(model, tokenizer, run.sampling(), static / "models/english")
    size = sum(record["sizes"].values()) + sum(path.stat().st_size for path in program.iterdir())
    page = {**record, "folder": "models/english", "bytes": size, "sources": [str(folder.relative_to(ROOT))]}
    (static / "data/cola.json").write_text(json.dumps(page, allow_nan=False))


def stage_pages(source):
    "The pages in our own words, with what they quote from committed files."
    pages = HERE / "pages"
    data = source / "_static/data"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pages), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        variable_start_string="[[", variable_end_string="]]", block_start_string="[%", block_end_string="%]", comment_start_string="[#",
        comment_end_string="#]")
    for path in sorted(pages.rglob("*.md")):
        place = path.relative_to(pages)
        text = environment.get_template(str(place)).render(**Content(ROOT, len(place.parts) - 1, data).macros())
        target = source / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def run_sphinx(source, out):
    "Make the pages; a warning is an error."
    command = [sys.executable, "-m", "sphinx", "--quiet", "--jobs", "2", "--fail-on-warning", "--keep-going", "-b", "html"]
    return subprocess.run([*command, "-d", str(STAGE / "doctrees"), str(source), str(out)]).returncode


def level_headings(out):
    "Give the sidebar's captions, which Sphinx calls headings, the level that screen readers need."
    for path in out.rglob("*.html"):
        text = path.read_text()
        changed = text.replace('<p class="caption" role="heading">', '<p class="caption" role="heading" aria-level="2">')
        if changed != text: path.write_text(changed)


def set_equations(out, modules):
    "Turn the LaTeX of all pages into what a browser shows; one that cannot be set is an error."
    return subprocess.run(["node", str(HERE / "equations.mjs"), str(modules), str(out)]).returncode


def main():
    began = time.monotonic()
    modules = install_packages()
    source = STAGE / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in ("conf.py", "equations.py"):
        shutil.copy(HERE / name, source)
    stage_static(source, modules)
    stage_pages(source)
    stage_notebooks(ROOT, source)
    write_reference(ROOT / "colanb", source / "library")
    out = STAGE / "html"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(STAGE / "doctrees", ignore_errors=True)
    if run_sphinx(source, out) or set_equations(out, modules):
        raise SystemExit("the site has faults, see above; _site is as it was")
    level_headings(out)
    site = ROOT / "_site"
    shutil.rmtree(site, ignore_errors=True)
    out.rename(site)
    pages = sum(1 for _ in site.rglob("*.html"))
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"_site: {pages} pages, {size / 1e6:.0f} MB, {time.monotonic() - began:.0f} s; look at it with: python -m http.server -d _site")


if __name__ == "__main__":
    main()
