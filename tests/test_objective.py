"The losses of both stages against a plain reference: one sequence, block and latent after the other, in fp64."
import math
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, Normal, kl_divergence

from colanb.learn import train
from colanb.text.corpus import Corpus
from colanb.text.tokenizer import word_tokenizer
from colanb.config import DiTConfig, FlowConfig, RunConfig, VAEConfig, stream
from colanb.model.dit import DiT
from colanb.learn.losses import StepContext, masked_copy, patch_valid, prior_terms, stage1_loss, stage2_loss, with_filler
from colanb.learn.path import clean_prefix, interpolate, path_logsnr, sample_time, time_of_logsnr
from colanb.model.cola import ColaDLM
from colanb.release.hub import with_shared_weights
from colanb.model.vae import Encoder, Posterior, TextVAE, vae_logsnr
from precision import assert_same_total, double_precision, gradients, redrawn

VAE = dict(vocab_size=11, d_latent=3, width=12, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=12)
DIT = dict(d_latent=3, width=12, heads=2, head_dim=6, layers=1, mlp_ratio=2, rope_dim=4, block_size=2, time_dim=8,
           zero_init=False)
LATENTS = 6
GAUGES = {"mean_sd", "posterior_sd", "logsnr"}
PARTS = ("reconstruction", "accuracy", "kl", "negative_entropy", "mask", "reference_kl")
WEIGHTS = dict(beta=0.3, lambda_mask=0.7, mask_ratio=0.4, lambda_vae=0.6, lambda_fm=1.7, lambda_ref=0.45)


@pytest.fixture(autouse=True)
def double():
    with double_precision(): yield


# ---- the reference: what the equations say, in loops ----

def block_causal_mask(n, size):
    "Who sees whom, by the words: a latent sees its own block and those before."
    return torch.tensor([[size is None or column // size <= row // size for column in range(n)] for row in range(n)])


def encoder_output(encoder, ids):
    "The encoder's last linear map for one sequence, before it is read as a Gaussian."
    p, weight, patches = encoder.config.patch_size, encoder.patch.weight, []
    for start in range(0, len(ids), p):
        tokens = [weight[:, :, s] @ encoder.embedding.weight[ids[start + s]] for s in range(p)]
        patches.append(sum(tokens) + encoder.patch.bias)
    n = len(patches)
    x = encoder.trunk(torch.stack(patches)[None], torch.arange(n), block_causal_mask(n, encoder.config.block_size))[0]
    return x @ encoder.head.weight.T + (0 if encoder.head.bias is None else encoder.head.bias)


def read_mean(config, output):
    "Posterior mean, before scaling and shift, in the encoder's output for one sequence."
    mean = output[:, :config.d_latent]
    if not config.normalise_mean and config.variational: return mean
    rest = mean - mean.mean(1, keepdim=True)
    return rest / torch.sqrt((rest**2).mean(1, keepdim=True) + config.norm_eps)


def encoder_gaussian(encoder, ids):
    "q(z0|x) of one sequence as `torch.distributions` has it; under a fixed logSNR the power of the means is 1."
    config, output = encoder.config, encoder_output(encoder, ids)
    mean = read_mean(config, output)
    if not config.variational: sigma = torch.full_like(mean, math.exp(-15))
    elif config.logsnr is None: sigma = torch.exp(0.5 * output[:, config.d_latent:].clamp(-30, 20))
    else: sigma = torch.full_like(mean, math.exp(-config.logsnr / 2))
    return Normal(mean, sigma)


def scaled(q, config):
    return Normal((q.mean - config.shifting_factor) * config.scaling_factor, q.stddev * config.scaling_factor)


def token_distribution(vae, z):
    "p(x|z0) of one sequence of latents."
    config, decoder, n = vae.config, vae.decoder, len(z)
    x = decoder.input(z / config.scaling_factor + config.shifting_factor)[None]
    x = decoder.unpatch(decoder.trunk(x, torch.arange(n), block_causal_mask(n, config.block_size)))[0]
    p = config.patch_size
    tokens = [x[k, s::p] for k in range(n) for s in range(p)]   # row c*p+s: channel c of token s
    return Categorical(logits=decoder.head(decoder.norm(torch.stack(tokens))))


def reference_times(config, b, k, generator):
    "One time for each block of each sequence."
    count = b * (k if config.time_per == "block" else 1)
    u = torch.rand(count, generator=generator)
    stratum = torch.randperm(count, generator=generator) if config.stratified else None
    times = []
    for i in range(count):
        share = (int(stratum[i]) + u[i].item()) / count if config.stratified else u[i].item()
        share = min(max(share, 1e-6), 1 - 1e-6)
        normal = config.loc + config.scale * stats.norm.ppf(share)
        times.append(share if config.schedule == "uniform" else 1 / (1 + math.exp(-normal)))
    if config.time_per == "sequence": return [[time] * k for time in times]
    return [times[i * k:(i + 1) * k] for i in range(b)]


def reference_held(config, b, k, s, generator):
    "How many latents at the start of each block stay clean."
    if not config.clean_prefix: return [[0] * k for _ in range(b)]
    chosen = torch.rand(b, k, generator=generator)
    length = torch.randint(1, max(s, 2), (b, k), generator=generator)
    held = lambda i, j: min(int(length[i, j]), s - 1) if chosen[i, j] < config.clean_prefix else 0
    return [[held(i, j) for j in range(k)] for i in range(b)]


def reference_velocity(config, raw, zt, t):
    "The network's output as a velocity; `skip` adds E[z1-z0|zt] for unit-variance data and keeps the rest's deviation."
    if not config.skip: return raw
    variance, covariance = (1 - t) ** 2 + t**2, t - (1 - t)      # of zt; of z1-z0 with zt
    return covariance / variance * zt + math.sqrt(2 - covariance**2 / variance) * raw


def reference_fm(dit, z0, counts, config, generator, rows):
    "Eq 3.7: every noisy block in a pass of its own behind its clean history."
    (b, n), s, plain = counts.shape, dit.config.block_size, with_shared_weights(dit, prediction="velocity", skip=False)
    k, z1 = n // s, torch.randn(b, n, dit.config.d_latent, generator=generator)
    times, held = reference_times(config, b, k, generator), reference_held(config, b, k, s, generator)
    total, number = torch.zeros(()), 0
    for i, j in product(range(b), range(k)):
        free = [r for r in range(s) if r >= held[i][j] and counts[i, j * s + r]]
        number += len(free)
        if i not in rows: continue
        own = slice(j * s, (j + 1) * s)
        at = torch.tensor([0.0 if r < held[i][j] else times[i][j] for r in range(s)])
        data = z0[i][own].detach() if config.detach_noised else z0[i][own]
        zt = torch.stack([(1 - at[r]) * data[r] + at[r] * z1[i, own][r] for r in range(s)])
        past = z0[i][:own.start].detach()
        raw = plain(torch.cat([past, zt])[None], torch.cat([torch.zeros(len(past)), at])[None])[0, own]
        target = z0[i][own].detach() if config.detach_target else z0[i][own]
        for r in free:
            if dit.config.prediction == "z0": error = raw[r] - target[r]
            else: error = reference_velocity(dit.config, raw[r], zt[r], at[r].item()) - (z1[i, own][r] - target[r])
            total = total + sum(e**2 for e in error) / len(error)
    return total / number


def reference_loss(model, ids, valid, config, generator, stage, train_vae=True, rows=slice(None)):
    "Total and parts of Eq 3.16 (stage 1) or 3.18 (stage 2)."
    vae, p, (b, l) = model.vae, model.vae.config.patch_size, ids.shape
    rows, n, d, tokens, learns = range(b)[rows], l // p, vae.config.d_latent, int(valid.sum()), stage == 1 or train_vae
    counts = torch.tensor([[any(valid[i, k * p:(k + 1) * p].tolist()) for k in range(n)] for i in range(b)])
    masking, hit, masked = bool(config.lambda_mask) and learns, torch.zeros(b, l, dtype=torch.bool), ids.clone()
    if masking: hit = (torch.rand(b, l, generator=generator) < config.mask_ratio) & valid
    for i, j in hit.nonzero().tolist(): masked[i, j] = vae.config.vocab_size
    noise = torch.randn(2 * b if masking else b, n, d, generator=generator)
    parts, z0 = dict.fromkeys(PARTS, torch.zeros(())), {}
    for i in rows:
        q = scaled(encoder_gaussian(vae.encoder, ids[i]), vae.config)
        z0[i] = q.mean + q.stddev * noise[i]
        text = token_distribution(vae, z0[i])
        for j in range(l):
            if not valid[i, j]: continue
            parts["reconstruction"] = parts["reconstruction"] - text.log_prob(ids[i])[j] / tokens
            parts["accuracy"] = parts["accuracy"] + float(text.logits[j].argmax() == ids[i, j]) / tokens
        for k in range(n):
            if not counts[i, k]: continue
            own = Normal(q.mean[k], q.stddev[k])
            parts["kl"] = parts["kl"] + kl_divergence(own, Normal(0.0, 1.0)).sum() / tokens
            parts["negative_entropy"] = parts["negative_entropy"] - own.entropy().sum() / tokens
            if model.reference is None: continue
            with torch.no_grad(): first = scaled(encoder_gaussian(model.reference, ids[i]), vae.config)
            distance = kl_divergence(own, Normal(first.mean[k], first.stddev[k])).sum()
            parts["reference_kl"] = parts["reference_kl"] + distance / tokens
        if not hit.any(): continue
        q = scaled(encoder_gaussian(vae.encoder, masked[i]), vae.config)
        text = token_distribution(vae, q.mean + q.stddev * noise[b + i])
        for j in range(l):
            if hit[i, j]: parts["mask"] = parts["mask"] - text.log_prob(ids[i])[j] / int(hit.sum())
    text = parts["reconstruction"] + config.lambda_mask * parts["mask"]
    if stage == 1: return text + config.beta * parts["kl"], parts
    if not learns: z0 = {i: z.detach() for i, z in z0.items()}
    parts["fm"] = reference_fm(model.dit, z0, counts, config, generator, rows)
    if not learns: return config.lambda_fm * parts["fm"], parts
    total = config.lambda_vae * (text + config.beta * parts["negative_entropy"])
    return total + config.lambda_fm * parts["fm"] + config.lambda_ref * parts["reference_kl"], parts


# ---- models, batches, comparison ----

def make_model(vae={}, dit={}, reference=True):
    vae = VAEConfig(**VAE | vae)
    first = redrawn(Encoder(vae), 3) if reference else None
    return ColaDLM(redrawn(TextVAE(vae), 1), redrawn(DiT(DiTConfig(**DIT | dit)), 2), first)


def make_batch(model, b=4, padding=True):
    "Ids, and which count: the ends of two sequences, one of them inside a patch, and a whole patch do not."
    p = model.vae.config.patch_size
    ids = torch.randint(0, 11, (b, LATENTS * p), generator=stream("ids"))
    valid = torch.ones_like(ids, dtype=torch.bool)
    if padding: valid[1, -p - 1:], valid[2, LATENTS * p // 2:] = False, False
    return ids, valid


def ours(model, ids, valid, config, stage, seed=0, **given):
    loss = stage1_loss if stage == 1 else stage2_loss
    return loss(model, ids, valid, config, stream("loss", seed), **given)


def assert_equals_reference(model, config, stage, batch=None, **given):
    "Total, parts, and the gradient of every parameter."
    ids, valid = batch or make_batch(model)
    found = ours(model, ids, valid, config, stage, **given)
    total, parts = reference_loss(model, ids, valid, config, stream("loss", 0), stage, **given)
    for name in found.parts.keys() & {*parts}:
        torch.testing.assert_close(found.parts[name], parts[name], rtol=1e-10, atol=1e-12, msg=name)
    assert_same_total(model, found.total, total)
    return found


# ---- both stages ----

every_stage = pytest.mark.parametrize(
    "stage, given", [(1, {}), (2, {}), (2, dict(train_vae=False))], ids=["stage 1", "joint", "frozen"])

VAES = {
    "learned variance": {}, "patches of two": dict(patch_size=2), "patches of three": dict(patch_size=3),
    "raw mean": dict(normalise_mean=False), "deterministic": dict(variational=False),
    "deterministic, raw mean": dict(variational=False, normalise_mean=False), "fixed logSNR": dict(logsnr=1.5),
    "scaled": dict(scaling_factor=1.3, shifting_factor=0.2), "unmasked": dict(block_size=None),
    "blocks of two": dict(block_size=2, patch_size=2), "no biases": dict(bias=False)}


@pytest.mark.parametrize("vae", VAES.values(), ids=VAES)
@pytest.mark.parametrize("stage", [1, 2])
def test_every_kind_of_latent(stage, vae):
    model = make_model(vae)
    found = assert_equals_reference(model, FlowConfig(**WEIGHTS), stage)
    wanted = {"reconstruction", "mask", "accuracy"} | ({"kl"} if stage == 1 else {"negative_entropy", "fm"})
    if stage == 2: wanted |= {"reference_kl"}
    assert found.parts.keys() == wanted | GAUGES


def test_fixed_logsnr_does_not_depend_on_the_batch():
    model = make_model(dict(logsnr=0.7))
    ids = make_batch(model)[0]
    alone, together = model.vae.encode(ids[:1]), model.vae.encode(ids)
    torch.testing.assert_close(together.logvar[:1], alone.logvar)
    torch.testing.assert_close(vae_logsnr(together), torch.tensor(0.7), atol=1e-3, rtol=0)   # norm_eps takes a little power


FLOWS = {
    "as it stands": {}, "uniform": dict(schedule="uniform"), "noisier": dict(loc=-0.5, scale=2.0),
    "a time per sequence": dict(time_per="sequence"), "independent times": dict(stratified=False),
    "independent, uniform, per sequence": dict(stratified=False, schedule="uniform", time_per="sequence"),
    "clean prefixes": dict(clean_prefix=0.6), "clean prefixes everywhere": dict(clean_prefix=1.0, time_per="sequence"),
    "target with gradient": dict(detach_target=False), "noised latents without": dict(detach_noised=True),
    "target alone has a gradient": dict(detach_target=False, detach_noised=True),
    "prefixes, gradient in the target": dict(clean_prefix=1.0, detach_target=False)}
DITS = {"velocity": {}, "z0": dict(prediction="z0"), "skip": dict(skip=True), "blocks of three": dict(block_size=3),
        "one block": dict(block_size=6), "single latents": dict(block_size=1)}


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("train_vae", [True, False], ids=["joint", "frozen"])
def test_every_switch_of_the_flow(flow, train_vae):
    model = make_model(dict(patch_size=2), dict(block_size=3))
    model.vae.requires_grad_(train_vae)
    found = assert_equals_reference(model, FlowConfig(**WEIGHTS | flow), 2, train_vae=train_vae)
    if not train_vae: assert found.parts.keys() == {"fm"} | GAUGES


@pytest.mark.parametrize("dit", DITS.values(), ids=DITS)
@pytest.mark.parametrize("flow", [dict(), dict(clean_prefix=0.7, detach_target=False)], ids=["noisy", "prefixes"])
def test_every_reading_of_the_output(dit, flow):
    assert_equals_reference(make_model(dit=dit), FlowConfig(**WEIGHTS | flow), 2)


@every_stage
@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 3), slice(2, None)], ids=str)
def test_rows_of_a_batch(stage, given, rows):
    model = make_model(dict(patch_size=2), dict(block_size=3))
    assert_equals_reference(model, FlowConfig(**WEIGHTS, clean_prefix=0.5), stage, rows=rows, **given)


@every_stage
def test_rows_add_up_to_the_batch(stage, given):
    "Totals, parts and gradients; the gauges of collapse are not sums."
    model, config = make_model(dict(patch_size=2)), FlowConfig(**WEIGHTS, clean_prefix=0.5)
    ids, valid = make_batch(model)
    whole = ours(model, ids, valid, config, stage, **given)
    cuts = slice(0, 1), slice(1, 3), slice(3, 4)
    pieces = [ours(model, ids, valid, config, stage, rows=rows, **given) for rows in cuts]
    torch.testing.assert_close(sum(piece.total for piece in pieces), whole.total)
    for name in whole.parts.keys() - GAUGES:
        torch.testing.assert_close(sum(piece.parts[name] for piece in pieces), whole.parts[name], msg=name)
    expected = gradients(whole.total, model)
    for piece in pieces:
        for name, g in gradients(piece.total, model).items(): expected[name] = expected[name] - g
    assert max(rest.abs().max() for rest in expected.values()) < 1e-10


def test_filler_counts_as_text():
    "Eq 3.16 on sequences that `with_filler` has filled up: their padding tokens are to be predicted too."
    model = make_model(dict(patch_size=3))
    ids, valid = make_batch(model)
    filled = with_filler(ids, valid, 1.0, 3, 0, stream("filler"))
    assert not torch.equal(filled[0], ids)
    for stage in (1, 2): assert_equals_reference(model, FlowConfig(**WEIGHTS), stage, filled)


# ---- what training minimises ----

def handed_over(monkeypatch, model, stage, **changes):
    "Model and loss that a stage of training hands to the loop, from the stage-1 VAE of `model`."
    run = RunConfig(name="small", vae=model.vae.config, dit=model.dit.config,
                    flow=FlowConfig(**WEIGHTS | dict(filler=0.9) | changes.pop("flow", {})), stage2=changes)
    corpus, kept = Corpus(Path("nowhere"), {"config": {}}, word_tokenizer("abcdefg")), []
    def keep(*given, **settings):
        kept.append((*given[:2], given[8], settings))
        return pd.DataFrame()
    monkeypatch.setattr(train, "train_stage", keep)
    monkeypatch.setattr(train, "load_model", lambda folder: (run, model, None))
    if stage == 1: train.train_vae(run, corpus, "out", 0, device="cpu")
    else: train.train_prior(run, corpus, "folder", "out", 0, device="cpu")
    (own, loss, check, settings), = kept
    return own, loss, check, run.flow, settings


@every_stage
@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)], ids=str)
def test_training_minimises_the_objective(monkeypatch, stage, given, rows):
    "On text with filler; a VAE at rest takes no part in stage 2."
    first = make_model(dict(patch_size=2), reference=False)
    model, loss, check, flow, _ = handed_over(monkeypatch, first, stage)
    context = StepContext(0, train_vae=not given)
    ids, valid = make_batch(first)
    generator = stream("step")
    filled = with_filler(ids, valid, 0.9, 2, 0, generator)
    expected, _ = reference_loss(model, *filled, flow, generator, stage, rows=rows, **given)
    torch.testing.assert_close(loss(model, ids, valid, stream("step"), rows, context).total, expected)
    torch.testing.assert_close(check(model, ids, valid, stream("step"), rows, context).total, expected)   # validation measures the same
    assert not torch.equal(filled[0], ids)


@pytest.mark.parametrize("changes, held", [
    (dict(strategy="joint"), True), (dict(strategy="interval"), True), (dict(strategy="fixed"), False),
    (dict(strategy="scratch"), False), (dict(strategy="joint", flow=dict(lambda_ref=0)), False)], ids=str)
def test_stage_two_is_held_to_the_first_encoder(monkeypatch, changes, held):
    "Where it starts from a stage-1 VAE that learns on: a frozen copy of it."
    first = make_model(reference=False)
    model, _, _, _, settings = handed_over(monkeypatch, first, 2, **changes)
    assert (model.reference is not None) == held
    if held:
        for ours, theirs in zip(model.reference.parameters(), first.vae.encoder.parameters(), strict=True):
            assert torch.equal(ours, theirs) and ours is not theirs and not ours.requires_grad
    steps = (0, 1999, 2000, 4999, 5000)
    rates = [settings["rates"](step)["vae"] for step in steps]
    assert [settings["context_at"](step).train_vae for step in steps] == [rate > 0 for rate in rates]
    assert rates == {"fixed": [0] * 5, "interval": [1, 1, 0, 0, 1]}.get(changes["strategy"], [1] * 5)
    assert (model.vae is first.vae) == (changes["strategy"] != "scratch")


# ---- weights ----

@pytest.mark.parametrize("stage, weight, part, inside", [
    (1, "beta", "kl", False), (2, "beta", "negative_entropy", True),
    (2, "lambda_fm", "fm", False), (2, "lambda_ref", "reference_kl", False)])
def test_a_weight_multiplies_its_part(stage, weight, part, inside):
    "total(w) - total(0) = w * part; inside: of the text's part, whose weight is lambda_vae."
    model = make_model()
    ids, valid = make_batch(model)
    config = FlowConfig(**WEIGHTS)
    found, without = (ours(model, ids, valid, c, stage) for c in (config, config.replace(**{weight: 0.0})))
    factor = getattr(config, weight) * (config.lambda_vae if inside else 1)
    torch.testing.assert_close(found.total - without.total, factor * found.parts[part])
    assert abs(found.parts[part]) > 0.1


@pytest.mark.parametrize("stage", [1, 2])
def test_the_weight_of_the_mask_loss(stage):
    "Between two weights above 0: without the loss nothing is masked, so other numbers are drawn."
    model = make_model()
    ids, valid = make_batch(model)
    one, two = (ours(model, ids, valid, FlowConfig(**WEIGHTS | dict(lambda_mask=w)), stage) for w in (0.4, 1.0))
    torch.testing.assert_close(two.total - one.total, 0.6 * (0.6 if stage == 2 else 1) * one.parts["mask"])


def test_lambda_vae_weighs_text_entropy_and_mask_together():
    model = make_model()
    ids, valid = make_batch(model)
    half, none = (ours(model, ids, valid, FlowConfig(**WEIGHTS | dict(lambda_vae=w)), 2) for w in (0.5, 0.0))
    parts = half.parts
    text = parts["reconstruction"] + 0.3 * parts["negative_entropy"] + 0.7 * parts["mask"]
    torch.testing.assert_close(half.total - none.total, 0.5 * text)
    torch.testing.assert_close(none.total, 1.7 * parts["fm"] + 0.45 * parts["reference_kl"])


def test_parts_that_are_switched_off_are_absent():
    model = make_model()
    ids, valid = make_batch(model)
    assert "reference_kl" not in ours(model, ids, valid, FlowConfig(lambda_ref=0), 2).parts
    assert "mask" not in ours(model, ids, valid, FlowConfig(), 2).parts
    assert "reference_kl" not in ours(make_model(reference=False), ids, valid, FlowConfig(), 2).parts


def test_reference_is_frozen_and_starts_at_no_distance():
    model = make_model()
    model.reference.load_state_dict(model.vae.encoder.state_dict())
    ids, valid = make_batch(model)
    found = ours(model, ids, valid, FlowConfig(lambda_ref=1e6), 2)
    assert abs(found.parts["reference_kl"]) < 1e-12
    assert not any(p.requires_grad for p in model.reference.parameters())


def test_reference_encoder_is_scaled_too():
    model = make_model(dict(scaling_factor=1.3, shifting_factor=0.2))
    model.reference.load_state_dict(model.vae.encoder.state_dict())
    assert abs(ours(model, *make_batch(model), FlowConfig(), 2).parts["reference_kl"]) < 1e-12


def test_rows_add_up_under_a_fixed_logsnr():
    model = make_model(dict(logsnr=0.7))
    ids, valid = make_batch(model)
    config = FlowConfig(**WEIGHTS)
    pieces = [ours(model, ids, valid, config, 1, rows=rows).total for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(pieces), ours(model, ids, valid, config, 1).total)


def test_a_fixed_logsnr_needs_a_normalised_mean():
    "The power of a raw mean would be that of the rows in the pass: parts of a batch would not add up."
    with pytest.raises(ValueError, match=r"vae\.logsnr=0\.7 with vae\.normalise_mean=False"):
        VAEConfig(**VAE, logsnr=0.7, normalise_mean=False)


def test_what_does_not_count_does_not_matter():
    "Padding after the last token that counts, under causal sight: other ids there change neither loss nor gradient."
    model = make_model()
    ids, valid = make_batch(model)
    other = torch.where(valid, ids, (ids + 3) % 11)
    assert not torch.equal(ids, other)
    found, changed = (ours(model, x, valid, FlowConfig(**WEIGHTS), 1).total for x in (ids, other))
    torch.testing.assert_close(found, changed)
    expected, computed = gradients(found, model), gradients(changed, model)
    for name in expected: torch.testing.assert_close(computed[name], expected[name], msg=name)


def test_gauges_of_collapse():
    "Deviation of means over the latents that count, mean noise, and logSNR."
    model = make_model(dict(normalise_mean=False))
    ids, valid = make_batch(model)
    found = ours(model, ids, valid, FlowConfig(), 1, rows=slice(1, 3)).parts
    means, sigmas = [], []
    for i, j in product((1, 2), range(LATENTS)):
        q = encoder_gaussian(model.vae.encoder, ids[i])
        if valid[i, j]: means.append(q.mean[j]), sigmas.append(q.stddev[j])
    means, sigmas = torch.stack(means).detach(), torch.stack(sigmas).detach()
    spread = [math.sqrt(sum((x - column.mean()) ** 2 for x in column) / (len(column) - 1)) for column in means.T]
    share = 2 / 4
    assert found["mean_sd"] == pytest.approx(share * sum(spread) / 3)
    assert found["posterior_sd"] == pytest.approx(share * sigmas.mean().item())
    assert found["logsnr"] == pytest.approx(share * math.log((means**2).mean() / (sigmas**2).mean()))


# ---- closed forms ----

def test_untrained_flow_loss_in_closed_form():
    "An output of zero: the loss is the target's power, or the residual of the linear optimum under `skip`."
    b, n, d, s = 256, 8, 4, 4
    z0, valid = torch.randn(b, n, d, generator=stream("z0")), torch.ones(b, n, dtype=torch.bool)
    config = FlowConfig(schedule="uniform")
    def find(**dit):
        model = DiT(DiTConfig(**DIT | dict(d_latent=d, block_size=s, zero_init=True) | dit))
        return prior_terms(model, z0, valid, config, stream("fm"))["fm"].detach()
    z1 = torch.randn(b, n, d, generator=stream("fm"))
    torch.testing.assert_close(find(), ((z1 - z0) ** 2).mean())
    torch.testing.assert_close(find(prediction="z0"), (z0**2).mean())
    left = stats.uniform.expect(lambda t: 1 / ((1 - t) ** 2 + t**2))    # Var(z1-z0 | zt) at unit variances
    assert find(skip=True) == pytest.approx(left, rel=0.05) and left < 1.6 < find()


@pytest.mark.parametrize("t", [0.002, 0.3, 0.5, 0.97, 1.0])
def test_perfect_outputs_are_the_velocity(t):
    "z1 - z0 from z0 itself, and from the normalised rest under `skip`; a time per latent or per group."
    z0, z1 = (torch.randn(2, 4, 3, generator=stream(name)) for name in ("a", "b"))
    zt = (1 - t) * z0 + t * z1
    of = lambda **dit: DiT(DiTConfig(**DIT | dit)).velocity
    variance = (1 - t) ** 2 + t**2
    rest = ((z1 - z0) - (2 * t - 1) / variance * zt) * math.sqrt(variance)
    for groups in (1, 2, 4):
        at = torch.full((2, groups), t)
        torch.testing.assert_close(of(prediction="z0")(z0, zt, at), z1 - z0)
        torch.testing.assert_close(of(skip=True)(rest, zt, at), z1 - z0)
        torch.testing.assert_close(of()(z1, zt, at), z1)


def test_prediction_of_z0_stays_finite_at_the_end():
    dit = DiT(DiTConfig(**DIT, prediction="z0"))
    z, raw = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    torch.testing.assert_close(dit.velocity(raw, z, torch.zeros(1, 1)), 1000 * z)


@pytest.mark.parametrize("dit", [dict(prediction="z0"), dict(skip=True)], ids=str)
def test_a_pass_reads_its_output_by_the_same_rule(dit):
    "`forward`, which generation and likelihood use, for a time per block."
    model = redrawn(DiT(DiTConfig(**DIT | dit)), 4)
    z, t = torch.randn(2, 6, 3, generator=stream("z")), torch.rand(2, 3, generator=stream("t")) + 0.01
    raw, at = with_shared_weights(model, prediction="velocity", skip=False)(z, t), t.repeat_interleave(2, 1)[..., None]
    variance = (1 - at) ** 2 + at**2
    expected = (z - raw) / at if "prediction" in dit else (2 * at - 1) / variance * z + raw / variance.sqrt()
    torch.testing.assert_close(model(z, t), expected)


def test_path_and_its_logsnr():
    z0, z1 = torch.randn(2, 2, 6, 3, generator=stream("path"))
    t = torch.tensor([[0.0, 0.25, 1.0], [0.5, 0.1, 0.9]])
    zt, velocity = interpolate(z0, z1, t)
    for i, j in product(range(2), range(6)):
        own = t[i, j // 2]
        torch.testing.assert_close(zt[i, j], (1 - own) * z0[i, j] + own * z1[i, j])
    torch.testing.assert_close(velocity, z1 - z0)
    inner = torch.tensor([0.1, 0.5, 0.8])
    torch.testing.assert_close(path_logsnr(inner), torch.log((1 - inner) ** 2 / inner**2))
    torch.testing.assert_close(time_of_logsnr(path_logsnr(inner)), inner)


# ---- Gaussians ----

def gaussians(seed):
    mean, logvar = torch.randn(2, 3, 5, 4, generator=stream("gaussian", seed))
    return Posterior(mean, 2 * logvar), Normal(mean, logvar.exp())


def test_posterior_is_torchs_gaussian():
    (p, mine), (q, its) = gaussians(0), gaussians(1)
    z = torch.randn(3, 5, 4, generator=stream("point"))
    torch.testing.assert_close(p.log_prob(z), mine.log_prob(z).sum(-1))
    torch.testing.assert_close(p.entropy(), mine.entropy().sum(-1))
    torch.testing.assert_close(p.kl(), kl_divergence(mine, Normal(0.0, 1.0)).sum(-1))
    torch.testing.assert_close(p.kl(q), kl_divergence(mine, its).sum(-1))
    torch.testing.assert_close(q.kl(p), kl_divergence(its, mine).sum(-1))
    assert p.kl(p).abs().max() < 1e-12 and p.kl(q).min() > 0
    torch.testing.assert_close(p.at(z), mine.mean + mine.stddev * z)


def test_posterior_samples():
    "Their law by Kolmogorov-Smirnov, and the same numbers from the same generator."
    (p, mine), n = gaussians(0), 4000
    many = Posterior(p.mean[:1, :1].expand(n, 1, 4), p.logvar[:1, :1].expand(n, 1, 4))
    z = many.sample(stream("sample"))
    rest = (z[:, 0] - mine.mean[0, 0]) / mine.stddev[0, 0]
    for c in range(4): assert stats.kstest(rest[:, c], "norm").pvalue > 1e-3
    torch.testing.assert_close(z, many.at(torch.randn(n, 1, 4, generator=stream("sample"))))


def test_logsnr_of_a_posterior():
    (p, mine), mask = gaussians(0), torch.rand(3, 5, generator=stream("mask")) < 0.5
    torch.testing.assert_close(vae_logsnr(p), (mine.mean.pow(2).mean() / mine.variance.mean()).log())
    torch.testing.assert_close(vae_logsnr(p, mask), (mine.mean[mask].pow(2).mean() / mine.variance[mask].mean()).log())


@pytest.mark.parametrize("raw, kept", [(50.0, 20.0), (-50.0, -30.0), (3.0, 3.0)])
def test_log_variance_is_clamped(raw, kept):
    vae = TextVAE(VAEConfig(**VAE))
    with torch.no_grad(): vae.encoder.head.weight[3:].zero_(), vae.encoder.head.bias[3:].fill_(raw)
    torch.testing.assert_close(vae.encode(torch.zeros(1, 4, dtype=torch.long)).logvar, torch.full((1, 4, 3), kept))


def test_infinite_log_variance_reaches_the_loss():
    model = make_model()
    with torch.no_grad(): model.vae.encoder.head.bias[3:].fill_(math.inf)
    assert not torch.isfinite(ours(model, *make_batch(model), FlowConfig(), 1).total)


# ---- what is drawn ----

SCHEDULES = [dict(schedule="uniform"), {}, dict(loc=-0.7, scale=0.5)]


def level(config, t):
    "Share of the schedule's times below t."
    if config.schedule == "uniform": return t.numpy()
    return stats.norm.cdf((torch.logit(t).numpy() - config.loc) / config.scale)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_times_have_the_schedules_quantiles(schedule):
    config = FlowConfig(**schedule, stratified=False)
    t = sample_time(config, (500, 8), stream("times"))
    assert t.shape == (500, 8) and stats.kstest(level(config, t.flatten()), "uniform").pvalue > 1e-3
    middle = 0.5 if config.schedule == "uniform" else 1 / (1 + math.exp(-config.loc))
    assert t.median().item() == pytest.approx(middle, abs=0.03)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_stratified_times_fill_every_quantile_once(schedule):
    config = FlowConfig(**schedule)
    t = sample_time(config, (20, 5), stream("strata"))
    share = level(config, t.flatten())
    assert sorted((share * 100).astype(int)) == list(range(100)) and list(share) != sorted(share)
    many = torch.cat([sample_time(config, (1, 8), stream("rest", i)) for i in range(300)])
    assert stats.kstest(level(config, many.flatten()) * 8 % 1, "uniform").pvalue > 1e-3      # uniform inside their quantile too


def test_clean_prefixes():
    "Share of blocks; lengths 1 to s-1 are equally frequent and never a whole block."
    held = clean_prefix(0.4, (500, 6), 5, stream("prefix")).view(500, 6, 5)
    length = held.sum(-1)
    assert torch.equal(held, torch.arange(5) < length[..., None])
    assert (length > 0).double().mean().item() == pytest.approx(0.4, abs=0.03)
    counts = torch.bincount(length.flatten(), minlength=6)[1:]
    assert counts[4] == 0 and stats.chisquare(counts[:4]).pvalue > 1e-3
    assert not clean_prefix(1.0, (4, 6), 1, stream("prefix")).any()
    assert clean_prefix(1.0, (4, 6), 2, stream("prefix")).sum() == 24


def test_masked_copies():
    ids = torch.randint(0, 11, (200, 20), generator=stream("ids"))
    valid = torch.rand(200, 20, generator=stream("valid")) < 0.7
    masked, hit = masked_copy(ids, valid, 11, 0.3, stream("hits"))
    assert not hit[~valid].any() and hit[valid].double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(masked == 11, hit) and torch.equal(masked[~hit], ids[~hit])


def test_latents_that_count():
    valid = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    assert patch_valid(valid, 2).tolist() == [[True, True, False], [False, False, True]]
    assert patch_valid(valid, 3).tolist() == [[True, True], [False, True]]
    assert torch.equal(patch_valid(valid, 1), valid)


@pytest.mark.parametrize("p", [2, 3, 5])
def test_filler_by_lists(p):
    "Pads up to the end of the patch in which the text is cut; what no longer fits falls off."
    b, l, share = 40, 30, 0.6
    ids = torch.randint(1, 11, (b, l), generator=stream("text"))
    lengths = torch.randint(4, l + 1, (b,), generator=stream("length"))
    valid = torch.arange(l) < lengths[:, None]
    found, counts = with_filler(ids, valid, share, p, 0, stream("filler"))
    chosen, part = torch.rand(2, b, 1, generator=stream("filler"))
    for i in range(b):
        cut = int(part[i] * lengths[i])
        gap = (p - cut % p) % p if chosen[i] < share else 0
        row = ids[i].tolist()
        assert found[i].tolist() == (row[:cut] + [0] * gap + row[cut:])[:l]
        assert counts[i].tolist() == ([True] * (int(lengths[i]) + gap) + [False] * l)[:l]
    for given in ((0.0, p), (share, 1)):
        same, still = with_filler(ids, valid, *given, 0, stream("filler"))
        assert torch.equal(same, ids) and torch.equal(still, valid)
