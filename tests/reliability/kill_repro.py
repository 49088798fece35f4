#!/usr/bin/env python3
"""Kill `dvc repro` at random moments until it is done, and compare every output with that of a run that nobody stopped.

    python tests/reliability/kill_repro.py [KILLS] [FOLDER]     # 20 kills, about half an hour on two cores

Half of the kills take DVC alone, half all its processes at once, as when a machine dies. Outputs must have the same MD5. Measured times cannot: they are left out of logs
and results first, and the notebooks and pictures that show them are listed apart. Writes data/results/reliability/repro.json."""
import csv
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from runpy import run_path

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"seconds", "tokens_per_second", "generation_seconds"}
SHOW_TIMES = re.compile(r"train\.ipynb|(prior|vae)-\d+\.ipynb|(likelihood|rq4|results)\.(ipynb|svg|json|csv)")   # names of files, measured times in them


SMOKE = run_path(str(ROOT / ".ci/smoke"))   # how a copy of the working tree is made and run


def prepare(copy):
    "A copy of the working tree with the smallest profile; its environment and stages, but the theory's, which have no state to lose."
    SMOKE["copy_tree"](ROOT, copy)
    SMOKE["choose_profile"](copy / "params.yaml", "smoke")
    return SMOKE["stages_of"](copy, theory=False)


def timeless(path):
    "The bytes of a file without measured times."
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        kept = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows if row.get("metric") not in CLOCKS]
        return json.dumps(kept).encode()
    if path.suffix == ".json":
        found = json.loads(path.read_text())
        if isinstance(found, list): found = [{k: v for k, v in row.items() if k not in CLOCKS} for row in found if row.get("metric") not in CLOCKS]
        return json.dumps(found).encode()
    return path.read_bytes()


def outputs(copy):
    "MD5 of every file that a stage made."
    lock = YAML(typ="safe").load((copy / "dvc.lock").read_text())
    places = {out["path"] for name, stage in lock["stages"].items() if name.endswith("@smoke") or name.startswith(("prepare", "study")) for out in stage.get("outs", [])}
    files = [file for place in sorted(places) for file in ([copy / place] if (copy / place).is_file() else sorted((copy / place).rglob("*"))) if file.is_file()]
    return {str(file.relative_to(copy)): hashlib.md5(timeless(file)).hexdigest() for file in files}


def start(copy, environment, wanted):
    return subprocess.Popen(["dvc", "repro", *wanted], cwd=copy, env=environment, stdout=open(copy / "repro.log", "a"), stderr=subprocess.STDOUT)


def kill(job, everything):
    "SIGKILL to DVC, or to it and all that it started."
    victims = [psutil.Process(job.pid)]
    if everything: victims += victims[0].children(recursive=True)
    for victim in victims:
        try: victim.kill()
        except psutil.NoSuchProcess: pass
    job.wait()


def main(kills, place):
    whole, broken = place / "whole", place / "broken"
    (environment, wanted), (other, _) = prepare(whole), prepare(broken)
    began = time.time()
    assert start(whole, environment, wanted).wait() == 0, f"see {whole / 'repro.log'}"
    duration = time.time() - began
    rng, done = random.Random(0), []
    while True:
        job, moment = start(broken, other, wanted), rng.uniform(1, 2 * duration / max(kills, 1))
        try: code = job.wait(timeout=moment if len(done) < kills else None)
        except subprocess.TimeoutExpired:
            kill(job, everything := len(done) % 2 == 1)
            running = re.findall(r"Running stage '([^']+)'", (broken / "repro.log").read_text())
            done.append({"after": round(moment, 1), "killed": "all" if everything else "dvc", "stage": running[-1] if running else None})
            print(done[-1], flush=True)
            continue
        assert code == 0, f"dvc repro failed: see {broken / 'repro.log'}"
        break
    again = subprocess.run(["dvc", "repro", *wanted], cwd=broken, env=other, capture_output=True, text=True)
    a, b = outputs(whole), outputs(broken)
    different = sorted(f for f in a.keys() | b.keys() if a.get(f) != b.get(f))
    left = sorted(p.name for p in (broken / "data/resume").iterdir()) if (broken / "data/resume").exists() else []
    (broken / "repro.log").write_text("")
    first = start(broken, other, ["--force", "--single-item", "train_prior@smoke"])
    while "Running stage" not in (broken / "repro.log").read_text() and first.poll() is None: time.sleep(0.1)
    second = subprocess.run(["dvc", "repro", *wanted], cwd=broken, env=other, capture_output=True, text=True)
    first.terminate(); first.wait()
    found = {"kills": done, "seconds_whole": round(duration), "files": len(a), "different": [f for f in different if not SHOW_TIMES.fullmatch(Path(f).name)],
             "show_times": [f for f in different if SHOW_TIMES.fullmatch(Path(f).name)], "stages_run_again": again.stdout.count("Running stage"), "left_over": left,
             "second_refused": second.returncode != 0, "refusal": next((l for l in (second.stderr + second.stdout).split("\n") if l.startswith("ERROR")), "")[:200]}
    out = ROOT / "data/results/reliability/repro.json"
    out.parent.mkdir(parents=True, exist_ok=True); out.write_text(json.dumps(found, indent=1).replace(str(place), "") + "\n")
    print(json.dumps(found, indent=1))
    return 0 if not found["different"] and not found["stages_run_again"] and found["second_refused"] else 1


if __name__ == "__main__":
    kills, place = int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="colanb-kill-"))
    place.mkdir(parents=True, exist_ok=True)
    for name in ("whole", "broken"): (place / name).mkdir()
    sys.exit(main(kills, place))
