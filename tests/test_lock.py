".ci/lock refreshes what a proven no-op leaves valid, and nothing else."
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
STAGES = ["plain", "commanded", "set", "kept", "older", "written"]   # all but `plain` differ from the record
PARAMS = "tiny: &tiny {name: tiny, size: 1}\nbig: &big {name: big, size: 2}\nprofile: *tiny\n"


def dvc_yaml(stages):
    "Stages that read fingerprints, data that is not there, and a file that git keeps."
    made = {}
    for name in stages:
        deps = [f"pipeline/{name}.json", "data/tokens", f"data/{name}.csv"]
        outs = [{f"data/{name}.json": {"cache": False}}]
        made[name] = {"cmd": f"run {name}", "deps": deps, "params": ["profile.size"], "outs": outs}
    return json.dumps({"stages": made})


def described(path):
    "A file, as dvc.lock records it."
    content = path.read_bytes()
    return {"path": str(path), "hash": "md5", "md5": hashlib.md5(content).hexdigest(), "size": len(content)}


def record(place, name):
    "What dvc.lock holds of a stage that ran now."
    tokens = {"path": "data/tokens", "hash": "md5", "md5": "0" * 32 + ".dir", "size": 7, "nfiles": 1}
    files = [described(place / f"data/{name}.csv"), tokens, described(place / f"pipeline/{name}.json")]
    deps = [file | {"path": file["path"].removeprefix(f"{place}/")} for file in files]
    outs = [{"path": f"data/{name}.json", "hash": "md5", "md5": "1" * 32, "size": 3}]
    return {"cmd": f"run {name}", "deps": deps, "params": {"params.yaml": {"profile.size": 1}}, "outs": outs}


def git(place, *words):
    "Run git in a folder."
    named = ["-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run(["git", *named, *words], cwd=place, check=True, capture_output=True)


@pytest.fixture
def place(tmp_path):
    "A project with recorded and committed results; then all its code changes, and more of all stages but one."
    for folder in (".ci", ".dvc", "pipeline", "data"): (tmp_path / folder).mkdir()
    for name in ("lock", "pipeline", "smoke"): shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci")
    (tmp_path / ".dvc/config").write_text("")
    (tmp_path / "params.yaml").write_text(PARAMS)
    for name in STAGES:
        (tmp_path / f"data/{name}.csv").write_text("1")
        (tmp_path / f"pipeline/{name}.json").write_text("before")
    (tmp_path / "dvc.yaml").write_text(dvc_yaml(STAGES))
    records = {name: record(tmp_path, name) for name in STAGES}
    records["commanded"]["cmd"] = "run it otherwise"
    records["set"]["params"]["params.yaml"]["profile.size"] = 3
    records["written"]["outs"][0]["path"] = "data/elsewhere.json"
    records["older"]["deps"][2]["md5"] = "2" * 32
    YAML().dump({"schema": "2.0", "stages": records}, tmp_path / "dvc.lock")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "recorded")
    for name in STAGES: (tmp_path / f"pipeline/{name}.json").write_text("after a no-op")
    (tmp_path / "data/kept.csv").write_text("2")
    return tmp_path


def lock(place, *words):
    "Run .ci/lock in a project."
    return subprocess.run([sys.executable, ".ci/lock", *words], cwd=place, capture_output=True, text=True)


def test_only_what_is_as_recorded_is_refreshed(place):
    before = YAML(typ="safe").load((place / "dvc.lock").read_text())["stages"]
    done = lock(place)
    assert done.returncode == 0, done.stderr
    after = YAML(typ="safe").load((place / "dvc.lock").read_text())["stages"]
    assert after["plain"] == before["plain"] | {"deps": record(place, "plain")["deps"]} != before["plain"]
    reasons = {"commanded": "another command", "set": "other parameters", "kept": "data/kept.csv has changed"}
    reasons |= {"older": "recorded with other code", "written": "other outputs"}
    for name, reason in reasons.items():
        assert after[name] == before[name]
        assert f"{name}: left alone, {reason}" in done.stdout


def test_a_stage_of_another_profile_and_a_stage_that_was_asked_for(place):
    "A record counts whichever profile is active; who names a stage that cannot be refreshed is told so."
    (place / "params.yaml").write_text(PARAMS.replace("profile: *tiny", "profile: *big"))
    kept = (place / "dvc.lock").read_text()
    assert lock(place, "set").returncode == 1
    done = lock(place, "absent")
    assert done.returncode == 1 and "no stage absent" in done.stderr and (place / "dvc.lock").read_text() == kept
    assert lock(place, "--since", "HEAD", "plain").returncode == 0
    assert YAML(typ="safe").load((place / "dvc.lock").read_text())["stages"]["plain"] == record(place, "plain")
