"""Stopped at any moment and started again, a training ends where it would have ended: every tensor, the log and the position in the data, bit for bit.

COLANB_STOPS=20 kills each of the five trainers 20 times (the default, 3, is for every day)."""
import os
import re
import signal
import sys
import time
from multiprocessing import Value
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from trainers import KINDS, fork, keep_checkpoints, ready, record, run_of, start, state_of, wait

from colanb.learn import loop, train
from colanb.text.corpus import Corpus

STOPS = int(os.environ.get("COLANB_STOPS", 3))
SAVE_EVERY = run_of("ar").stage2.save_every
first, reached = Value("i", 0), Value("i", 0)   # steps of the process at work: its first, and the one it is in


def work(kind, folder):
    "Train in a forked process that counts its steps where the test can see it."
    keep_checkpoints()
    step, first.value = loop.train_step, -1
    def counted(*args):
        reached.value = args[4][-1]
        if first.value < 0: first.value = reached.value
        return step(*args)
    loop.train_step = counted
    start(kind, folder)


def alive(pid):
    "Whether a forked process is still at work; it is not reaped here."
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def stop_in_training(pid, folder, fraction, steps):
    "SIGKILL somewhere in the step that `fraction` of all steps lead to."
    while reached.value < fraction * steps and alive(pid): time.sleep(0.0005)
    time.sleep(fraction * 0.01)


def stop_in_save(pid, folder, which):
    "SIGKILL while the save number `which` is under way."
    seen, before = 0, set()
    while alive(pid):
        now = {p.name for p in (folder / "scratch").glob(".step-*")}
        seen += len(now - before); before = now
        if seen > which: return


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("stopping")
    assert wait(fork(lambda: ready(place))) == 0
    return place


@pytest.fixture(scope="module")
def whole(place):
    "What the trainings end with when nothing stops them."
    for kind in KINDS: assert wait(fork(lambda: work(kind, place / f"{kind}-whole"))) == 0
    return {kind: state_of(place / f"{kind}-whole") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_trainings_end_where_they_would_have(place, whole, kind):
    rng, steps, found = np.random.default_rng(len(kind)), run_of(kind).stage2.steps, []
    number = 0
    while len(found) < STOPS:
        number += 1
        assert number < 2 * STOPS + 5, "most trainings end before they can be killed"
        folder, reached.value, in_save = place / f"{kind}-{number}", 0, len(found) % 4 == 3 or len(found) == STOPS - 1
        pid = fork(lambda: work(kind, folder))
        if in_save: stop_in_save(pid, folder, int(rng.integers(0, 5)))
        else: stop_in_training(pid, folder, float(rng.uniform(0, 0.98)), steps)
        os.kill(pid, signal.SIGKILL)
        if wait(pid) != -signal.SIGKILL: continue   # it was done before
        killed = reached.value
        assert wait(fork(lambda: work(kind, folder))) == 0
        found.append({"kind": kind, "in_save": in_save, "killed_at": killed, "went_on_from": first.value, "same": state_of(folder) == whole[kind]})
    record("killed", found, kind)
    assert all(f["same"] for f in found), found
    assert all(f["killed_at"] - f["went_on_from"] <= SAVE_EVERY for f in found), found
    assert any(f["went_on_from"] > 0 for f in found)


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_saves_and_exits_with_143(place, whole, kind):
    folder, reached.value = place / f"{kind}-term", 0
    pid = fork(lambda: work(kind, folder))
    while reached.value < 8: time.sleep(0.001)
    os.kill(pid, signal.SIGTERM); began = time.monotonic()
    code, seconds = wait(pid), time.monotonic() - began
    saved = max((folder / "scratch").glob("step-*")).name
    assert code == 143 and int(saved[5:]) == reached.value + 1
    assert wait(fork(lambda: work(kind, folder))) == 0
    record("terminated", {"kind": kind, "seconds": seconds, "code": code, "saved": saved, "same": state_of(folder) == whole[kind]}, kind)
    assert first.value == int(saved[5:]) and state_of(folder) == whole[kind]


# ---- what a user sees: stages that are done stay as they are, stops and resumes are told in one line ----

def script(place, folder, steps):
    "The README's two stages in one go; what they print is in `folder/printed`."
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    os.environ["TQDM_DISABLE"] = "0"   # whoever runs the tests may have silenced it
    sys.stderr = open("printed", "w", buffering=1)   # a forked process flushes nothing at its end
    corpus, run = Corpus.load(place / "tokens"), run_of("prior", steps=steps, save_every=10**6, save_seconds=0.1)
    run = run.replace(stage1=run_of("vae", steps=3).stage1)
    train.train_vae(run, corpus, "vae", seed=0, device="cpu", scratch=Path("first"))
    train.train_prior(run, corpus, "vae", "model", seed=0, device="cpu", scratch=Path("second"))


def checkpoints(folder): return {int(path.name[5:]) for path in folder.glob("second/step-*")}
def times_of(folder): return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_script_of_two_stages_goes_on_in_the_stage_where_it_was_stopped(place, tmp_path):
    "Ctrl-C, then SIGTERM, each after a checkpoint by time."
    stopped_at = 0
    for number, code, name in ((signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")):
        pid = fork(lambda: script(place, tmp_path / "run", 10**5))
        while max(checkpoints(tmp_path / "run"), default=0) <= stopped_at and alive(pid): time.sleep(0.01)
        os.kill(pid, number)
        assert wait(pid) == code
        said = [line for line in re.split("[\r\n]+", (tmp_path / "run/printed").read_text()) if "/100000 [" not in line]
        before, stopped_at = stopped_at, max(checkpoints(tmp_path / "run"))
        assert f"prior: stopped by {name} after step {stopped_at} of 100000: saved in second; started again, it goes on from there" in said, said
        if number == signal.SIGINT: first_stage = times_of(tmp_path / "run/vae")
    assert any(line.startswith("vae: vae is trained already") and "again=True" in line for line in said), said
    assert f"prior: goes on from step {before} of 100000" in said and times_of(tmp_path / "run/vae") == first_stage


def test_a_finished_script_leaves_everything_as_it_is(place, tmp_path):
    assert wait(fork(lambda: script(place, tmp_path / "run", 3))) == 0
    before = times_of(tmp_path / "run/model")
    assert wait(fork(lambda: script(place, tmp_path / "run", 3))) == 0
    said = (tmp_path / "run/printed").read_text()
    assert said.count("is trained already") == 2 and times_of(tmp_path / "run/model") == before
    assert wait(fork(lambda: script(place, tmp_path / "run", 4))) == 1 and times_of(tmp_path / "run/model") == before   # other settings


def test_a_model_is_finished_when_its_last_file_is_there(place, tmp_path):
    "A stop while a model is written in place of another leaves no mixture that passes for one."
    def cut_off():
        train.write_folder = lambda *args: os._exit(9)
        start("ar", tmp_path / "run", steps=4, again=True)
    os.symlink(place / "tokens", tmp_path / "tokens")
    assert wait(fork(lambda: start("ar", tmp_path / "run", steps=3))) == 0
    assert wait(fork(cut_off)) == 9 and not (tmp_path / "run/ar/run.json").exists()
    assert wait(fork(lambda: start("ar", tmp_path / "run", steps=4))) == 0
    assert max(pd.read_csv(tmp_path / "run/ar/log.csv").step) == 4
