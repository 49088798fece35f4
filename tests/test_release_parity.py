"The released format: recorded outputs (our own; the released code's where at hand), and folders that must be refused."
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from colanb.config import DiTConfig, VAEConfig
from colanb.model.dit import DiT
from colanb.release.hub import read_release, write_release
from colanb.model.vae import TextVAE

ROOT = Path(__file__).resolve().parents[1]
OWN, RELEASED = (sorted(path.parent for path in place.glob("*/fixture.json"))
                 for place in (ROOT / "tests/fixtures", ROOT.parent / "shared/official/fixtures"))
FOLDERS = OWN + RELEASED
ONE_EACH = OWN[:1] + RELEASED[:1]   # for what does not depend on the checkpoint


def test_own_recorded_outputs_are_there():
    assert [folder.name for folder in OWN] == ["other_branches", "released_layout"]
    kinds = ".npz", ".json", ".jsonl", ".safetensors"
    kept = [path for path in (ROOT / "tests/fixtures").rglob("*") if path.suffix in kinds]
    assert sum(path.stat().st_size for path in kept) < 400_000


def plain_code():
    "tests/fixtures/plain.py, which made the project's own recorded outputs."
    spec = importlib.util.spec_from_file_location("plain", ROOT / "tests/fixtures/plain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_recorded_outputs_are_those_of_the_plain_code(folder):
    "The project's own come from it; the released code's show that it is right."
    plain, info = plain_code(), json.loads((folder / "fixture.json").read_text())
    arrays = {name: torch.from_numpy(array) for name, array in np.load(folder / "arrays.npz").items()}
    dit, vae, size = plain.DiT(folder / "cola_dit"), plain.VAE(folder / "cola_vae"), info["block_size"]
    parts = lambda name, lengths: arrays[name].split(arrays[lengths].tolist())
    found = {name: [] for name in ("enc_mean", "enc_logvar", "dec_logits_full", "dit_v_full", "tr_v_noisy")}
    for ids, z in zip(parts("tok_ids", "tok_lens"), parts("enc_mean", "latent_lens")):
        for name, values in zip(("enc_mean", "enc_logvar"), vae.encode(ids)): found[name].append(values)
        found["dec_logits_full"].append(vae.decode(z.double()))
    for z, t in zip(parts("dit_x", "dit_lens"), parts("dit_t_token", "dit_lens")):
        found["dit_v_full"].append(dit.velocity(z.double(), t.double(), plain.block_mask(len(z), size)))
    training = [parts(name, "tr_lens") for name in ("tr_z0", "tr_zt", "tr_t_token")]
    for z0, zt, t, own in zip(*training, arrays["tr_block_sizes"].tolist()):
        n, both = len(z0), torch.cat([z0, zt]).double()
        times = torch.cat([torch.zeros(n), t]).double()
        found["tr_v_noisy"].append(dit.velocity(both, times, plain.packed_mask(n, own), torch.arange(n).repeat(2))[n:])
    for name, values in found.items():
        torch.testing.assert_close(torch.cat(values).float(), arrays[name], atol=2e-5, rtol=0, msg=name)
    writer, settings = plain.Writer(dit, vae, info["pad_token_id"]), info["gen"]["rp11"]
    for i, prompt in enumerate(parts("gen_prompt_ids", "gen_prompt_lens")):
        noise, steps = arrays["gen_noise"][:, i], settings["timestep_num"]
        ids, *_ = writer.write(prompt.tolist(), noise, 2, steps, settings["guidance_scale"], 1.1)
        assert ids == arrays["gen_rp11_ids_all"][i, :len(ids)].tolist()


def conformance(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "colanb.release.conformance", folder], capture_output=True, text=True, env=environment)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture(params=ONE_EACH, ids=lambda path: path.name)
def copy(request, tmp_path):
    return Path(shutil.copytree(request.param, tmp_path / "copy", copy_function=shutil.copyfile))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_conformance_command(folder):
    status, lines, message = conformance(folder)
    *arrays, last = lines
    assert status == 0, (message, last)
    assert last["worst_error"] <= 2e-5 and last["mismatched_ids"] == 0 and last["not_compared"] == []
    names = {line["name"] for line in arrays}
    for tag in json.loads((folder / "fixture.json").read_text())["gen"]: assert {f"gen_{tag}_ids_all", f"gen_{tag}_latents"} <= names
    assert {"enc_mean", "dec_logits_full", "dec_logits_cached", "dit_v_full", "dit_v_cached", "dit_v_uncond", "tr_v_noisy", "train_loss",
            "train_grad_norms.txt_in.proj.weight", "seed66_noise", "smp_probs", "smp_greedy"} <= names


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_written_checkpoint_is_the_one_that_was_read(folder, tmp_path):
    write_release(tmp_path, read_release(folder))
    for part in ("cola_dit", "cola_vae"):
        assert (tmp_path / part / "model.safetensors").read_bytes() == (folder / part / "model.safetensors").read_bytes()
        assert json.loads((tmp_path / part / "config.json").read_text()) == json.loads((folder / part / "config.json").read_text())
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads((folder / "tokenizer.json").read_text())


def test_one_changed_weight_is_found(copy):
    path = copy / "cola_vae/model.safetensors"
    tensors = load_file(path)
    tensors["decoder.final_norm.bias"][0] += 1e-2
    save_file(tensors, path, metadata={"format": "pt"})
    status, lines, _ = conformance(copy)
    assert status == 1 and lines[-1]["worst_error"] > 2e-5
    assert "dec_logits_full" in lines[-1]["failed"] and "dit_v_full" not in lines[-1]["failed"]


@pytest.mark.parametrize("part, name, change, message", [
    ("cola_dit", "txt_in.proj.bias", None, "missing: txt_in.proj.bias"),
    ("cola_vae", "decoder.spare", torch.zeros(2), "not expected: decoder.spare"),
    ("cola_vae", "encoder.wte.weight", torch.zeros(3, 64), r"encoder.wte.weight is F32 \(3, 64\), not F32 \({rows}, {dim}\)"),
    ("cola_dit", "txt_out.proj.bias", torch.zeros(8).half(), r"txt_out.proj.bias is F16"),
])
def test_tensors_that_do_not_fit_are_named(copy, part, name, change, message):
    path = copy / part / "model.safetensors"
    tensors = {key: value for key, value in (load_file(path) | {name: change}).items() if value is not None}
    save_file(tensors, path)
    settings = json.loads((copy / "cola_vae/config.json").read_text())
    message = message.format(rows=settings["vocab_size"] + 1, dim=settings["dim"])
    with pytest.raises(ValueError, match=message): read_release(copy)


@pytest.mark.parametrize("part, change, message", [
    ("cola_dit", {"patch_size": 2}, "patch_size=2: only 1"),
    ("cola_dit", {"emb_dim": 32}, "emb_dim=32 must equal txt_dim={txt_dim}"),
    ("cola_dit", {"rope_dim": 20}, "rope_dim=20"),
    ("cola_vae", {"shared_heads_kv": 3}, "shared_heads_kv=3 must divide num_heads={num_heads}"),
    ("cola_vae", {"layer_norm_type": "rms"}, "layer_norm_type='rms'"),
    ("cola_vae", {"act": "relu"}, "activation"),
    ("cola_vae", {"latent_dim": 16}, "differs from dit.d_latent={txt_in_channels}"),
])
def test_settings_that_cannot_be_had_are_refused(copy, part, change, message):
    settings = {}
    for name in ("cola_dit", "cola_vae"): settings |= json.loads((copy / name / "config.json").read_text())
    path = copy / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message.format(**settings)): read_release(copy)


def test_pickles_are_not_read(copy):
    (copy / "cola_dit/model.safetensors").unlink()
    torch.save({}, copy / "cola_dit/pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin are not read"): read_release(copy)


def test_paper_size_has_the_published_counts():
    with torch.device("meta"): dit, vae = DiT(DiTConfig()), TextVAE(VAEConfig())
    assert sum(p.numel() for p in dit.parameters()) == 1_829_875_728
    assert vae.encoder.embedding.weight[:-1].numel() + vae.decoder.head.weight.numel() == 308_054_016
    assert round(sum(p.numel() for n, p in dit.named_parameters() if "modulation" in n) / 1e9, 2) == 0.61
    parts = ("qkv", "attention.out", "mlp")
    assert round(sum(p.numel() for n, p in dit.named_parameters() if "blocks" in n and any(part in n for part in parts)) / 1e9, 3) == 1.208


def test_names_of_special_tokens_in_a_prompt_are_text_unless_the_release_is_asked_for():
    cola, seen = read_release(OWN[0]), []
    encode, pad, unknown = cola.tokenizer.encode, cola.tokenizer.pad_id, cola.tokenizer.encode("[UNK]")[0]
    cola.tokenizer.encode = lambda *asked: seen.append(encode(*asked)) or seen[-1]
    for compat in ("none", "release"): next(cola.sampler(compat=compat, max_new_tokens=4).blocks(["[UNK] [PAD]"], [0]))
    assert seen == [[unknown, unknown], [unknown, pad]]
