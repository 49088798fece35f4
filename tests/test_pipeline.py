"dvc.yaml, params.yaml, the notebooks and the README's figure map agree."
import ast
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from colanb.config import Profile

ROOT = Path(__file__).resolve().parents[1]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
PROFILES = {name: value for name, value in PARAMS.items() if name != "profile"}


def imported(source):
    "colanb modules named in a piece of Python."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1: yield node.module
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("colanb."): yield node.module.split(".")[1]


def closure(names):
    seen, todo = set(), list(names)
    while todo:
        name = todo.pop()
        if name in seen: continue
        seen.add(name)
        todo += imported((ROOT / f"colanb/{name}.py").read_text())
    return seen


def stage(name):
    return STAGES[name].get("do", STAGES[name])


@pytest.mark.parametrize("name", STAGES)
def test_stage_depends_on_the_modules_its_notebook_imports(name):
    notebook = re.search(r"nbs/exp/\w+\.ipynb", stage(name)["cmd"]).group(0)
    cells = json.loads((ROOT / notebook).read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    wanted = {notebook} | {f"colanb/{m}.py" for m in closure({*imported(source), "run"})}
    declared = {d for d in stage(name)["deps"] if d.startswith(("nbs/", "colanb/"))}
    assert declared == wanted


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_named_after_its_notebook(name):
    notebook = re.search(r"nbs/exp/\d+_(\w+)\.ipynb", stage(name)["cmd"]).group(1)
    assert notebook == name


def test_figure_stages_read_only_what_git_keeps():
    for name in STAGES:
        outs = stage(name)["outs"]
        if not any("${profile.figures}" in str(out) for out in outs): continue
        assert not any(d.startswith(("data/tokens", "data/vaes", "data/runs")) for d in stage(name)["deps"]), name
        assert all(isinstance(out, dict) and list(out.values()) == [{"cache": False}] for out in outs), name


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


def test_default_profile_is_tiny():
    assert PARAMS["profile"]["name"] == "tiny"


def test_figure_map_lists_every_figure_stage():
    readme = (ROOT / "README.md").read_text()
    for name in STAGES:
        if not any("${profile.figures}" in str(out) for out in stage(name)["outs"]): continue
        notebook = re.search(r"nbs/exp/\w+\.ipynb", stage(name)["cmd"]).group(0)
        assert f"]({notebook})" in readme, f"{name}: no link to {notebook}"
        assert f"](figures/{name}.ipynb)" in readme, f"{name}: no link to the executed notebook"


def test_links_of_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#\s]+)\)|src=\"([^\"]+)\"", (ROOT / "README.md").read_text()):
        target = next(filter(None, target))
        if not target.startswith("http"): assert (ROOT / target).exists(), target
