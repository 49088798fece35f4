"Damaged checkpoints, full disks, values that are not finite, hostile files and many saves: nothing is lost, and what is wrong is named."
import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from trainers import KINDS, fork, keep_checkpoints, ready, record, run_of, start, state_of, wait

from colanb.learn import loop
from colanb.model import vae
from colanb.learn.checkpoint import damage, load_checkpoint, newest_whole, save_checkpoint, seal
from colanb.config import ROOT
from colanb.text.corpus import Corpus
from colanb.model.cola import ColaDLM


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("damage")
    assert wait(fork(lambda: (keep_checkpoints(), ready(place), start("ar", place / "whole")))) == 0
    return place


def truncate(path, rng): path.write_bytes(path.read_bytes()[:int(rng.integers(0, path.stat().st_size))])
def remove(path, rng): path.unlink()
def flip(path, rng):
    "One bit of the file."
    data = bytearray(path.read_bytes()); at = int(rng.integers(0, 8 * len(data)))
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_fifty_damaged_checkpoints_are_found_and_the_one_before_is_used(place):
    rng, found = np.random.default_rng(0), []
    for case in range(50):
        copy = place / "copy"
        shutil.rmtree(copy, ignore_errors=True); shutil.copytree(place / "whole/scratch", copy)
        *_, before, last = sorted(copy.glob("step-*"))
        harm, target = (truncate, flip, remove)[case % 3], (files := sorted(last.iterdir()))[case // 3 % len(files)]
        harm(target, rng)
        with warnings.catch_warnings(record=True, action="always") as caught: used = newest_whole(copy)
        message = str(caught[-1].message) if caught else ""
        found.append({"harm": harm.__name__, "file": target.name, "used": used.name if used else None, "message": message.replace(str(copy), "scratch"), "named": target.name in message})
        assert used == before and target.name in message and (copy / f"damaged-{last.name}").exists(), found[-1]
    record("damaged", found)
    assert {(f["harm"], f["file"]) for f in found} >= {(h, f) for h in ("truncate", "flip", "remove") for f in ("manifest.json", "state.json")}


def test_a_training_goes_on_behind_a_damaged_checkpoint(place):
    whole, copy = state_of(place / "whole"), place / "again"
    shutil.copytree(place / "whole", copy); shutil.rmtree(copy / "ar")
    flip(next(max((copy / "scratch").glob("step-*")).glob("*.safetensors")), np.random.default_rng(1))
    assert wait(fork(lambda: (keep_checkpoints(), start("ar", copy)))) == 0
    assert state_of(copy) == whole and len(list((copy / "scratch").glob("damaged-*"))) == 1


def limited(folder, limit):
    "Train AR in a process whose files may not be longer than `limit` bytes; what it died of is in `folder/died`."
    keep_checkpoints()
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try: start("ar", folder)
    except OSError as error: (folder / "died").write_text(str(error)); raise


def test_a_disk_that_fills_up(place):
    "Ten points at which a file of the second checkpoint can grow no more, after a first one that was written without a limit."
    size, found = max(f.stat().st_size for f in max((place / "whole/scratch").glob("step-*")).iterdir()), []
    keep_first = place / "first"
    (keep_first / "scratch").mkdir(parents=True); shutil.copytree(min((place / "whole/scratch").glob("step-*")), keep_first / "scratch/step-0000020")
    for share in np.linspace(0.02, 0.98, 10):
        folder = place / "full"
        shutil.rmtree(folder, ignore_errors=True); shutil.copytree(keep_first, folder)
        code, message = wait(fork(lambda: limited(folder, max(int(share * size), 8192)))), (folder / "died").read_text()
        left = sorted(p.name for p in (folder / "scratch").iterdir() if "step-" in p.name)
        found.append({"limit": int(share * size), "exit": code, "left": left, "message": message.replace(str(folder), "run")})
        assert code != 0 and left == ["step-0000020"] and damage(folder / "scratch/step-0000020") is None, found[-1]
        assert "File too large" in message and "it needs" in message, found[-1]
    record("disk_limit", found)


def test_a_disk_that_is_full(place):
    "A file system too small for a checkpoint: refused before a byte is written, with the bytes that are needed."
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mkdir -p "$0" && mount -t tmpfs -o size=24k tmpfs "$0" && exec "$@"', str(place / "small")]
    if subprocess.run([*mount, "true"], capture_output=True).returncode: pytest.skip("no right to mount a file system")
    done = subprocess.run([*mount, sys.executable, str(Path(__file__).with_name("trainers.py")), json.dumps([["ar", str(place / "small"), {}]])], capture_output=True, text=True)
    assert done.returncode != 0 and "No space left on device" in done.stderr and "it needs" in done.stderr, done.stderr[-500:]
    record("disk_full", {"exit": done.returncode, "message": done.stderr.strip().split("\n")[-1].replace(str(place), "run")})


def inject(where, value, model):
    "Make one number of a pass `value`; what to undo afterwards."
    if where == "gradient":
        parameter = next(p for p in model.parameters() if p.requires_grad)
        return parameter.register_hook(lambda grad: grad.index_fill(0, torch.tensor([0]), value)).remove
    encoder = model.vae.encoder if isinstance(model, ColaDLM) else None
    d = encoder.config.d_latent if encoder else 0
    if where == "log-variance": return encoder.head.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor([d]), value)).remove
    before = vae.Posterior.at
    def broken(self, noise): return before(self, noise).index_fill(-1, torch.tensor([0]), value)
    vae.Posterior.at = broken
    return lambda: setattr(vae.Posterior, "at", before)


CASES = [(kind, where, value) for kind in KINDS for where in (("loss", "gradient", "latent", "log-variance") if kind in ("vae", "prior") else ("loss", "gradient"))
         for value in ("nan", "inf")]


@pytest.mark.parametrize("kind,where,value", CASES)
def test_a_value_that_is_not_finite_stops_before_the_update(place, monkeypatch, kind, where, value):
    folder, kept, original = place / f"{kind}-{where}-{value}", {}, loop.train_step
    def step(objective, ids, *rest):
        if rest[2][-1] != 7: return original(objective, ids, *rest)
        kept["before"], kept["ids"] = {k: v.clone() for k, v in objective.state_dict().items()}, ids.tolist()
        kept["model"] = objective
        if where == "loss":
            inner = objective.loss_fn
            objective.loss_fn = lambda *args: (lambda loss: loss._replace(total=loss.total * float(value)))(inner(*args))
            undo = lambda: None
        else: undo = inject(where, float(value), objective.model)
        try: return original(objective, ids, *rest)
        finally: undo()
    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(FloatingPointError, match="at step 7") as caught: start(kind, folder)
    after = kept["model"].state_dict()
    assert all(torch.equal(after[k], v) for k, v in kept["before"].items())
    dump = json.loads((folder / "scratch/not-finite-0000007.json").read_text())
    assert (dump["step"], dump["seed"], dump["ids"]) == (7, 0, kept["ids"]) and "not-finite-0000007.json" in str(caught.value)
    record("not_finite", {"kind": kind, "where": where, "value": value, "message": str(caught.value).replace(str(folder), "run")[:160]}, f"{kind}-{where}-{value}")


class Canary:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("target", ["step-0000024/*.safetensors", "step-0000024/state.json", "step-0000024/manifest.json", "optimizers.pt"])
@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.filterwarnings("ignore:checkpoint")
def test_a_pickle_in_a_checkpoint_is_not_run(place, tmp_path, target, sealed):
    "Also where the manifest was made to fit it."
    shutil.copytree(place / "whole/scratch", tmp_path / "scratch")
    file = next(iter(tmp_path.glob(f"scratch/{target}")), tmp_path / "scratch/step-0000024" / target)
    file.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    if sealed and file.name != "manifest.json":
        (tmp_path / "scratch/step-0000024/manifest.json").unlink(); seal(tmp_path / "scratch/step-0000024")
    model = torch.nn.Linear(2, 2)
    try: load_checkpoint(tmp_path / "scratch", model, [])
    except ValueError: pass
    assert not (tmp_path / "canary").exists()


def test_two_hundred_saves_and_resumes_leave_no_memory_behind(tmp_path):
    def soak():
        logging.disable(logging.CRITICAL)   # pytest keeps every message, which would count as growth
        sizes = []
        for cycle in range(200):
            torch.manual_seed(0)
            model = torch.nn.Sequential(*(torch.nn.Linear(128, 128) for _ in range(4)))
            optimizers = [torch.optim.AdamW(model.parameters(), fused=True)]
            state = load_checkpoint(tmp_path / "run", model, optimizers)
            assert (state["step"] if state else 0) == cycle
            model(torch.randn(4, 128)).square().mean().backward(); optimizers[0].step()
            save_checkpoint(tmp_path / "run", cycle + 1, model, optimizers, {"rows": []})
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
        (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    if not Path("/proc/self/statm").exists(): pytest.skip("memory is read from /proc")
    assert wait(fork(soak)) == 0
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    growth = sizes[-1] / sizes[20] - 1
    record("soak", {"cycles": len(sizes), "growth": growth, "megabytes": [round(s / 2**20, 1) for s in sizes]})
    assert growth < 0.05, growth
