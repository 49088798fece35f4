"""Stopped at any moment and started again, a training ends where it would have ended: every tensor, the log and the position in the data, bit for bit.

COLANB_STOPS=20 kills each of the five trainers 20 times (the default, 3, is for every day)."""
import os
import signal
import time
from multiprocessing import Value

import numpy as np
import pytest
from trainers import KINDS, fork, keep_checkpoints, ready, record, run_of, start, state_of, wait

from colanb.learn import loop, train

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
