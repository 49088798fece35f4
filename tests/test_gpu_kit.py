"The kit for a machine with a graphics card: a dry run on the CPU, what it says of failures, and how results come home."
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from colanb.lab import gpu
from colanb.config import load_profile
from colanb.evidence.store import FIELDS, run_text
from colanb.release.conformance import TOLERANCE
from colanb.text.corpus import prepare
from colanb.learn.train import train_vae

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    "What `make gpu-pack` brings, in small: recorded outputs, a corpus, the VAE trained on it."
    folder = tmp_path_factory.mktemp("pack")
    for name in ("released_layout", "other_branches"): shutil.copytree(ROOT / "tests/fixtures" / name, folder / "fixtures" / name)
    (folder / "texts").mkdir()
    for i in range(24): (folder / f"texts/{i}.txt").write_text(f"The {i}th fox saw a hen, and the hen saw the {i}th fox. " * 8)
    run = load_profile(name="english").run("english")
    data = run.data.replace(path=str(folder / "texts"), validation=0.2, test=0.1, vocab_size=280, seq_len=64)
    corpus = prepare(data, folder / "tokens/english")
    prepare(data.replace(seq_len=128), folder / "tokens/short")
    stage = run.stage1.replace(steps=2, batch_size=2, warmup=0, eval_every=2, save_every=2)
    train_vae(run.replace(data=data, stage1=stage), corpus, folder / "vaes/english/0", seed=0, scratch=folder / "scratch")
    for path in (folder / "tokens").glob("*/*.arrow"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return folder


def kit(pack, out, parts, **more):
    "Run .ci/gpu as a dry run; annotations are not checked in its dozen processes, where that takes longer than the work: the notebook does it."
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": "", "GPU_TINY": "1", "GPU_SECONDS": "3000", "COLANB_TYPECHECK": "0", "GPU_PACK": str(pack), "OUT": str(out), "GPU_PARTS": parts, **more}
    return subprocess.run([ROOT / ".ci/gpu"], env=environment, capture_output=True, text=True)


def merge(folder, place):
    "Run .ci/gpu-merge into another place."
    command = [sys.executable, ROOT / ".ci/gpu-merge", folder, "--records", place / "records", "--runs", place / "runs", "--store", place / "store"]
    return subprocess.run(command, capture_output=True, text=True)


def test_dry_run_does_every_part_and_is_not_merged(pack, tmp_path):
    groups = ["steps backends", "speed", "generation graphs", "conformance train.english_2 train.short_judge", "campaign", "timed"]
    parts = " ".join(groups).split()
    asked = ",".join(group.replace(" ", "@900+") + "@900" for group in groups)   # a machine may be slower than the default limits allow
    done = kit(pack, tmp_path / "out", asked)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads((tmp_path / "out/results.json").read_text())
    assert set(records) == set(parts)
    for name, record in records.items():
        assert record["part"] == name and record["tiny"] and record["machine"]["device"] == "CPU" and record["seconds"] > 0
        assert gpu.reasons(record) == []
    assert max(records["backends"]["tiles"]["worst"][key] for key in ("output", "gradient")) < TOLERANCE
    assert all(records["conformance"][name]["ok"] for name in ("released_layout", "other_branches"))
    assert max(records["steps"]["compiled"].values()) < TOLERANCE
    assert records["train.english_2"]["steps"] == 6
    units = records["campaign"]["units"] + records["timed"]["units"]
    assert {unit["study"] for unit in records["timed"]["units"]} == {"front"}
    assert len(units) == records["campaign"]["planned"] + records["timed"]["planned"] == len(load_profile(name="english").studies)
    with zipfile.ZipFile(tmp_path / "out/campaign.zip") as packed: assert len(packed.namelist()) == len(units) + 1   # and the index
    assert records["speed"]["training"][0]["mfu"]["median"] > 0 and len(records["generation"]["rows"]) == 14
    assert sum(row["way"].endswith(", graphs") for row in records["generation"]["rows"]) == 6
    assert records["graphs"]["cases"] == 24 and records["graphs"]["worst"]["fp32"] < TOLERANCE
    with zipfile.ZipFile(tmp_path / "out/english_2.zip") as packed: assert {"dit.safetensors", "vae.safetensors", "run.json", "tokenizer.json"} <= set(packed.namelist())
    merged = merge(tmp_path / "out", tmp_path)
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout.count("a dry run, left out") == len(parts) and not list(tmp_path.glob("store/*")) and not list(tmp_path.glob("records/*")) and not list(tmp_path.glob("runs/*"))


def test_a_part_that_fails_and_one_that_is_late_are_reported(tmp_path):
    "Nothing was recorded, so there is nothing to conform to; the other part's process sleeps before it begins."
    (tmp_path / "sitecustomize.py").write_text("import sys, time\nif 'speed@1' in sys.orig_argv: time.sleep(100)\n")
    done = kit(tmp_path, tmp_path / "out", "conformance+speed@1", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "conformance          failed" in done.stdout and "speed@1              out of time" in done.stdout
    assert gpu.reasons(json.loads((tmp_path / "out/results.json").read_text())) == ["no recorded outputs were packed"]


def test_unknown_parts_are_refused_before_anything_runs(tmp_path, capsys):
    done = kit(tmp_path, tmp_path / "out", "backends,stops")
    assert done.returncode == 2 and "colanb.lab.gpu: unknown part 'stops'" in done.stderr
    with pytest.raises(SystemExit, match="2"): gpu.main(["--tiny", "--out", str(tmp_path / "out"), "--parts", "steps@soon"])
    assert "part 'steps@soon'" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_campaign_that_is_ended_keeps_what_it_has(tmp_path, monkeypatch):
    "Units are files of numbers here; the campaign is ended after the second."
    def ended(units, profile, place, workers, seconds, report):
        for i in range(2):
            place.store.mkdir(parents=True, exist_ok=True)
            (place.store / f"{i}.json").write_text("{}")
            report([{"study": "recipes", "index": i} for i in range(i + 1)])
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "run_campaign", ended)
    monkeypatch.setattr(gpu, "_lacking", lambda profile, place, timed: [])
    with pytest.raises(KeyboardInterrupt): gpu.run_one("campaign", gpu.Setup("cpu", True, tmp_path / "pack", tmp_path, 100.0))
    assert len(json.loads((tmp_path / "campaign.json").read_text())["units"]) == 2
    with zipfile.ZipFile(tmp_path / "campaign.zip") as packed: assert sorted(packed.namelist()) == [f"english/{i}.json" for i in range(2)]


def test_records_and_models_of_a_card_come_home(tmp_path):
    machine = {"device": "a card", "driver": "1", "torch": "2"}
    records = {"steps": {"part": "steps", "tiny": False, "seconds": 1.0, "machine": machine}, "train.small": {"tiny": False, "seconds": 2.0, "machine": machine},
               "speed": {"part": "speed", "tiny": True, "seconds": 1.0, "machine": machine}, "train.dry": {"tiny": True, "seconds": 2.0, "machine": machine}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text(json.dumps(records))
    for name in ("small", "dry"):
        with zipfile.ZipFile(tmp_path / f"out/{name}.zip", "w") as packed: packed.writestr("run.json", "{}")
    run = run_text(dict.fromkeys(FIELDS, "") | {"rows": []})
    with zipfile.ZipFile(tmp_path / "out/campaign.zip", "w") as packed:
        for name, text in {"a": run, "b": run, "index": "{}"}.items(): packed.writestr(f"english/{name}.json", text)
    (tmp_path / "store/english").mkdir(parents=True)
    (tmp_path / "store/english/b.json").write_text("was there")
    done = merge(tmp_path / "out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "campaign.zip: 1 new runs of studies, 1 that were there" in done.stdout
    texts = {file.name: file.read_text() for file in (tmp_path / "store/english").iterdir()}
    assert texts == {"a.json": run, "b.json": "was there", "index.json": "{}"}
    assert {path.name: json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()} == {f"{name}.json": records[name] for name in ("steps", "train.small")}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["small"] and (tmp_path / "runs/small/0/run.json").exists()
    assert merge(tmp_path / "none", tmp_path).returncode == 2

    with zipfile.ZipFile(tmp_path / "out/campaign.zip", "w") as packed: packed.writestr("english/c.json", run[:40])
    refused = merge(tmp_path / "out", tmp_path)
    assert refused.returncode == 1 and "english/c.json is damaged" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "store/english/c.json").exists()
    (tmp_path / "out/campaign.zip").unlink()

    records["steps"] |= {"compiled": {"error": "no memory"}}
    (tmp_path / "out/results.json").write_text(json.dumps({"steps": records["steps"]}))
    assert "steps: failed, the earlier record stays: no memory" in merge(tmp_path / "out", tmp_path).stdout
    assert "compiled" not in json.loads((tmp_path / "records/steps.json").read_text())


def test_figure_judges_conformance_by_the_bound_of_a_cpu():
    "The figure's notebook does not import the networks, so its bound is written there."
    [bound] = re.findall(r"\bbound = ([\de.-]+)", (ROOT / "nbs/exp/93_gpu.ipynb").read_text())
    assert float(bound) == TOLERANCE
