"Short facts against closed forms and loops: each kills mutants that the notebooks let live. Names begin with the module."
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from colanb.attention import Visibility
from colanb.config import BaselineConfig, DiTConfig, FlowConfig, ODEConfig, RunConfig, SampleConfig, VAEConfig, stream
from colanb.dit import DiT
from colanb.flow import (ColaDLM, batch_noise, clean_prefix, decoder_terms, fm_loss, interpolate, latent_statistics, masked_copy, patch_valid, path_logsnr,
                         sample_time, stage1_loss, stage2_loss, time_of_logsnr, with_filler)
from colanb.layers import Modulation
from colanb.likelihood import (Conditional, History, LinearGaussian, MixturePath, Parts, TextScorer, aggregated_log_density, carry, conditional, decompose,
                               draw_probes, each_draw, flow_log_prob, flow_sample, integrate, iwae_at, likelihood, log_weights, perplexity, price_list,
                               trace_terms, worst_row)
from colanb.sample import (BlockField, BlockState, Sampler, begin_states, choose_tokens, encode_prompts, filter_logits, hold_prefix, noise_stream, renoise,
                           sees_padding, solver_step, solver_table, solver_times, transport_block)
from colanb.vae import Encoder, Posterior, TextVAE, vae_logsnr

close = torch.testing.assert_close


def small_vae(**changes):
    torch.manual_seed(0)
    return TextVAE(VAEConfig(**dict(vocab_size=20, d_latent=4, width=16, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=32, init_std=0.3) | changes))


def small_dit(**changes):
    torch.manual_seed(1)
    return DiT(DiTConfig(**dict(d_latent=4, width=16, heads=2, head_dim=8, layers=2, rope_dim=4, block_size=2, zero_init=False) | changes))


def normal(q):
    "A posterior as PyTorch's distribution."
    return Independent(Normal(q.mean, (0.5 * q.logvar).exp()), 1)


def posterior(seed, *shape):
    make = torch.Generator().manual_seed(seed)
    return Posterior(torch.randn(*shape, generator=make), torch.randn(*shape, generator=make))


# flow: path and times

def test_flow_path():
    z0, z1 = torch.randn(2, 1, 4, 3)
    t = torch.tensor([[0.25, 0.75]])
    zt, velocity = interpolate(z0, z1, t)
    each = torch.tensor([0.25, 0.25, 0.75, 0.75])[None, :, None]
    close(zt, (1 - each) * z0 + each * z1)
    close(velocity, z1 - z0)
    times = torch.tensor([0.1, 0.5, 0.8])
    close(path_logsnr(times), torch.tensor([2 * math.log(9), 0.0, 2 * math.log(0.25)]))
    close(time_of_logsnr(path_logsnr(times)), times)


@pytest.mark.parametrize("schedule", ["uniform", "logit_normal"])
@pytest.mark.parametrize("stratified", [True, False])
def test_flow_times(schedule, stratified):
    config = FlowConfig(schedule=schedule, stratified=stratified, loc=0.7, scale=1.3)
    t = sample_time(config, (50, 40), stream("times")).double()
    assert t.shape == (50, 40)
    u = t if schedule == "uniform" else torch.special.ndtr((t.logit() - 0.7) / 1.3)
    ranks = (u.flatten() * 2000).floor().long()
    if stratified: assert (ranks.unique().numel() - 2000) >= -4      # one time in each of 2000 equal parts, up to rounding at their ends
    else: assert ranks.unique().numel() < 1400                      # independent draws leave a share of 1/e of the parts empty
    order = u.flatten().argsort().float()
    assert torch.corrcoef(torch.stack([order, torch.arange(2000.0)]))[0, 1].abs() < 0.1   # in random order
    again = sample_time(config, (50, 40), stream("times"))
    assert torch.equal(again.double(), t)


@pytest.mark.parametrize("place,value", [(0.0, 1e-6), (1.0, 1 - 1e-6)])
def test_flow_times_stay_inside(monkeypatch, place, value):
    monkeypatch.setattr(torch, "rand", lambda count, **more: torch.full((count,), place))
    t = sample_time(FlowConfig(schedule="uniform", stratified=False), (2, 2), torch.Generator())
    close(t, torch.full((2, 2), value))


def test_flow_clean_prefix():
    found = clean_prefix(0.5, (300, 2), 4, stream("prefix")).view(600, 4)
    lengths = found.sum(1)
    assert torch.equal(found, torch.arange(4) < lengths[:, None])                       # prefixes
    counts = torch.bincount(lengths, minlength=5)
    assert counts[4] == 0 and abs(counts[0] - 300) < 50 and all(abs(counts[k] - 100) < 40 for k in (1, 2, 3))
    assert clean_prefix(1.0, (3, 2), 2, stream(0)).tolist() == [[True, False, True, False]] * 3
    assert not clean_prefix(1.0, (3, 2), 1, stream(0)).any() and clean_prefix(1.0, (3, 2), 1, stream(0)).shape == (3, 2)


def test_flow_noise_of_some_rows():
    for copies in (1, 2):
        whole = batch_noise(torch.zeros(copies * 5, 3, 2), 5, slice(None), stream("noise"))
        assert torch.equal(whole, torch.randn(copies * 5, 3, 2, generator=stream("noise")))
        part = batch_noise(torch.zeros(copies * 2, 3, 2), 5, slice(1, 3), stream("noise"))
        assert torch.equal(part, torch.cat([whole[5 * c + 1:5 * c + 3] for c in range(copies)]))


def test_flow_masked_copy():
    ids, valid = torch.arange(4000).view(2, -1), torch.ones(2, 2000, dtype=torch.bool)
    valid[1, 1000:] = False
    masked, hit = masked_copy(ids, valid, 9999, 0.3, stream("mask"))
    assert torch.equal(masked == 9999, hit) and torch.equal(masked[~hit], ids[~hit])
    assert not hit[~valid].any() and abs(hit[valid].float().mean() - 0.3) < 0.03


def test_flow_patches_and_filler():
    valid = torch.tensor([[True, True, True, False, False, False]])
    assert patch_valid(valid, 3).tolist() == [[True, False]] and patch_valid(valid, 1) is valid
    assert patch_valid(valid, 2).tolist() == [[True, True, False]]
    ids = torch.arange(1, 12 * 40 + 1).view(40, 12)
    every = torch.ones_like(ids, dtype=torch.bool)
    every[:, 9:] = False
    made, counted = with_filler(ids, every, 0.5, 4, 0, stream("filler"))
    changed = 0
    for row, old, seen, before in zip(made.tolist(), ids.tolist(), counted.tolist(), every.tolist()):
        gaps = row.count(0)
        first = row.index(0) if gaps else 0
        assert row == old[:first] + [0] * gaps + old[first:12 - gaps]
        assert seen == before[:first] + [True] * gaps + before[first:12 - gaps]
        assert gaps < 4 and (first + gaps) % 4 == 0 and first <= 9
        changed += gaps > 0
    assert 8 <= changed <= 25                                                       # half, less those that are cut at a patch's end
    for share, size in ((0.0, 4), (1.0, 1)):
        assert with_filler(ids, every, share, size, 0, stream(0))[0] is ids


def test_flow_gauges():
    q, counts = posterior(0, 3, 5, 2), torch.rand(3, 5) < 0.7
    found = latent_statistics(q, counts, 0.25)
    mean, sigma = q.mean[counts], (0.5 * q.logvar[counts]).exp()
    close(found["mean_sd"], 0.25 * mean.std(0).mean())
    close(found["posterior_sd"], 0.25 * sigma.mean())
    close(found["logsnr"], 0.25 * (mean.square().mean() / sigma.square().mean()).log())
    close(latent_statistics(q, counts)["posterior_sd"], sigma.mean())


def test_flow_model():
    vae, dit = small_vae(), small_dit()
    model = ColaDLM(vae, dit, Encoder(vae.config))
    assert model.vae is vae and model.dit is dit and not any(p.requires_grad for p in model.reference.parameters())
    made = ColaDLM(vae.config, dit.config)
    assert isinstance(made.vae, TextVAE) and isinstance(made.dit, DiT) and made.reference is None
    assert ColaDLM(vae.config).dit is None


# flow: losses

WEIGHTS = dict(beta=0.3, lambda_mask=0.7, lambda_vae=1.9, lambda_fm=2.3, lambda_ref=1.1, clean_prefix=0.5, mask_ratio=0.4)


def example(**changes):
    "A model with a reference, ids and which of them count."
    model = ColaDLM(small_vae(**changes), small_dit())
    torch.manual_seed(3)
    model.reference = Encoder(model.vae.config)
    ids, valid = torch.randint(0, 20, (4, 8)), torch.ones(4, 8, dtype=torch.bool)
    valid[0, 5:] = False
    valid[2, 2:] = False
    return model, ids, valid


@pytest.mark.parametrize("mask", [0.0, 0.7])
def test_flow_decoder_terms(mask):
    model, ids, valid = example()
    config = FlowConfig(**WEIGHTS | {"lambda_mask": mask})
    for rows in (slice(None), slice(1, 3)):
        q, z0, parts = decoder_terms(model.vae, ids, valid, config, stream("terms"), rows)
        generator = stream("terms")
        masked, hit = masked_copy(ids, valid, 20, 0.4, generator) if mask else (None, None)
        noise = torch.randn(8 if mask else 4, 8, 4, generator=generator)
        mine, counted = ids[rows], valid[rows]
        expected = model.vae.encode(mine)
        close(q.mean, expected.mean), close(q.logvar, expected.logvar)
        close(z0, expected.at(noise[:4][rows]))
        nats = -model.vae.decode(z0).log_softmax(-1).gather(-1, mine[..., None])[..., 0]
        close(parts["reconstruction"], nats[counted].sum() / valid.sum())
        close(parts["accuracy"], (model.vae.decode(z0).argmax(-1) == mine)[counted].sum() / valid.sum())
        assert ("mask" in parts) == bool(mask)
        if not mask: continue
        z = model.vae.encode(masked[rows]).at(noise[4:][rows])
        nats = -model.vae.decode(z).log_softmax(-1).gather(-1, mine[..., None])[..., 0]
        close(parts["mask"], nats[hit[rows]].sum() / hit.sum())


def test_flow_stage1():
    model, ids, valid = example()
    for lambda_mask in (0.7, 0.0):
        config = FlowConfig(**WEIGHTS | {"lambda_mask": lambda_mask})
        loss = stage1_loss(model, ids, valid, config, stream("one"))
        q, _, parts = decoder_terms(model.vae, ids, valid, config, stream("one"))
        kl = kl_divergence(normal(q), Independent(Normal(torch.zeros_like(q.mean), 1.0), 1))[valid].sum() / valid.sum()
        close(loss.parts["kl"], kl.detach())
        close(loss.total, parts["reconstruction"] + 0.3 * kl + lambda_mask * parts.get("mask", 0))
        assert not any(part.requires_grad for part in loss.parts.values())
        close(loss.parts["posterior_sd"], (0.5 * q.logvar[valid]).exp().mean().detach())


@pytest.mark.parametrize("patch", [1, 2])
def test_flow_stage2(patch):
    model, ids, valid = example(patch_size=patch)
    config = FlowConfig(**WEIGHTS)
    loss = stage2_loss(model, ids, valid, config, stream("two"))
    generator = stream("two")
    q, z0, parts = decoder_terms(model.vae, ids, valid, config, generator)
    counts = patch_valid(valid, patch)
    fm = fm_loss(model.dit, z0, counts, config, generator)
    entropy = normal(q).entropy()[counts].sum() / valid.sum()
    reference = kl_divergence(normal(q), normal(model.reference(ids)))[counts].sum() / valid.sum()
    close(loss.total, 1.9 * (parts["reconstruction"] - 0.3 * entropy + 0.7 * parts["mask"]) + 2.3 * fm + 1.1 * reference)
    close(loss.parts["reference_kl"], reference.detach()), close(loss.parts["fm"], fm.detach())
    assert not any(part.requires_grad for part in loss.parts.values())
    without = stage2_loss(model, ids, valid, FlowConfig(**WEIGHTS | {"lambda_ref": 0.0, "lambda_mask": 0.0}), stream("two"))
    assert "reference_kl" not in without.parts
    model.reference = None
    plain = stage2_loss(model, ids, valid, FlowConfig(**WEIGHTS | {"lambda_mask": 0.0}), stream("two"))
    close(plain.total, 1.9 * (plain.parts["reconstruction"] + 0.3 * plain.parts["negative_entropy"]) + 2.3 * plain.parts["fm"])


def test_flow_stage2_with_a_fixed_vae():
    model, ids, valid = example()
    config = FlowConfig(**WEIGHTS)
    loss = stage2_loss(model, ids, valid, config, stream("three"), train_vae=False)
    generator = stream("three")
    q = model.vae.encode(ids)
    z0 = q.at(torch.randn(4, 8, 4, generator=generator)).detach()
    fm = fm_loss(model.dit, z0, valid, config, generator)
    close(loss.total, 2.3 * fm)
    assert set(loss.parts) == {"fm", "mean_sd", "posterior_sd", "logsnr"} and not any(part.requires_grad for part in loss.parts.values())
    loss.total.backward()
    assert all(p.grad is None for p in model.vae.parameters()) and any(p.grad is not None for p in model.dit.parameters())


@pytest.mark.parametrize("train_vae", [True, False])
def test_flow_rows_add_up(train_vae):
    model, ids, valid = example()
    config = FlowConfig(**WEIGHTS)
    whole = stage2_loss(model, ids, valid, config, stream("rows"), train_vae)
    parts = [stage2_loss(model, ids, valid, config, stream("rows"), train_vae, rows) for rows in (slice(0, 1), slice(1, 4))]
    close(sum(part.total for part in parts), whole.total)
    close(sum(part.parts["fm"] for part in parts), whole.parts["fm"])
    gauges = [latent_statistics(model.vae.encode(ids[rows]), valid[rows], share)["posterior_sd"] for rows, share in ((slice(0, 1), 0.25), (slice(1, 4), 0.75))]
    close(sum(part.parts["posterior_sd"] for part in parts), sum(gauges))


def plain_fm(dit, z0, counts, config, generator, block_times):
    "The flow-matching loss by a loop over sequences and blocks, each under its own clean past."
    (b, n, d), s = z0.shape, dit.config.block_size
    z1 = torch.randn(b, n, d, generator=generator)
    t = sample_time(config, (b, n // s if block_times else 1), generator)
    pinned = clean_prefix(config.clean_prefix, (b, n // s), s, generator) if config.clean_prefix else torch.zeros(b, n, dtype=torch.bool)
    total = 0.0
    for row in range(b):
        for block in range(n // s):
            at, mine = t[row, block if block_times else 0], slice(block * s, block * s + s)
            times = torch.where(pinned[row, mine], 0.0, at)
            noisy = (1 - times[:, None]) * z0[row, mine] + times[:, None] * z1[row, mine]
            inputs = torch.cat([z0[row, :block * s], noisy])[None]
            velocity = dit(inputs, torch.cat([torch.zeros(block * s), times])[None])[0, -s:]
            if dit.config.prediction == "z0": error = noisy - times[:, None] * velocity - z0[row, mine]   # z0 = zt - t v
            else: error = velocity - (z1[row, mine] - z0[row, mine])
            total += error.square().mean(-1)[counts[row, mine] & ~pinned[row, mine]].sum()
    return total / (counts & ~pinned).sum()


@pytest.mark.parametrize("prediction,skip", [("velocity", False), ("velocity", True), ("z0", False)])
@pytest.mark.parametrize("prefix", [0.0, 0.8])
@pytest.mark.parametrize("time_per", ["block", "sequence"])
def test_flow_fm_loss_is_the_loop_over_blocks(prediction, skip, prefix, time_per):
    dit = small_dit(prediction=prediction, skip=skip)
    config = FlowConfig(clean_prefix=prefix, time_per=time_per)
    z0, counts = torch.randn(3, 6, 4, generator=stream("z")), torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 3 + [False] * 3])
    with torch.no_grad():
        found = fm_loss(dit, z0, counts, config, stream("fm"))
        expected = plain_fm(dit, z0, counts, config, stream("fm"), time_per == "block")
    close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["velocity", "z0"])
@pytest.mark.parametrize("target,noised", [(True, True), (True, False), (False, True), (False, False)])
def test_flow_gradients_into_the_latents(prediction, target, noised):
    "The clean copy never passes a gradient on; the noised one and the target do unless they are detached."
    dit, counts = small_dit(prediction=prediction), torch.ones(2, 4, dtype=torch.bool)
    config = FlowConfig(detach_target=target, detach_noised=noised)
    z0 = torch.randn(2, 4, 4, generator=stream("z")).requires_grad_()
    loss = fm_loss(dit, z0, counts, config, stream("fm"))
    if target and noised and prediction == "z0":
        assert torch.autograd.grad(loss, z0, allow_unused=True)[0] is None
        return
    gradient = torch.autograd.grad(loss, z0, allow_unused=True)[0]
    if target and noised: assert gradient is None
    else:
        seen = z0.detach()
        generator = stream("fm")
        z1, t = torch.randn(2, 4, 4, generator=generator), sample_time(config, (2, 2), generator)
        zt = interpolate(seen if noised else z0, z1, t).zt
        raw, clean = dit.packed(seen, zt, t), seen if target else z0
        error = raw - clean if prediction == "z0" else raw - (z1 - clean)
        close(gradient, torch.autograd.grad(error.square().mean(), z0)[0], atol=1e-6, rtol=1e-4)


# vae

def test_vae_posterior_is_a_gaussian():
    q, other, z = posterior(0, 2, 3, 4), posterior(1, 2, 3, 4), torch.randn(2, 3, 4)
    close(q.log_prob(z), normal(q).log_prob(z))
    close(q.entropy(), normal(q).entropy())
    close(q.kl(other), kl_divergence(normal(q), normal(other)))
    close(q.kl(), kl_divergence(normal(q), Independent(Normal(torch.zeros(2, 3, 4), 1.0), 1)))
    noise = torch.randn(2, 3, 4, generator=stream("q"))
    close(q.sample(stream("q")), q.mean + (q.logvar / 2).exp() * noise)
    torch.manual_seed(5)
    drawn = q.sample()
    torch.manual_seed(5)
    close(drawn, q.at(torch.randn(2, 3, 4)))
    assert q.at(noise.double()).dtype == torch.float32


def test_vae_logsnr():
    q, mask = posterior(0, 2, 3, 4), torch.tensor([[True, False, True], [False, False, True]])
    close(vae_logsnr(q), (q.mean.square().mean() / q.logvar.exp().mean()).log())
    close(vae_logsnr(q, mask), vae_logsnr(Posterior(q.mean[mask], q.logvar[mask])))


@pytest.mark.parametrize("normalise", [True, False])
def test_vae_kinds_of_variance(normalise):
    ids = torch.randint(0, 20, (3, 6), generator=stream("ids"))
    plain = small_vae(variational=False, normalise_mean=normalise)
    q = plain.encode(ids)
    assert q.logvar.unique().tolist() == [-30.0] and plain.encoder.head.out_features == 4
    close(q.mean, F.layer_norm(q.mean, (4,)), atol=1e-3, rtol=1e-3)                     # a deterministic latent is always normalised
    fixed = small_vae(logsnr=1.5, normalise_mean=normalise)
    q = fixed.encode(ids)
    assert fixed.encoder.head.out_features == 4 and q.logvar.unique().numel() == 1
    close(vae_logsnr(q), torch.tensor(1.5), atol=1e-3, rtol=1e-3)
    assert not q.logvar.requires_grad
    learned = small_vae(normalise_mean=normalise)
    q = learned.encode(ids)
    assert learned.encoder.head.out_features == 8 and q.logvar.unique().numel() > 10
    variance = q.mean.var(-1, unbiased=False)
    assert torch.allclose(variance, torch.ones(()), atol=1e-3) == normalise


def test_vae_learned_variance_is_clamped():
    ids = torch.randint(0, 20, (1, 3))
    for bias, value in ((100.0, 20.0), (-100.0, -30.0), (19.0, None)):
        vae = small_vae()
        nn.init.zeros_(vae.encoder.head.weight)
        nn.init.constant_(vae.encoder.head.bias, bias)
        assert vae.encode(ids).logvar.unique().tolist() == [bias if value is None else value]
    nn.init.constant_(vae.encoder.head.bias, math.inf)
    assert vae.encode(ids).logvar.isnan().all()


@pytest.mark.parametrize("size", [1, 2, None, 6, 9])
@pytest.mark.parametrize("patch", [1, 2])
def test_vae_visibility(size, patch):
    "A changed patch reaches latents, and a changed latent tokens, from its block on."
    vae, ids = small_vae(block_size=size, patch_size=patch), torch.zeros(1, 6 * patch, dtype=torch.long)
    other = ids.clone()
    other[0, 3 * patch] = 7
    with torch.no_grad():
        seen = (vae.encode(ids).mean != vae.encode(other).mean).any(-1)[0]
        z = torch.randn(1, 6, 4)
        moved = z.clone()
        moved[0, 3] += 1
        words = (vae.decode(z) != vae.decode(moved)).any(-1).view(6, patch).any(-1)
    first = 0 if size is None or size >= 6 else 3 // size * size
    assert seen.tolist() == words.tolist() == [i >= first for i in range(6)]


def test_vae_modules():
    vae = small_vae(patch_size=3, bias=False, qk_bias=True, qk_norm=False, heads=4, kv_heads=2, post_norm=False, decoder_layers=2, norm_eps=1e-4,
                    norm_affine=False, activation="gelu", clip_qkv=2.0, rope_theta=100.0)
    assert vae.encoder.embedding.num_embeddings == 21 and vae.mask_id == 20
    assert vae.encoder.patch.kernel_size == vae.encoder.patch.stride == (3,)
    assert [len(part.trunk.blocks) for part in (vae.encoder, vae.decoder)] == [1, 2]
    assert vae.decoder.unpatch.weight.shape == (48, 16) and vae.decoder.head.weight.shape == (20, 16) and vae.decoder.norm.eps == 1e-4
    config = vae.decoder.trunk.config
    assert (config.width, config.heads, config.kv_heads, config.head_dim, config.hidden) == (16, 4, 2, 4, 32)
    assert (config.activation, config.post_norm, config.norm_eps, config.norm_affine, config.clip_qkv) == ("gelu", False, 1e-4, False, 2.0)
    assert (config.qk_norm, config.qkv_bias, config.out_bias, config.mlp_bias) == ("none", True, False, False)
    assert (config.rope_dim, config.rope_theta, config.rope_interleaved, config.modulated) == (4, 100.0, False, False)
    assert small_vae().decoder.trunk.config.qk_norm == "width" and small_vae().decoder.trunk.config.out_bias


def test_vae_patches_are_convolved_and_laid_out_again():
    vae = small_vae(patch_size=3)
    x = vae.encoder.embedding(torch.randint(0, 20, (2, 9), generator=stream("ids")))
    weight = vae.encoder.patch.weight                                                   # (out, in, 3)
    expected = torch.stack([sum(x[:, 3 * i + j] @ weight[..., j].T for j in range(3)) for i in range(3)], 1)
    close(vae.encoder.patch(x.mT).mT, expected + vae.encoder.patch.bias)
    outputs = []
    vae.decoder.trunk.register_forward_hook(lambda module, given, out: outputs.append(out))
    found = vae.decode(torch.randn(2, 3, 4))
    rows = vae.decoder.unpatch(outputs[0]).view(2, 3, 16, 3)                            # channels, then the tokens of a patch
    for i in range(3):
        for j in range(3): close(found[:, 3 * i + j], vae.decoder.head(vae.decoder.norm(rows[:, i, :, j])))


def test_vae_initialisation():
    vae = small_vae(width=64, ffn_dim=256, init_std=0.1)
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d)):
            weight = module.weight
            assert weight.abs().max() <= 0.3 + 1e-6, name
            if weight.numel() > 4000: assert abs(weight.std() - 0.0987) < 0.003 and weight.max() > 0.25 and weight.min() < -0.25, name
            if getattr(module, "bias", None) is not None: assert not module.bias.any(), name
    assert (vae.decoder.norm.weight == 1).all()


@pytest.mark.parametrize("scale,shift", [(2.0, 0.0), (1.0, 0.5), (2.0, 0.5), (1.0, 0.0)])
def test_vae_scaling_and_shift(scale, shift):
    vae, ids = small_vae(scaling_factor=scale, shifting_factor=shift), torch.randint(0, 20, (2, 4))
    raw, q = vae.encoder(ids), vae.encode(ids)
    close(q.mean, (raw.mean - shift) * scale)
    close(q.logvar, raw.logvar + 2 * math.log(scale))
    close(vae.decode(q.mean), vae.decoder(raw.mean))
    with pytest.raises(ValueError, match="5 tokens are not a multiple of patch_size=2"): small_vae(patch_size=2).encode(torch.zeros(1, 5, dtype=torch.long))


# dit

def test_dit_readings_of_the_output():
    raw, z = torch.randn(2, 2, 4, 3)
    t = torch.tensor([[0.2, 0.7], [0.0, 1.0]])
    each = t.repeat_interleave(2, 1)[..., None]
    make = lambda **how: DiT.velocity(SimpleNamespace(config=SimpleNamespace(**dict(skip=False, prediction="velocity") | how)), raw, z, t)
    assert make() is raw
    close(make(prediction="z0"), (z - raw) / each.clamp(min=1e-3))
    # for data of unit variance E[z1 - z0 | zt] = (2t - 1) / c zt, whose error has variance 1 / c, with c the variance of zt
    c = (1 - each) ** 2 + each ** 2
    close(make(skip=True), (2 * each - 1) / c * z + raw / c.sqrt())


def test_dit_modules():
    dit = small_dit(qk_bias=True, rope_theta=50.0, norm_eps=1e-3, mlp_ratio=3, time_dim=8, time_scale=10.0, zero_init=True)
    config = dit.trunk.config
    assert (config.width, config.layers, config.heads, config.head_dim, config.hidden) == (16, 2, 2, 8, 48)
    assert (config.modulated, config.zero_modulation, config.norm_eps, config.norm_affine, config.qk_norm) == (True, True, 1e-3, False, "head")
    assert (config.qkv_bias, config.out_bias, config.rope_dim, config.rope_theta, config.rope_interleaved) == (True, True, 4, 50.0, True)
    assert dit.norm.eps == 1e-3 and dit.modulation.parts == 2 and dit.time.time_scale == 10.0 and len(dit.time.freqs) == 4
    zero = [m.linear for m in dit.modules() if isinstance(m, Modulation)] + [dit.output]
    assert len(zero) == 4 and not any(p.any() for m in zero for p in m.parameters())
    other = small_dit()
    assert all(m.linear.weight.any() for m in other.modules() if isinstance(m, Modulation)) and other.output.weight.any() and other.output.bias.any()


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_dit_times_of_groups(groups):
    dit = small_dit().eval()
    z, t = torch.randn(2, 6, 4), torch.rand(2, groups)
    close(dit(z, t), dit(z, t.repeat_interleave(6 // groups, 1)), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="4 times do not divide 6 latents"): dit(z, torch.rand(2, 4))


def test_dit_sees_blocks():
    dit = small_dit().eval()
    z, t = torch.randn(1, 6, 4), torch.rand(1, 3)
    moved = z.clone()
    moved[0, 3] += 1
    assert (dit(z, t) != dit(moved, t)).any(-1)[0].tolist() == [False] * 2 + [True] * 4
    alone = dit(z[:, :2], t[:, :1])
    close(alone, dit(z, t)[:, :2])


@pytest.mark.parametrize("groups", [3, 6])
def test_dit_packed_is_each_block_under_its_past(groups):
    dit = small_dit().eval()
    clean, noisy, t = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.rand(2, groups)
    pinned = torch.tensor([[True, False, False, False, True, False]] * 2)
    each = t.repeat_interleave(6 // groups, 1)
    for held in (None, pinned):
        found = dit.packed(clean, noisy, t, held)
        for block in range(3):
            past, own = slice(0, 2 * block), slice(2 * block, 2 * block + 2)
            times = each[:, own] if held is None else torch.where(held[:, own], 0.0, each[:, own])
            inputs, at = torch.cat([clean[:, past], noisy[:, own]], 1), torch.cat([torch.zeros(2, 2 * block), times], 1)
            close(found[:, own], dit(inputs, at)[:, own], atol=1e-5, rtol=1e-4)
    for wrong in (1, 4):
        with pytest.raises(ValueError, match=f"{wrong} times do not divide 6 latents in blocks of 2"): dit.packed(clean, noisy, torch.rand(2, wrong))


@pytest.mark.parametrize("prediction,skip", [("velocity", False), ("velocity", True), ("z0", False)])
def test_dit_guided_is_two_passes(prediction, skip):
    dit = small_dit(prediction=prediction, skip=skip, block_size=3).eval()
    past, z, pinned = torch.randn(3, 6, 4), torch.randn(3, 3, 4), torch.tensor([[True, False, False], [False] * 3, [True, True, False]])
    cache, alone = dit.trunk.cache(3, 9), torch.tensor([0, 2])
    with torch.no_grad():
        dit(past, torch.zeros(3, 1), cache)
        cache.advance(6)
        time = dit.tabulate(torch.tensor([0.0, 0.4]))
        for held in (None, pinned):
            given = time._replace(index=torch.ones(3, 1, dtype=torch.long), pinned=held)
            under, single = dit.guided(z, 0.4, given, cache, alone)
            times = torch.full((3, 3), 0.4) if held is None else torch.where(held, 0.0, 0.4)
            close(under, dit(torch.cat([past, z], 1), torch.cat([torch.zeros(3, 6), times], 1))[:, 6:], atol=1e-5, rtol=1e-4)
            close(single, dit(z[alone], times[alone]), atol=1e-5, rtol=1e-4)


def test_dit_tables_are_the_rows_of_the_times():
    dit, t = small_dit(), torch.tensor([0.0, 0.3, 0.9])
    table = dit.tabulate(t)
    close(table.rows, F.silu(dit.time(t)))
    assert table.index.tolist() == [[0]] and table.pinned is None
    assert set(table.tables) == {m for m in dit.modules() if isinstance(m, Modulation)}
    for module, rows in table.tables.items(): close(rows, module.linear(table.rows))
    embedded = dit.embed(torch.tensor([[0.9, 0.3], [0.3, 0.3]]))
    close(embedded.rows[embedded.index], F.silu(dit.time(torch.tensor([0.9, 0.3, 0.3, 0.3]))).view(2, 2, -1))
    assert len(embedded.rows) == 2


# sample

def test_sample_solver_steps():
    velocity, z = (lambda z, t: t * z), torch.tensor([[2.0]])
    close(solver_step(velocity, z, 0.8, 0.5), torch.tensor([[2 - 0.3 * 1.6]]))
    euler = 2 - 0.3 * 1.6
    close(solver_step(velocity, z, 0.8, 0.5, "heun"), torch.tensor([[2 - 0.3 * (1.6 + 0.5 * euler) / 2]]))
    assert solver_times(SampleConfig(steps=4)) == [1.0, 0.75, 0.5, 0.25, 0.0]


def filtered(logits, history, config):
    "The filters by loops over one position."
    row = logits.tolist()
    for token in set(history):
        row[token] = row[token] * config.repetition_penalty if row[token] < 0 else row[token] / config.repetition_penalty
    if config.temperature == 0: return row
    row = [x / config.temperature for x in row]
    if 0 < config.top_k < len(row):
        smallest = sorted(row, reverse=True)[config.top_k - 1]
        row = [x if x >= smallest else -math.inf for x in row]
    if config.top_p < 1:
        mass, total = 0.0, sum(math.exp(x) for x in row)
        for token in sorted(range(len(row)), key=lambda i: -row[i]):
            share = math.exp(row[token]) / total
            if mass > config.top_p: row[token] = -math.inf
            mass += share
    return row


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("top_k,top_p", [(0, 1.0), (1, 1.0), (3, 1.0), (7, 1.0), (0, 0.5), (0, 0.9), (4, 0.7)])
def test_sample_filters_are_loops(temperature, top_k, top_p):
    logits = torch.randn(3, 7, generator=stream("logits"))
    for penalty, history in ((1.0, [1, 2]), (1.5, []), (1.5, [0, 3, 3, 5])):
        config = SampleConfig(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
        found = filter_logits(logits, torch.tensor(history, dtype=torch.long), config)
        close(found, torch.tensor([filtered(row, history if penalty != 1 else [], config) for row in logits]))


def test_sample_choices():
    logits = torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.0, 0.0]])
    none = torch.empty(0, dtype=torch.long)
    assert choose_tokens(logits, none, SampleConfig(temperature=0.0), stream(0)).tolist() == [1, 0]
    assert choose_tokens(logits.half(), torch.tensor([0]), SampleConfig(repetition_penalty=9.0), stream(0)).tolist() == [1, 0]
    drawn = choose_tokens(logits[:1].expand(6000, -1), none, SampleConfig(temperature=0.5), stream(0))
    shares = torch.bincount(drawn, minlength=3) / 6000
    close(shares, (logits[0] / 0.5).softmax(-1), atol=0.03, rtol=0)
    assert choose_tokens(logits[:1], none, SampleConfig(temperature=1.0), stream(0)).shape == (1,)


@pytest.mark.parametrize("patch,own", [(1, 1), (2, 1), (1, 2), (1, 3), (2, None), (2, 4)])
@pytest.mark.parametrize("first_block", ["clean", "left_pad", "right_pad"])
def test_sample_prefixes(patch, own, first_block):
    vae, size = small_vae(patch_size=patch, block_size=own).eval(), 2
    chunk = patch * size
    given = [[], [5], [3, 4], [7, 8, 9, 2, 3], [6, 5, 4, 3]]
    found = encode_prompts(vae, given, size, 11, first_block)
    assert sees_padding(vae, size) == (own in (None, 3, 4))
    for i, ids in enumerate(given):
        pads = [11] * (-len(ids) % chunk)
        if first_block != "clean": ids = pads + ids if first_block == "left_pad" else ids + pads
        whole = len(ids) // chunk
        latents = -(-len(ids) // patch)
        rest = latents - whole * size
        if rest == size: whole, rest = whole + 1, 0
        filled = ids + [11] * (-len(ids) % chunk)
        assert found.blocks[i] == whole and found.pinned[i].tolist() == [j < rest for j in range(size)]
        assert found.offset[i] == (len(ids) - whole * chunk if rest else 0)
        if not ids: continue
        expected = vae.encode(torch.tensor([filled])).mean[0]
        close(found.latents[i, :whole * size], expected[:whole * size], atol=1e-5, rtol=1e-4)
        close(found.known[i, :rest], expected[whole * size:whole * size + rest], atol=1e-5, rtol=1e-4)
        assert found.known[i].shape == (size, 4)


def cached(dit, past):
    "A cache with whole blocks of clean latents."
    cache = dit.trunk.cache(len(past), past.shape[1] + dit.config.block_size)
    with torch.no_grad(): dit(past, torch.zeros(len(past), 1), cache)
    cache.advance(past.shape[1])
    return cache


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("blocks", [(2, 1, 0), (1, 1, 1), (0, 0, 0)])
def test_sample_guided_field(scale, blocks):
    dit, config = small_dit().eval(), SampleConfig(steps=4)
    past, z = torch.randn(3, 4, 4), torch.randn(3, 2, 4)
    pinned = torch.tensor([[True, False], [False, False], [True, False]])
    cache = cached(dit, past)
    cache.length = 2 * torch.tensor(blocks)
    with torch.no_grad():
        for held in (None, pinned):
            field = BlockField(dit, cache, solver_times(config), solver_table(dit, config), held, scale)
            found = field(z, 0.75)
            assert len(field.alone) == (0 if scale == 1 else sum(b > 0 for b in blocks))
            for row, count in enumerate(blocks):
                times = torch.full((1, 2), 0.75) if held is None else torch.where(held[row:row + 1], 0.0, 0.75)
                history, own = past[row:row + 1, :2 * count], z[row:row + 1]
                under = dit(torch.cat([history, own], 1), torch.cat([torch.zeros(1, 2 * count), times], 1))[:, -2:]
                alone = dit(own, times)
                close(found[row:row + 1], alone + scale * (under - alone), atol=2e-5, rtol=1e-4)


def test_sample_held_latents_and_new_noise():
    z, known, noise = torch.randn(3, 2, 2, 4)
    pinned = torch.tensor([[True, False], [False, True]])
    for t in (0.0, 0.4):
        clean = hold_prefix(z, known, pinned, t, noise, SampleConfig())
        close(clean, torch.where(pinned[..., None], known, z))
        held = hold_prefix(z, known, pinned, t, noise, SampleConfig(first_block="repaint", repaint_m=0.3))
        level = (1 - t) * known + t * noise
        close(held, torch.where(pinned[..., None], level if t == 0 else 0.7 * z + 0.3 * level, z))
    many, fresh = torch.randn(2, 40_000, generator=stream("renoise"), dtype=torch.float64)
    data = 3.0
    for t, up in ((0.2, 0.6), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)):
        moved = renoise((1 - t) * data + t * many, t, up, fresh)
        close(moved.mean(), torch.tensor((1 - up) * data).double(), atol=0.03, rtol=0)
        close(moved.std(), torch.tensor(up).double(), atol=0.03, rtol=0)


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("first_block,rounds", [("clean", 2), ("repaint", 1), ("repaint", 3)])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_sample_transport_is_a_loop_over_steps(hold, first_block, rounds, solver):
    dit, config = small_dit().eval(), SampleConfig(steps=3, first_block=first_block, repaint_rounds=rounds, repaint_m=0.6, solver=solver)
    past, start, known = torch.randn(2, 2, 4), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    pinned = torch.tensor([[hold, False], [False, False]])
    cache, places, seen = cached(dit, past), [], []
    def noises(place):
        places.append(place)
        return torch.randn(2, 2, 4, generator=stream(place))
    with torch.no_grad():
        found = transport_block(dit, start, cache, known, pinned, 2.0, config, noises, lambda t, z: seen.append((t, z)))
        again = transport_block(dit, start, cache, known, pinned, 2.0, config, noises, None, solver_table(dit, config))
        times, z = solver_times(config), start
        held = pinned if hold and first_block == "clean" else None
        field = BlockField(dit, cache, times, solver_table(dit, config), held, 2.0)
        velocity = lambda z, t: field(hold_prefix(z, known, pinned, t, start, config), t)
        wanted = []
        for i in range(3):
            for again_ in range(rounds if hold and first_block == "repaint" else 1):
                if again_:
                    wanted.append(f"repaint {i} {again_}")
                    z = renoise(z, times[i + 1], times[i], torch.randn(2, 2, 4, generator=stream(wanted[-1])))
                z = solver_step(velocity, z, times[i], times[i + 1], solver)
            close(seen[i][1], z)
    close(found, hold_prefix(z, known, pinned, 0.0, start, config))
    close(again, found)
    assert [t for t, _ in seen] == times[1:] and places == wanted * 2
    if hold: close(found[0, 0], known[0, 0])


class Letters:
    "A tokenizer of letters."
    pad_id, eos_id, vocab_size = 0, 1, 20
    def encode(self, text): return [ord(c) - 95 for c in text]
    def decode(self, ids, skip_special=True): return "".join("\n" if i == 19 else chr(i + 95) for i in ids if i > 1 or not skip_special)


def test_sample_streams_and_states():
    draw = lambda generator: torch.rand(3, generator=generator).tolist()
    config, release = SampleConfig(seed=9), SampleConfig(seed=9, compat="release")
    assert draw(noise_stream(config, 4, 2)) == draw(stream(9, 4, 2))
    assert draw(noise_stream(config, 4, 2, "repaint")) == draw(stream(9, 4, 2, "repaint")) == draw(noise_stream(release, 4, 2, "repaint"))
    assert draw(noise_stream(release, 4, 2)) == draw(torch.Generator().manual_seed(9 + 4000 + 20_000_000))
    states = begin_states(["a", "b"], None)
    assert [(s.index, s.seed, s.offset, s.tokens, s.latents, s.done) for s in states] == [(0, 0, 0, [], [], False), (1, 1, 0, [], [], False)]
    assert [(s.index, s.seed, s.offset) for s in begin_states(["a", "b"], [7, 5], [1, 0])] == [(0, 7, 1), (1, 5, 0)]
    with pytest.raises(ValueError, match="1 seeds for 2 prompts"): begin_states(["a", "b"], [7])


def sampler_of(**how):
    return Sampler(small_vae(), small_dit(), Letters(), SampleConfig(**dict(steps=2, max_new_tokens=5) | how))


def state_of(offset, tokens):
    state = BlockState(0, 0, offset)
    state.tokens, state.latents = list(tokens), [torch.zeros(2, 4)]
    return state


def test_sample_stop_rules():
    sampler, newline, release = sampler_of(), sampler_of(stop_at_newline=True), sampler_of(compat="release")
    assert [sampler.stopped(state_of(1, t)) for t in ([1, 3, 4, 5, 6], [1, 3, 4, 5, 6, 7], [3, 4, 1], [3])] == [False, True, True, False]
    assert [newline.stopped(state_of(0, t)) for t in ([19, 3], [3, 19], [19, 19], [19, 3, 4, 19], [])] == [False, True, False, True, False]
    assert not sampler.stopped(state_of(0, [3, 19]))
    assert [release.stopped(state_of(1, t)) for t in ([1, 3], [3] * 9, [3, 1])] == [True, False, True]
    made = sampler.finish(state_of(1, [9, 3, 4, 5, 6, 7, 8]))
    assert made.tokens == [3, 4, 5, 6, 7]
    assert made.text == Letters().decode([3, 4, 5, 6, 7]) and made.latents.shape == (2, 4)
    assert sampler.finish(state_of(0, [3, 4, 1, 6])).tokens == [3, 4]
    assert release.finish(state_of(1, [9, 3, 1, 5, 6, 7, 8])).tokens == [3, 1, 5, 6, 7, 8]
    assert release.finish(state_of(1, [9, 3, 1])).text == Letters().decode([3, 1], skip_special=False)


@pytest.mark.parametrize("release", [False, True])
def test_sample_blocks_are_counted(release):
    sampler, seen = sampler_of(compat="release" if release else "none"), []
    sampler.stopped = lambda state: False
    prompts = ["abc", "de"]                                           # one token of the first prompt opens its next block of 2
    made = [[len(s.tokens) for s in states] for states in sampler.blocks(prompts, None, lambda k, t, z: seen.append((k, t)))]
    count = 3                                                         # 5 tokens, and (not in the release) the one of the prompt
    assert made == [[2 * k + 2] * 2 for k in range(count)]
    assert seen == [(k, t) for k in range(count) for t in (0.5, 0.0)]
    longer = sampler_of(max_new_tokens=6, compat="release" if release else "none")
    longer.stopped = lambda state: False
    assert len(list(longer.blocks(prompts))) == (3 if release else 4)


def test_sample_batch_goes_on_without_the_finished():
    sampler = sampler_of(max_new_tokens=8)
    sampler.stopped = lambda state: len(state.tokens) >= (2 if state.index == 1 else 8)
    sizes, field = [], sampler.dit.guided
    sampler.dit.guided = lambda z, *more: (sizes.append(len(z)), field(z, *more))[1]
    states = list(sampler.blocks(["ab", "abcd", "b"]))[-1]
    assert [len(s.tokens) for s in states] == [8, 2, 8] and sizes == [3, 3] + [2] * 6
    alone = sampler_of(max_new_tokens=8)
    alone.stopped = lambda state: len(state.tokens) >= 8
    for prompt, row in (("ab", 0), ("b", 2)):
        single = list(alone.blocks([prompt], [row]))[-1][0]
        assert single.tokens == states[row].tokens
        close(torch.cat(single.latents), torch.cat(states[row].latents), atol=1e-5, rtol=1e-4)


def test_sample_release_decodes_without_scaling():
    vae = small_vae(scaling_factor=2.0, shifting_factor=0.5)
    z = torch.randn(1, 2, 4)
    for compat, expected in (("none", vae.decoder(z / 2 + 0.5)), ("release", vae.decoder(z))):
        found = Sampler(vae, small_dit(), Letters(), SampleConfig(compat=compat)).decode(z, vae.decoder.trunk.cache(1, 2))
        close(found, expected, atol=1e-5, rtol=1e-4)
