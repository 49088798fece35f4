"Wrong parameters and wrong data are refused before anything is trained, by name and with what is allowed; pickles are never run."
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from trainers import record

from colanb.model.folders import load_baseline
from colanb.config import Config, DataConfig, Profile, ROOT, RunConfig, SampleConfig, load_profile, read_params
from colanb.text.corpus import Corpus, prepare
from colanb.text.testbed import Testbed
from colanb.text.tokenizer import Tokenizer
from colanb.model.cola import ColaDLM
from colanb.release.cli import main as generate
from colanb.release.hub import load
from colanb.measure.likelihood import each_draw, iwae_at
from colanb.measure.tasks import load_items
from colanb.learn.saving import save_model
from colanb.learn.train import main
from colanb.model.folders import load_model
from colanb.model.vae import TextVAE

TINY, FOUND = read_params()["tiny"], []

# where in the active profile, the value put there, what the message must say
PARAMETERS = [
    ("seeds", [], ("seeds", "at least")), ("seeds", ["one"], ("seeds", "integer")), ("workers", 0, ("workers", ">= 1")), ("main", "huge", ("main='huge'", "choose from study, tiny")),
    ("wrokers", 2, ("wrokers", "did you mean 'workers'")), ("slugs", ["rq7"], ("slugs='rq7'", "choose from")), ("studied", ["small"], ("studied='small'", "tiny")), ("sampled", "sweeps", ("sampled='sweeps'", "runs, sampling")),
    ("corpora.tiny.source", "web", ("corpora.tiny.source='web'", "testbed, text, hf")), ("corpora.tiny.level", "giant", ("level='giant'", "micro, long, tiny, small, base")),
    ("corpora.tiny.seq_len", 1, ("seq_len=1", "> 1")), ("corpora.tiny.seq_len", 98, ("data.seq_len=98", "patch_size*block_size=4")), ("corpora.tiny.packing", "loose", ("packing='loose'", "whole, split")),
    ("corpora.tiny.story_fraction", 1.5, ("story_fraction=1.5", "<= 1")), ("corpora.tiny.documents", 0, ("documents=0", "> 0")), ("corpora.tiny.source", "text", ("data.path is empty", "folder, file or glob")),
    ("corpora.tiny.source", "hf", ("data.dataset is empty", "name")), ("vaes.tiny.corpus", "books", ("vaes.tiny.corpus='books'", "choose from")), ("priors.tiny.vae", "other", ("priors.tiny.vae='other'", "choose from tiny")),
    ("priors.more", {"corpus": "tiny"}, ("priors.more", "choose from")), ("rivals", {"more": {"corpus": "tiny"}}, ("rivals.more", "choose from")),
    ("unified", {"more": {"rules": "faces", "arm": "unified"}}, ("unified.more.rules='faces'", "unified, unified_digits")),
    ("runs.tiny.vae.d_latent", 8, ("vae.d_latent=8", "dit.d_latent=16")), ("runs.tiny.vae.d_latent", 2, ("vae.d_latent=2", "3 or more")), ("runs.tiny.vae.patch_size", 0, ("vae.patch_size=0", ">= 1")), ("runs.tiny.vae.heads", 5, ("vae.width=96", "heads=5")),
    ("runs.tiny.vae.activation", "relu", ("activation='relu'", "swiglu, silu, gelu")), ("runs.tiny.vae.ffn_dim", 255, ("ffn_dim=255", "even")), ("runs.tiny.vae.logsnr", "high", ("logsnr='high'", "number")),
    ("runs.tiny.dit.block_size", 7, ("seq_len=96", "patch_size*block_size=7")), ("runs.tiny.dit.rope_dim", 33, ("rope_dim=33", "even")), ("runs.tiny.dit.layers", -1, ("layers=-1", ">= 1")),
    ("runs.tiny.dit.prediction", "noise", ("prediction='noise'", "velocity, z0")), ("runs.tiny.dit.bloc_size", 4, ("bloc_size", "did you mean 'block_size'")),
    ("runs.tiny.flow.scale", 0, ("flow.scale=0", "> 0")), ("runs.tiny.flow.mask_ratio", 1, ("mask_ratio=1", "> 0 and < 1")), ("runs.tiny.flow.schedule", "cosine", ("schedule='cosine'", "logit_normal, uniform")),
    ("runs.tiny.flow.beta", -0.1, ("beta=-0.1", ">= 0")), ("runs.tiny.flow.lambda_maks", 1, ("lambda_maks", "did you mean 'lambda_mask'")),
    ("runs.tiny.stage1.steps", 0, ("stage1.steps=0", ">= 1")), ("runs.tiny.stage2.strategy", "frozen", ("strategy='frozen'", "fixed, joint, scratch, interval")), ("runs.tiny.stage2.lr", "1e-3x", ("lr='1e-3x'", "> 0")),
    ("runs.tiny.stage2.optimizer", "adam", ("optimizer='adam'", "adamw, muon")), ("runs.tiny.stage2.precision", "fp16", ("precision='fp16'", "fp32, bf16")), ("runs.tiny.stage2.accumulate", 0, ("accumulate=0", ">= 1")),
    ("runs.tiny.stage2.keep_latest", 0, ("keep_latest=0", ">= 1")), ("runs.tiny.sample.guidance_scale", -1, ("guidance_scale=-1", ">= 0")), ("runs.tiny.sample.top_p", 0, ("top_p=0", "> 0 and <= 1")),
    ("runs.tiny.sample.first_block", "pad", ("first_block='pad'", "clean, repaint, left_pad, right_pad")), ("runs.tiny.sample.steps", 2.5, ("sample.steps=2.5", "integer")),
    ("tasks.names", ["lambda"], ("tasks.names", "lambada")), ("tasks.items", 0, ("items=0", ">= 1")), ("sweeps.sampling.settings", [{"guidance": 3}], ("sweeps.sampling.settings.0.guidance", "guidance_scale")),
    ("sweeps.likelihood.settings", [{"method": "heun"}], ("method='heun'", "dopri5, euler, midpoint, rk4")), ("sweeps.likelihood.settings", [{"rtol": 0}], ("rtol=0", "> 0")),
    ("studies.rq1.base", "tyni", ("'tyni'", "choose from")), ("studies.rq1.corpus", "wiki", ("studies.rq1.corpus='wiki'", "choose from")),
    ("studies.rq1.grid", [{"flow.lok": [1.0]}], ("flow.lok", "did you mean 'loc'")), ("studies.rq1.probes", ["rank"], ("probes", "ranked")), ("studies.rq3_block.checkpoints", [333], ("checkpoints=[333]", "multiples of stage2.eval_every")),
    ("studies.rq4.grid", [{"baseline.family": ["gpt"]}], ("baseline.family='gpt'", "ar, llada, plaid")),
]


@pytest.fixture(scope="module", autouse=True)
def recorded():
    "Keep what was refused, when all tests are done."
    yield
    record("bad_input", FOUND)


def changed(place, value):
    "The profile `tiny` with one entry changed."
    profile, *path, last = [deepcopy(TINY), *place.split(".")]
    at = profile
    for step in path: at = at[step]
    at[last] = value
    return profile


def refused(name, call, said):
    "The call must raise `ValueError` without a backward pass, and say everything in `said`."
    began = time.monotonic()
    with pytest.raises(ValueError) as caught, patch("torch.Tensor.backward", side_effect=AssertionError("it trains")): call()
    seconds, message = time.monotonic() - began, str(caught.value)
    assert all(s in message for s in said), message
    FOUND.append({"input": name, "message": message.split("\n")[0].replace(str(ROOT), "")[:220], "seconds": round(seconds, 3)})


@pytest.mark.parametrize("place,value,said", PARAMETERS, ids=[f"{p}={v}"[:60] for p, v, _ in PARAMETERS])
def test_wrong_parameters(tmp_path, place, value, said):
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({"profile": changed(place, value)}))
    refused(f"{place}={value!r}", lambda: load_profile(path), said)


FILES = {"a: 1\na: 2\n": "duplicate", "a:\t1\n\tb: 2\n": "not readable", "tiny: &tiny {name: x}\nprofile: *huge\n": "huge", "- a\n- b\n": "profiles under names", "tiny: {name: tiny}\n": "no profile 'profile'",
         "profile: !!python/object/apply:os.system [touch CANARY]\n": "not readable", "profile: text\n": "profile"}


@pytest.mark.parametrize("text,said", FILES.items())
def test_wrong_parameter_files(tmp_path, text, said):
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("CANARY", str(tmp_path / "canary")))
    refused(f"params.yaml: {text!r}", lambda: load_profile(path), (said,))
    assert not (tmp_path / "canary").exists()


def test_an_unknown_profile(): refused("load_profile(name='huge')", lambda: load_profile(name="huge"), ("'huge'", "tiny"))


def test_wrong_arguments(capsys):
    vae = load_profile(name="tiny").run("tiny").vae.replace(vocab_size=20)
    refused("K=0", lambda: each_draw(lambda rows, _: (rows,), range(2), 0, torch.Generator(), 5, False, ""), ("samples=0", ">= 1"))
    refused("chunk=0", lambda: each_draw(lambda rows, _: (rows,), range(2), 5, torch.Generator(), 0, False, ""), ("chunk=0", ">= 1"))
    refused("iwae_at(size=0)", lambda: iwae_at(torch.zeros(2, 4), 0), ("size=0", "1..4"))
    refused("patch_size=2, 5 tokens", lambda: TextVAE(vae.replace(patch_size=2)).encode(torch.zeros(1, 5, dtype=torch.long)), ("5 tokens", "patch_size=2"))
    refused("steps=0", lambda: SampleConfig().replace(steps=0), ("steps=0", ">= 1"))
    refused("testbed with named splits", lambda: DataConfig(test=["a"]), ("data.test", "share"))
    refused("shares of 1 together", lambda: DataConfig(source="text", path="x", validation=0.5, test=0.5), ("data.validation=0.5", "data.test=0.5", "leave a share"))
    for split in (Testbed("micro").documents, partial(Testbed("micro").items, "lambada")): refused(f"{split} of an unknown split", lambda: split(1, 0, split="dev"), ("split='dev'", "test", "train", "validation"))
    refused("a share of 1", lambda: DataConfig(source="text", path="x", validation=1.0), ("data.validation=1.0", "< 1"))
    for words, said in ((["run=huge", "profile=tiny"], "choose from ['study', 'tiny']"), (["run=tiny", "profile=tiny", "stage=3"], "['prior', 'vae']"), (["run=tiny", "profile=huge"], "choose from"), (["runn=tiny"], "usage"), (["run=tiny", "seed=x"], "usage")):
        assert main(words) in (1, 2) and said in capsys.readouterr().err
        FOUND.append({"input": f"colanb.learn.train {' '.join(words)}", "message": said, "seconds": 0})


COMMANDS = [   # command lines, and what they must print
    ("run nbs/exp/51_train_vae.ipynb X.ipynb run=tyni", "tyni"), ("run nbs/exp/51_train_vae.ipynb X.ipynb rnu=tiny", "no parameter rnu"), ("run nbs/exp/51_train_vae.ipynb X.ipynb seed=one", "seed='one'"),
    ("config huge", "choose from"), ("release.cli --guidance -1", "guidance"), ("release.cli --steps 0", "steps")]


@pytest.mark.parametrize("command,said", COMMANDS)
def test_command_lines(tmp_path, command, said):
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *f"colanb.{command}".replace("X.ipynb", str(tmp_path / "x.ipynb")).split()], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode and said in done.stderr, done.stderr[-600:]
    FOUND.append({"input": f"python -m colanb.{command}", "message": done.stderr.strip().split("\n")[-1][-220:], "seconds": round(time.monotonic() - began, 2)})


# data: a file, the line that is wrong in it, and the rule
GOOD = {"txt": "once upon a time", "jsonl": '{"text": "once upon a time"}'}
BAD_LINES = {"malformed JSON": (b'{"text": "once', "malformed JSON"), "wrong type": (b'{"text": 7}', "must be a string, not int"), "no text": (b'{"words": "a"}', "no field 'text'"), "a list": (b'["a"]', "must be an object"),
             "invalid UTF-8": (b'{"text": "a\xff"}', "invalid UTF-8"), "NUL": (b'{"text": "a\\u0000b"}', "NUL"), "lone surrogate": (b'{"text": "\\ud800"}', "surrogate"), "empty": (b'{"text": "  "}', "empty text")}


@pytest.mark.parametrize("name", BAD_LINES)
def test_one_line_in_a_hundred_is_wrong(tmp_path, name):
    line, rule = BAD_LINES[name]
    lines = [line if i % 100 == 57 else json.dumps({"text": f"story {i} of a fox and a hen"}).encode() for i in range(300)]
    (tmp_path / "corpus.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    config = DataConfig(source="text", path=str(tmp_path / "corpus.jsonl"), vocab_size=40, seq_len=16, validation=0.1, test=0.1)
    refused(f"jsonl, {name}", lambda: prepare(config, tmp_path / "strict"), ("corpus.jsonl, line 58", rule))
    manifest = prepare(config.replace(on_error="skip"), tmp_path / "skip").manifest
    assert (manifest["read"], manifest["kept"], sum(manifest["skipped"].values())) == (300, 297, 3) and any(rule in r for r in manifest["skipped"])


@pytest.mark.parametrize("name,content,rule", [("binary.txt", bytes(range(128, 256)) * 9, "line 1: invalid UTF-8"), ("nul.txt", b"one\ntwo \0 three", "line 2: NUL"), ("empty.txt", b"", "empty text"), ("empty.jsonl", b"", "empty text"),
                                               ("binary.jsonl", b"\x89PNG\r\n\x1a\n" * 5, "line 1")])
def test_files_that_are_no_text(tmp_path, name, content, rule):
    for i in range(20): (tmp_path / f"good{i}.txt").write_text(f"story {i} of a fox and a hen")
    (tmp_path / name).write_bytes(content)
    config = DataConfig(source="text", path=str(tmp_path), vocab_size=40, seq_len=16, validation=0.1, test=0.1)
    refused(name, lambda: prepare(config, tmp_path / "strict"), (name, rule))
    manifest = prepare(config.replace(on_error="skip"), tmp_path / "skip").manifest
    assert manifest["kept"] == 20 and manifest["read"] == 20 + sum(manifest["skipped"].values()) and manifest["skipped"]


def test_odd_but_good_text_is_kept(tmp_path):
    "A line of ten megabytes, Windows line ends, a byte-order mark."
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "fox hen " * 1_250_000}) + "\n")
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbffox\r\nhen\r\n")
    (tmp_path / "plain.txt").write_text("hen fox")
    corpus = prepare(DataConfig(source="text", path=str(tmp_path), vocab_size=20, seq_len=512, validation=["plain"], test=["windows"]), tmp_path / "out")
    assert corpus.manifest["kept"] == 3 and not corpus.manifest["skipped"] and corpus.split("train").size >= 2_500_000
    assert corpus.tokenizer.decode(corpus.split("test")[0]) == "fox\nhen\n"


def good_files(place, count=20):
    place.mkdir()
    for i in range(count): (place / f"good{i}.txt").write_text(f"story {i} of a fox and a hen")
    return DataConfig(source="text", path=str(place), vocab_size=40, seq_len=16, validation=0.1, test=0.1)


@pytest.mark.parametrize("shards", [None, 5])
def test_a_file_that_cannot_be_read(tmp_path, shards):
    "A link to nowhere, a cut-off download: named under `strict`, counted under `skip`."
    config = good_files(tmp_path / "in").replace(shard_sequences=shards)
    for name, content in (("gone.txt", None), ("cut.txt.gz", gzip.compress(b"once upon a time")[:-9]), ("none.jsonl.gz", b"no gzip"), ("gone.jsonl", None)):
        path = tmp_path / "in" / name
        if content is None: path.symlink_to(tmp_path / "nowhere")
        else: path.write_bytes(content)
        refused(name, lambda: prepare(config, tmp_path / "strict"), (name, "file cannot be read"))
        manifest = prepare(config.replace(on_error="skip"), tmp_path / "skip", again=True).manifest
        assert (manifest["kept"], manifest["read"], list(manifest["skipped"])[0][:19]) == (20, 21, "file cannot be read")
        path.unlink()


def test_files_of_other_endings_are_read_or_named(tmp_path):
    config = good_files(tmp_path / "in", 3).replace(validation=["UPPER"], test=["notes", "packed", "rows"])
    (tmp_path / "in/UPPER.TXT").write_text("a fox"); (tmp_path / "in/notes.md").write_text("a hen"); (tmp_path / "in/packed.txt.gz").write_bytes(gzip.compress(b"a mill"))
    (tmp_path / "in/rows.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n  \n'); (tmp_path / "in/a.pdf").write_bytes(b"%PDF"); (tmp_path / "in/LICENSE").write_text("free")
    with pytest.warns(UserWarning, match="not read: LICENSE, a.pdf; files that are read end in .txt, .md or .jsonl"): manifest = prepare(config, tmp_path / "out").manifest
    assert (manifest["kept"], manifest["ignored_files"], manifest["splits"]["test"]["documents"], manifest["splits"]["validation"]["documents"]) == (8, 2, 4, 1)


def test_missed_settings_are_said_with_both_numbers(tmp_path):
    config = good_files(tmp_path / "in")
    with pytest.warns(UserWarning, match="data.vocab_size=50000: the training text gives [0-9]+ entries only"): prepare(config.replace(vocab_size=50_000), tmp_path / "large")
    with pytest.warns(UserWarning, match="data.vocab_size=5000: the training text gives [0-9]+ entries only"): prepare(config.replace(tokenizer="bpe", vocab_size=5000), tmp_path / "bpe")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"tale {i} " * (1 + 99 * (i == 5))}) for i in range(10)))
    rows = DataConfig(source="hf", dataset="json", data_files=str(tmp_path / "rows.jsonl"), seq_len=16, validation=0.1, test=0.1)
    with pytest.warns(UserWarning, match=r"data.validation=0.1: the split has a share of 0.\d+ \(\d+ of 763 characters\)"): prepare(rows, tmp_path / "rows")


def test_a_hub_out_of_reach(tmp_path, monkeypatch):
    "Without a network, and a name that is neither a file nor on the hub."
    def offline(*names, **more): raise ConnectionError("Couldn't reach the Hub\nand more lines")
    monkeypatch.setattr("datasets.load_dataset_builder", offline); monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    refused("a data set without a network", lambda: prepare(DataConfig(source="hf", dataset="someone/tales"), tmp_path / "out"), ("data.dataset", "'someone/tales'", "Couldn't reach the Hub"))
    config = good_files(tmp_path / "in")
    refused("tokenizer='gpt2'", lambda: prepare(config.replace(tokenizer="gpt2"), tmp_path / "out"), ("data.tokenizer='gpt2'", "'word', 'bpe'", "no such file", "Couldn't reach the Hub"))
    refused("tokenizer='none.json'", lambda: prepare(config.replace(tokenizer="none.json"), tmp_path / "out"), ("data.tokenizer='none.json'", "'word', 'bpe'", "no such file"))
    refused("dataset='json' alone", lambda: DataConfig(source="hf", dataset="json"), ("data.data_files is empty", "'json'"))


def test_missing_places(tmp_path):
    refused("a missing folder", lambda: prepare(DataConfig(source="text", path=str(tmp_path / "nowhere")), tmp_path / "out"), ("data.path", "nowhere"))
    (tmp_path / "other").mkdir(); (tmp_path / "other/picture.png").write_bytes(b"\x89PNG")
    refused("a folder without text", lambda: prepare(DataConfig(source="text", path=str(tmp_path / "other")), tmp_path / "out"), ("data.path", ".txt, .md or .jsonl"))
    for call in (load_model, load_baseline, Corpus.load): refused(f"{call.__name__} of a missing folder", lambda: call(tmp_path / "nowhere"), ("nowhere",))


class Canary:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A model folder and a corpus, untrained but whole."
    place = tmp_path_factory.mktemp("whole")
    corpus = prepare(DataConfig(level="micro", documents=60, seq_len=32, packing="whole"), place / "tokens")
    run = load_profile(name="smoke").run("smoke").replace(data=DataConfig(level="micro", documents=60, seq_len=32, packing="whole"))
    run = run.replace(vae=run.vae.replace(vocab_size=corpus.tokenizer.vocab_size))
    save_model(place / "model", ColaDLM(run.vae, run.dit), run, corpus.tokenizer)
    return place


PICKLES = [("model", name, load_model) for name in ("vae.safetensors", "dit.safetensors", "run.json", "tokenizer.json")] + [("model", "baseline.safetensors", load_baseline)] + [
    ("tokens", name, lambda place: Corpus.load(place).split("train")) for name in ("train.arrow", "manifest.json", "tokenizer.json")] + [
    ("model", "vae.safetensors", lambda place: load(str(place))), ("model", "pytorch_model.bin", lambda place: load(str(place))), ("tokens", "tokenizer.json", lambda place: Tokenizer.load(place / "tokenizer.json")),
    ("tokens", "items.jsonl", lambda place: load_items(place / "items.jsonl"))]


@pytest.mark.parametrize("folder,name,opened", PICKLES, ids=[f"{f}/{n}-{i}" for i, (f, n, _) in enumerate(PICKLES)])
def test_pickles_are_not_run(trained, tmp_path, folder, name, opened):
    shutil.copytree(trained / folder, tmp_path / folder)
    if name.endswith(".bin"): [p.unlink() for p in (tmp_path / folder).glob("*.safetensors")]
    (tmp_path / folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(Exception): opened(tmp_path / folder)
    assert not (tmp_path / "canary").exists()
    pickle.loads((tmp_path / folder / name).read_bytes()); assert (tmp_path / "canary").exists()   # it would have been seen
    FOUND.append({"input": f"a pickle as {folder}/{name}", "message": "refused", "seconds": 0})


def records(base=Config):
    return [base, *(record for child in base.__subclasses__() for record in records(child))]


SETTINGS = [record for record in records()[1:] if record.model_config["extra"] == "forbid"]   # lines of a file keep more


@pytest.mark.parametrize("record", SETTINGS, ids=lambda record: record.__name__)
def test_wrong_names_and_numbers_through_python(record):
    "A misspelt name is answered as in a file, by each record; NaN and infinity are no setting."
    first = next(iter(record.model_fields))
    refused(f"{record.__name__}({first[:-1]}=...)", lambda: record(**{first[:-1]: 1}), (f"{first[:-1]}: no such name; did you mean {first!r}?", "choose from"))
    numbers = [name for name, field in record.model_fields.items() if "float" in str(field.annotation)]
    for name in numbers:
        for number in (float("nan"), float("inf"), -float("inf")): refused(f"{name}={number}", lambda: record(**{name: number}), (name, str(number)))


def cut_off(path): path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("name,harm", [("dit.safetensors", Path.unlink), ("dit.safetensors", cut_off), ("vae.safetensors", Path.unlink), ("vae.safetensors", cut_off), ("run.json", cut_off), ("tokenizer.json", cut_off)])
def test_generate_names_the_broken_file_of_a_model(trained, tmp_path, capsys, name, harm):
    shutil.copytree(trained / "model", tmp_path / "model")
    harm(tmp_path / "model" / name)
    assert generate(["--model", str(tmp_path / "model"), "--tokens", "4"]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("colanb-generate: ") and name in line, line


def test_every_part_of_a_profile_is_tried():
    "Each field of a profile that can be wrong, and each group of settings of a run, has a wrong value above."
    tried = [place.split(".") for place, _, _ in PARAMETERS]
    free = {"name", "figures"}                                # any text
    assert {words[0] for words in tried} >= set(Profile.model_fields) - free
    groups = {name for name, field in RunConfig.model_fields.items() if isinstance(field.default, Config)} - {"data"}    # data: `corpora`
    assert {words[2] for words in tried if words[0] == "runs"} == groups
