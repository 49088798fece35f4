"""The five trainers at their smallest, for tests that stop, break, resume or spread a training.

As a script (`python trainers.py JOBS`, alone or under torchrun) it trains some of them, one after another: a start of many
processes takes longer than a training. JOBS is a JSON list of [kind, folder, changes]."""
import hashlib
import json
import os
import sys
import traceback
from pathlib import Path

from safetensors.torch import load_file

from colanb.config import ROOT, DataConfig, RunConfig
from colanb.learn import train
from colanb.learn.parallel import processes
from colanb.text.corpus import prepare

KINDS = ("vae", "prior", "ar", "llada", "plaid")
DATA = DataConfig(level="micro", documents=300, seq_len=32, packing="whole")
CLOCKS = ["seconds", "tokens_per_second"]   # columns of a log that no two runs share


def run_of(kind, **changes):
    "A run of 24 steps with a checkpoint every 5."
    stage = dict(steps=24, batch_size=8, optimizer="muon", lr=3e-3, warmup=2, lr_end=0.0, log_every=3, eval_every=8, save_every=5, strategy="joint") | changes
    own = {} if kind == "ar" else {"clean_prefix": 0.5}
    baseline = dict(family=kind, width=16, heads=2, layers=2, intermediate=24, **own) if kind in ("ar", "llada", "plaid") else None
    return RunConfig(name=kind, data=DATA, baseline=baseline, stage1=stage, stage2=stage,
                     vae=dict(d_latent=8, width=16, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=32),
                     dit=dict(d_latent=8, width=32, heads=2, head_dim=16, layers=2, rope_dim=16, block_size=4), flow=dict(clean_prefix=0.5, lambda_mask=0.3))


def start(kind, folder, device="cpu", again=False, **changes):
    "Train, or go on; checkpoints lie in `folder/scratch`, the model in `folder/KIND`."
    folder, run = Path(folder), run_of(kind, **changes)
    corpus, places = prepare(DATA, folder.parent / "tokens"), dict(seed=0, device=device, scratch=folder / "scratch", again=again)
    if kind == "vae": return train.train_vae(run, corpus, folder / kind, **places)
    if kind == "prior": return train.train_prior(run, corpus, folder.parent / "stage1", folder / kind, **places)
    return train.train_baseline(run, corpus, folder / kind, **places)


def ready(place):
    "Everything that the five share: the corpus and a stage-1 model, in `place`."
    corpus = prepare(DATA, place / "tokens")
    if not (place / "stage1").exists(): train.train_vae(run_of("vae"), corpus, place / "stage1", seed=0, device="cpu", scratch=place / "scratch")
    return place


def keep_checkpoints():
    "Let a finished training leave its checkpoints, so that they can be compared."
    train.shutil = type("Kept", (), {"rmtree": staticmethod(lambda *args, **kwargs: None)})


def state_of(folder):
    "Hashes of all that a finished training left: every tensor of its last checkpoint (weights, optimisers, random state), step, and log without clocks."
    last = max((folder / "scratch").glob("step-*"))
    tensors = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for file in sorted(last.glob("*.safetensors")) for name, t in load_file(file).items()}
    state = json.loads((last / "state.json").read_text())
    rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in state["rows"]]
    return {"tensors": tensors, "step": state["step"], "rows": rows, "window": state["window"]}


def record(name, found, part=None):
    "Keep what a test measured (or one of its parts) for the figure, if COLANB_RECORD asks for it."
    if "COLANB_RECORD" not in os.environ: return
    path = ROOT / "data/results/reliability" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if part is not None: found = (json.loads(path.read_text()) if path.exists() else {}) | {part: found}
    path.write_text(json.dumps(found, indent=1) + "\n")


def fork(work):
    "Run `work` in a process of its own, which has nothing but what was imported; its id."
    if pid := os.fork(): return pid
    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1); os.dup2(quiet, 2)
        work(); code = 0
    except SystemExit as error: code = error.code
    except BaseException as error: Path(os.environ.get("COLANB_TRACE", os.devnull)).write_text("".join(traceback.format_exception(error)))
    finally: os._exit(code)


def wait(pid):
    "Exit code of a forked process, minus the signal if one ended it."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    keep_checkpoints()
    with processes() as device:
        for kind, folder, changes in json.loads(sys.argv[1]): start(kind, folder, device, **changes)
