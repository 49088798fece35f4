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


SMOKE = run_path(str(ROOT / ".ci/smoke"))   # how a copy of the working tree is made ready


def timeless(path):
    "The bytes of a file without measured times."
    if path.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        kept = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows if row.get("metric") not in CLOCKS]
        return json.dumps(kept).encode()
    if path.suffix == ".json":
        found = json.loads(path.read_text())
        if isinstance(found, dict) and "rows" in found: found = [{"metric": "run", **{k: v for k, v in found.items() if k not in ("rows", "machine")}}, *found["rows"]]
        if isinstance(found, list) and all(isinstance(row, dict) for row in found):
            found = [{k: v for k, v in row.items() if k not in CLOCKS} for row in found if row.get("metric") not in CLOCKS]
        return json.dumps(found).encode()
    return path.read_bytes()


def outputs(copy):
    "MD5 of every file that a stage made."
    lock = YAML(typ="safe").load((copy / "dvc.lock").read_text())
    places = {out["path"] for name, stage in lock["stages"].items() if name.endswith("@smoke") or name.startswith(("prepare", "study")) for out in stage.get("outs", [])}
    files = [file for place in sorted(places) for file in ([copy / place] if (copy / place).is_file() else sorted((copy / place).rglob("*"))) if file.is_file()]
    return {str(file.relative_to(copy)): hashlib.md5(timeless(file)).hexdigest() for file in files}


def start(copy, *options):
    "`dvc repro` in a copy, on the copy's own code."
    environment = {name: value for name, value in os.environ.items() if name != "COLANB_ROOT"} | {"PYTHONPATH": str(copy), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(["dvc", "repro", *options], cwd=copy, env=environment, stdout=open(copy / "repro.log", "w"), stderr=subprocess.STDOUT)


def begun(copy):
    "The stages that the last `dvc repro` began, in order."
    return re.findall(r"Running stage '([^']+)'", (copy / "repro.log").read_text())


def timeline(copy):
    "Run a pipeline to its end; seconds after the start at which each stage began, and the end."
    job, began, starts = start(copy), time.time(), {}
    while job.poll() is None:
        for name in begun(copy): starts.setdefault(name, time.time() - began)
        time.sleep(0.1)
    assert job.returncode == 0, f"see {copy / 'repro.log'}"
    return starts | {"end": time.time() - began}


def points(starts, kills):
    "Moments drawn evenly over a whole run, as (stage, seconds after it began)."
    rng, names = random.Random(0), list(starts)[:-1]
    for moment in sorted(rng.uniform(starts[names[0]], starts["end"]) for _ in range(kills)):
        stage = [name for name in names if starts[name] <= moment][-1]
        yield stage, moment - starts[stage]


def kill(job, everything):
    "SIGKILL to DVC, or to it and all that it started."
    victims = [psutil.Process(job.pid)]
    if everything: victims += victims[0].children(recursive=True)
    for victim in victims:
        try: victim.kill()
        except psutil.NoSuchProcess: pass
    job.wait()


def stop_at(copy, starts, stage, seconds, everything):
    "Start the pipeline and kill it so long after it began `stage` (or a later one, if that is done already); what ran then."
    job, late = start(copy), set(list(starts)[list(starts).index(stage):])
    while not late & set(begun(copy)) and job.poll() is None: time.sleep(0.1)
    try: return {"stage": None, "code": job.wait(timeout=seconds)}   # it was done before
    except subprocess.TimeoutExpired:
        kill(job, everything)
        return {"after": round(seconds, 1), "killed": "all" if everything else "dvc", "stage": begun(copy)[-1]}


def compare(whole, broken):
    "Files that differ between two copies, and how many there are."
    a, b = outputs(whole), outputs(broken)
    different = sorted(f for f in a.keys() | b.keys() if a.get(f) != b.get(f))
    return {"files": len(a), "different": [f for f in different if not SHOW_TIMES.fullmatch(Path(f).name)], "show_times": [f for f in different if SHOW_TIMES.fullmatch(Path(f).name)]}


def two_at_once(copy):
    "Whether a second `dvc repro` in the folder of a running one is refused, and in which words."
    first = start(copy, "--force", "--single-item", "train_prior@smoke")
    while not begun(copy) and first.poll() is None: time.sleep(0.1)
    second = subprocess.run(["dvc", "repro"], cwd=copy, capture_output=True, text=True)
    first.terminate(); first.wait()
    return {"second_refused": second.returncode != 0, "refusal": next((line for line in (second.stderr + second.stdout).split("\n") if line.startswith("ERROR")), "")[:200]}


def main(kills, place):
    whole, broken, notes = place / "whole", place / "broken", place / "notes.json"   # notes: this script, too, goes on where it was stopped
    if not notes.exists():
        for copy in (whole, broken): copy.mkdir(); SMOKE["prepare"](ROOT, copy, theory=False)   # the theory has no state to lose
        notes.write_text(json.dumps({"starts": timeline(whole), "kills": []}))
    starts, done = json.loads(notes.read_text()).values()
    for stage, seconds in list(points(starts, kills))[len(done):]:
        done.append(stop_at(broken, starts, stage, seconds, everything=len(done) % 2 == 1))
        notes.write_text(json.dumps({"starts": starts, "kills": done}))
        print(done[-1], flush=True)
    timeline(broken)
    timeline(broken)   # nothing is left to do
    found = {"kills": done, "seconds_whole": round(starts["end"])} | compare(whole, broken) | {"stages_run_again": len(begun(broken))} | two_at_once(broken)
    out = ROOT / "data/results/reliability/repro.json"
    out.parent.mkdir(parents=True, exist_ok=True); out.write_text(json.dumps(found, indent=1).replace(str(place), "") + "\n")
    print(json.dumps(found, indent=1))
    return 0 if not found["different"] and not found["stages_run_again"] and found["second_refused"] and all(k["stage"] for k in done) else 1


if __name__ == "__main__":
    kills, place = int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="colanb-kill-"))
    place.mkdir(parents=True, exist_ok=True)
    sys.exit(main(kills, place))
