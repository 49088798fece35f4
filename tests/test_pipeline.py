"dvc.yaml, params.yaml, notebooks and README's figure map agree; a stage depends on the code it runs, not on prose."
import ast
import json
import re
import shutil
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path
from runpy import run_path

import nbformat
import pytest
from ruamel.yaml import YAML

from colanb.config import Profile, load_profile
from colanb.run import declared_parameters

ROOT = Path(__file__).resolve().parents[1]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
PROFILES = {name: value for name, value in PARAMS.items() if name != "profile"}
WRITER = run_path(str(ROOT / ".ci/pipeline"))
SMOKE = run_path(str(ROOT / ".ci/smoke"))
PREVIEW = run_path(str(ROOT / ".ci/preview"))["preview"]
ACTIVE = PARAMS["profile"]["name"]
CODE = WRITER["code_of"](ROOT, STAGES)
VERSIONS = {11, 12, 13} - {sys.version_info.minor}
OTHERS = list(filter(None, (shutil.which(f"python3.{version}") for version in sorted(VERSIONS))))


def stage(name):
    return STAGES[name].get("do", STAGES[name])


def is_figure(name):
    return any(f"out={folder}" in stage(name)["cmd"] for folder in ("figures/", "${profile.figures}/"))


def notebook_of(name):
    return re.search(r"nbs/exp/[\w/]+\.ipynb", stage(name)["cmd"]).group(0)


def copy_library(target):
    "A copy of what the fingerprints are made from."
    for name in ("settings.ini", "setup.py", "README.md", "LICENSE"): shutil.copy(ROOT / name, target)
    left_out = shutil.ignore_patterns("__pycache__", "models")
    for name in ("nbs", "colanb"): shutil.copytree(ROOT / name, target / name, ignore=left_out)


def edit(path, pattern, new, kind="code"):
    "Replace the first match in a notebook's cells of a kind; there must be one."
    notebook = nbformat.read(path, as_version=4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == kind):
        cell.source, changed = re.subn(pattern, new, cell.source, count=1, flags=re.M)
        if changed: nbformat.write(notebook, path); return
    raise AssertionError(f"{path.name} has no {pattern}")


def test_drift_of_pipeline():
    "The script changes nothing: dvc.yaml and the fingerprints are those of the table and the code."
    made = WRITER["files_of"](ROOT)
    paths = [ROOT / "dvc.yaml", *sorted((ROOT / "pipeline").iterdir())]
    kept = {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    assert made.keys() == kept.keys(), "a stage was added or removed: run `make export`"
    assert [name for name in made if made[name] != kept[name]] == [], "run `make export`"


def test_a_module_without_a_notebook_is_removed(tmp_path):
    "After a notebook is deleted or its module renamed, `make export` leaves no old module behind."
    copy_library(tmp_path)
    (tmp_path / "nbs/8_lab/07_gpu.ipynb").unlink()
    edit(tmp_path / "nbs/8_lab/06_plan.ipynb", "^#\\| default_exp lab.plan$", "#| default_exp lab.planning")
    (tmp_path / "colanb/lab/by_hand.py").write_text("x = 1\n")
    before = {path.name for path in (tmp_path / "colanb").rglob("*.py")}
    WRITER["remove_orphans"](tmp_path)
    after = {path.name for path in (tmp_path / "colanb").rglob("*.py")}
    assert before - after == {"gpu.py", "plan.py"}


@pytest.mark.parametrize("name", STAGES)
def test_stage_depends_on_the_modules_its_notebook_imports(name, tmp_path):
    "The fingerprints are of exactly the modules that Python's own finder reaches from the notebook and its runner."
    notebook = re.search(r"nbs/exp/[\w/]+\.ipynb", stage(name)["cmd"]).group(0)
    cells = nbformat.read(ROOT / notebook, as_version=4).cells
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(["import colanb.run", *(cell.source for cell in cells if cell.cell_type == "code")]))
    finder = ModuleFinder(path=[str(ROOT)])
    finder.run_script(str(script))
    wanted = {Path(module.__file__) for found, module in finder.modules.items() if found.split(".")[0] == "colanb"}
    files = {str(path.relative_to(ROOT)) for path in wanted if WRITER["fingerprint"](path)}
    assert set(CODE[name]) == files | {notebook}
    code = [dep for dep in stage(name)["deps"] if dep.startswith(("nbs/", "colanb/", "pipeline/")) and not dep.endswith(".yaml")]   # rules, not code
    assert code == [f"pipeline/{name}.json"]


@pytest.fixture
def tree(tmp_path):
    "A library in folders, and a notebook in a folder that imports one module of it."
    files = {
        "__init__": '__version__ = "1"', "run": "z = 1", "config": "A = 1", "unused": "y = 'colanb.run: not a module'",
        "model/__init__": "", "model/vae": "from ..config import A\nfrom . import dit",
        "model/dit": "import colanb.text as text", "lab": "x = 2",
        "text/__init__": "from .words import split", "text/words": "def split():\n    from ..learn.deep.fit import fit",
        "learn/__init__": "", "learn/deep/__init__": "",
        "learn/deep/fit": "from ...model import dit\nx = import_module('colanb.lab')",
    }
    for name, source in files.items():
        path = tmp_path / f"colanb/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (tmp_path / "nbs/exp/rq").mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell("from colanb.model.vae import VAE")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "nbs/exp/rq/60_figure.ipynb")
    return tmp_path


def test_imports_are_followed_through_subpackages(tree):
    "Relative imports with several dots, packages that import, late imports, imports by text, notebooks in folders."
    modules = ["run", "config", "model/vae", "model/dit", "text/__init__", "text/words", "learn/deep/fit", "lab"]
    found = WRITER["code_of"](tree, ["figure"])["figure"]
    assert set(found) == {"nbs/exp/rq/60_figure.ipynb", *(f"colanb/{name}.py" for name in modules)}


def test_what_is_missing_is_named(tree):
    with pytest.raises(ValueError, match="other has 0 notebooks NN_other"): WRITER["code_of"](tree, ["other"])
    (tree / "colanb/config.py").write_text("from .gone import A")
    with pytest.raises(ValueError, match="colanb.gone"): WRITER["code_of"](tree, ["figure"])
    (tree / "nbs/exp/pipeline.yaml").write_text("steps: {}\nshared: {}\nfigures: {rq1: {reslts: rq1}}\nstudied: {}\nplots: []\n")
    with pytest.raises(ValueError, match="rq1 has .'reslts'.*results"): WRITER["table_of"](tree)


def test_prose_reruns_nothing(tmp_path):
    "Text cells, comments and docstrings, edited and exported: the same fingerprints."
    copy_library(tmp_path)
    edit(tmp_path / "nbs/00_config.ipynb", r"\Z", "\nMore about settings.", kind="markdown")
    edit(tmp_path / "nbs/00_config.ipynb", r"^(    \w+: .*)# ", r"\1# in other words, ")
    edit(tmp_path / "nbs/2_model/08_dit.ipynb", r'^(    )"', r'\1"In other words: ')
    edit(tmp_path / "nbs/2_model/08_dit.ipynb", r"^(class \w+.*):(.*)$", r"\1:   # a new comment")
    edit(tmp_path / "nbs/exp/67_rq3_cfg.ipynb", r"\Z", "\nMore about guidance.", kind="markdown")
    edit(tmp_path / "nbs/exp/67_rq3_cfg.ipynb", r"\Z", "   # a new comment")
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True, capture_output=True)
    for name in ("colanb/config.py", "colanb/model/dit.py"): assert (tmp_path / name).read_text() != (ROOT / name).read_text()
    assert WRITER["code_of"](tmp_path, STAGES) == CODE


@pytest.mark.parametrize("module", ["model/dit", "evidence/plots", "lab/toys"])
def test_an_operator_reruns_the_stages_that_use_it(module, tmp_path):
    copy_library(tmp_path)
    path = tmp_path / f"colanb/{module}.py"
    tree = ast.parse(path.read_text())
    product = next(node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult))
    product.op = ast.Div()
    path.write_text(ast.unparse(tree))
    code = WRITER["code_of"](tmp_path, STAGES)
    users = {name for name in STAGES if f"colanb/{module}.py" in CODE[name]}
    assert {name for name in STAGES if code[name] != CODE[name]} == users and 0 < len(users) < len(STAGES)
    for name in users:
        changed = [file for file in code[name] if code[name][file] != CODE[name][file]]
        assert changed == [f"colanb/{module}.py"]


@pytest.mark.parametrize("before, after", [
    ("x = f(1, 2)", "x = f(1, 3)"), ("x = f(1, 2)", "x = f(1, 2)\ny = 1"), ("x = 'y'", "x = 'z'"),
    ("x = f'{y:{z}}'", "x = f'{y:{z}}.'"),
    ("def f(a=1): return a * 2", "def f(a=2): return a * 2"), ("def f(a=1): return a * 2", "def f(a=1): return a + 2"),
    ("b = Field(1, description='x')", "b = Field(2, description='x')"), ("b = Field(1, ge=0)", "b = Field(1, gt=0)"),
    ("x = other(description='x')", "x = other(description='y')"), ("if x: y()", "if x: y()\nelse: z()"),
    ("x = None", "x = True")])
def test_code_changes_the_fingerprint(before, after, tmp_path):
    for name, source in {"before": before, "after": after}.items(): (tmp_path / f"{name}.py").write_text(source)
    assert WRITER["fingerprint"](tmp_path / "before.py") != WRITER["fingerprint"](tmp_path / "after.py")


@pytest.mark.parametrize("before, after", [
    ("x = f(1, 2)", "# why\nx = f(1,\n    2)  # how\n"), ("def f(): return 1", "def f():\n    'What.'\n    return 1"),
    ("class A: pass", "class A:\n    'What.'"), ("x = 1", "'About.'\nx = 1"),
    ("async def f(): await g()", "async def f():\n    'What.'\n    await g()"),
    ("b = Field(1, description='x')", "b = Field(1)"),
    ("b = pydantic.Field(1, description='x')", "b = pydantic.Field(1, description='y')"),
    ("__version__ = '1'\nx = 1", "__version__ = '2'\nx = 1")])
def test_prose_leaves_the_fingerprint(before, after, tmp_path):
    for name, source in {"before": before, "after": after}.items(): (tmp_path / f"{name}.py").write_text(source)
    assert WRITER["fingerprint"](tmp_path / "before.py") == WRITER["fingerprint"](tmp_path / "after.py")


def test_cells_count_as_the_runner_sees_them(tmp_path):
    "Which cell holds the parameters, where cells end and a text that one shows count; comments and text cells do not."
    def mark(*sources, tagged=0, extra=()):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        cells[tagged].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=[*cells, *extra]), tmp_path / "x.ipynb")
        return WRITER["fingerprint"](tmp_path / "x.ipynb")
    plain = mark("a = 1", "a")
    assert mark("a = 1  # one", "a", extra=[nbformat.v4.new_markdown_cell("text")]) == plain
    others = [mark("a = 1", "a", tagged=1), mark("a = 1\na"), mark("a = 1", "a;")]
    others += [mark("a = 1", "a", "'shown'"), mark("a = 1", "a", "'another'")]
    assert len({plain, *others}) == 6


def test_fingerprint_is_the_same_from_every_python(tmp_path):
    "Formatted texts, numbers, foreign characters: there trees or their printing differ between 3.11, 3.12 and 3.13."
    path = tmp_path / "texts.py"
    path.write_text("""a = f"{x=} {y!r:>{x}} b" "c" f"{x:{y}}{{}}" f"" f"{x:%Y}\\n" 'é\u2028'\nb = [1_000, 1e400, b"\\0", ..., None]\ndef f(): "doc"\n""")
    assert WRITER["fingerprint"](path) == "2185b82211fb33340863cc3aa450364e601ccf18d9ce20095eef1af3700811f6"


@pytest.mark.parametrize("python", OTHERS)
def test_fingerprints_are_those_of_another_python(python):
    if subprocess.run([python, "--version"], capture_output=True).returncode: pytest.skip(f"{python} does not run")
    code = "import json, runpy, sys; from pathlib import Path; mark = runpy.run_path(sys.argv[1])['fingerprint']; "
    code += "print(json.dumps([mark(Path(name)) for name in sys.argv[2:]]))"
    files = [*sorted((ROOT / "colanb").rglob("*.py")), *sorted((ROOT / "nbs/exp").rglob("*.ipynb"))]
    command = [python, "-W", "ignore", "-c", code, ROOT / ".ci/pipeline", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [WRITER["fingerprint"](path) for path in files]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "What a user has after `git clone`: no data, no trained models."
    folder = tmp_path_factory.mktemp("clone")
    SMOKE["copy_tree"](ROOT, folder)
    shutil.copy(ROOT / "dvc.lock", folder)
    return folder


def test_a_fresh_clone_has_nothing_to_run(clone):
    "Committed results are those of the committed code and settings; without trained models they are not made again."
    assert PREVIEW(clone) == {}, "out of date: `dvc repro`, or `make lock` after a proof that the results are the same"


def test_preview_names_what_an_edit_reruns(clone):
    "A study's setting: the campaign, which trains what is missing then, and the figures that read its store; nothing else."
    text = (clone / "params.yaml").read_text()
    before, profile, after = re.split(rf"(^{ACTIVE}: .*?)(?=^\w)", text, maxsplit=1, flags=re.M | re.S)
    edited = re.sub(r"(    drift:.*?items: )\d+", r"\g<1>11", profile, flags=re.S)
    assert edited != profile
    (clone / "params.yaml").write_text(before + edited + after)
    found = PREVIEW(clone, [f"drift@{ACTIVE}"])
    (clone / "params.yaml").write_text(text)
    assert found == {
        f"campaign@{ACTIVE}": "params.yaml: studies",
        f"drift@{ACTIVE}": f"follows campaign@{ACTIVE}",
    }


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_named_after_its_notebook(name):
    notebook = re.search(r"nbs/exp/(?:\w+/)*\d+_(\w+)\.ipynb", stage(name)["cmd"]).group(1)
    assert notebook == name


@pytest.mark.parametrize("name", ["prepare", "train_vae", "train_prior", "publish", "score", "score_likelihood", "trace", "latents", "campaign"])
def test_defaults_of_a_step_are_of_the_profile_it_loads(name):
    "A notebook that is opened by hand runs as it stands; only `publish` loads no profile."
    notebook = ROOT / WRITER["notebook_of"](ROOT, name)
    defaults = declared_parameters(notebook)
    profile = load_profile(name=defaults.get("profile", "smoke"))
    entries = {"run": profile.runs, "study": profile.studies, "slug": profile.sweeps, "vae": profile.vaes}
    for kind, choices in entries.items():
        if kind in defaults: assert Path(defaults[kind]).parts[-2 if "/" in defaults[kind] else -1] in choices, kind
    if "corpus" in defaults: assert Path(defaults["corpus"]).name in profile.corpora
    code = "\n".join(cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code")
    assert "load_profile()" not in code and ("profile" in defaults) == ("load_profile(name=profile)" in code)


def test_figure_stages_read_only_what_git_keeps():
    for name in filter(is_figure, STAGES):
        outs = stage(name)["outs"]
        assert not any(d.startswith(("data/tokens", "data/vaes", "data/runs")) for d in stage(name)["deps"]), name
        assert all(isinstance(out, dict) and list(out.values()) == [{"cache": False, "persist": True}] for out in outs), name


@pytest.mark.parametrize("name", PROFILES)
def test_profile_is_valid(name):
    profile = Profile.model_validate(PROFILES[name])
    assert profile.name == name
    for run in (*profile.vaes, *profile.priors, *profile.rivals): assert profile.run(run).sample
    assert set(profile.runs) == {*profile.vaes, *profile.priors, *profile.rivals} | {study.base for study in profile.studies.values()}, "a run that nothing trains"
    for study in profile.studies:
        assert profile.studies[study].corpus in profile.corpora
        for _, run in profile.study_runs(study):
            for setting in profile.studies[study].settings: run.sample.replace(**setting)
    assert profile.studied in ([], [name])
    for run, needs in profile.priors.items(): assert needs["vae"] in profile.vaes and needs["corpus"] in profile.corpora
    assert set(profile.slugs) <= set(profile.sweeps) and set(profile.slugs) <= set(STAGES) | {"results", "sampling"}
    for slug in profile.slugs:
        for setting in profile.sweep(slug).settings: profile.run(profile.main).sample.replace(**setting)


def test_numbers_of_params_are_numbers():
    "YAML readers disagree on 1e-3; 1.0e-3 is a number for all of them."
    assert re.findall(r"(?<![\w.])\d+e-?\d+", (ROOT / "params.yaml").read_text()) == []


def test_default_profile_is_quick():
    assert PARAMS["profile"]["name"] == "quick"


def displayed(notebook):
    "All text of a notebook: its prose and the Markdown that its cells showed."
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join([cell.source for cell in cells if cell.cell_type == "markdown"]
                     + [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})])


def test_contents_list_every_figure_stage():
    contents = displayed(ROOT / "nbs/contents.ipynb")
    for name in filter(is_figure, STAGES):
        notebook = notebook_of(name).removeprefix("nbs/")
        assert f"]({notebook})" in contents, f"{name}: no link to {notebook}: run `make executed`"
        assert f"](../figures/{name}.ipynb)" in contents, f"{name}: no link to the executed notebook"


def test_contents_list_every_module():
    contents = displayed(ROOT / "nbs/contents.ipynb")
    for path in (ROOT / "nbs").rglob("[0-9]*.ipynb"):
        place = path.relative_to(ROOT / "nbs")
        if "exp" not in place.parts: assert f"]({place})" in contents, f"{place}: run `make executed`"


def test_figures_run_by_hand_overwrite_nothing():
    "Committed figures are of one profile each, and only the pipeline says which: a notebook's own `out` is not kept by git."
    for name in filter(is_figure, STAGES):
        cells = nbformat.read(ROOT / notebook_of(name), as_version=4).cells
        [parameters] = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        assert f'out = ".scratch/figures/{name}"\n' in parameters + "\n", notebook_of(name)


def test_a_figure_of_no_profile_reads_nothing_of_one():
    for name in WRITER["table_of"](ROOT)["shared"]:
        assert "profile" not in json.dumps(STAGES[name]), name
        assert "load_profile" not in (ROOT / notebook_of(name)).read_text(), name
        assert not list((ROOT / "figures").glob(f"*/{name}.*")), f"{name} is drawn again for a profile"


PAGES = [*(ROOT / "figures").rglob("*.ipynb"), *(ROOT / "figures").rglob("*.md")]
FIGURES = sorted(str(path.relative_to(ROOT)) for path in PAGES if ".failed" not in path.suffixes)


def shown(page):
    "The text that a reader of a page sees: of a notebook without its code."
    return (ROOT / page).read_text() if page.endswith(".md") else displayed(ROOT / page)


@pytest.mark.parametrize("page", FIGURES)
def test_no_finding_is_nan(page):
    "What a profile is too small for is told in words."
    printed = []
    if page.endswith(".ipynb"):
        outputs = [output for cell in nbformat.read(ROOT / page, as_version=4).cells for output in cell.get("outputs", [])]
        printed = [output.text for output in outputs if "text" in output]
    assert not re.search(r"(?i)(?<!\w)nan(?!\w)", "\n".join([shown(page), *printed]))


@pytest.mark.parametrize("page", ["README.md", "nbs/contents.ipynb", *FIGURES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)|src=\"([^\"]+)\"", shown(page)):
        target = next(filter(None, target))
        if not target.startswith("http"): assert ((ROOT / page).parent / target).exists(), target


def test_one_command_draws_a_figure():
    "README and contents name the same one."
    for page in ("README.md", "nbs/contents.ipynb"):
        assert set(re.findall(r"`dvc repro ([^`]+?) \w+@?\w*`", shown(page))) == {"--allow-missing -sf"}, page
