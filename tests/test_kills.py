"Short facts against closed forms and loops: each kills mutants that the notebooks miss. Names open with the module."

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from colanb.generate.baselines import make_sampler, shares
from colanb.measure.baseline_likelihood import text_likelihood
from colanb.measure.cost import counted, flops_per_token, model_size, stage_losses, training_flops
from colanb.model.baselines import make_baseline
from colanb.config import BaselineConfig, DiTConfig, FlowConfig, ODEConfig, RunConfig, SampleConfig, VAEConfig, stream
from colanb.text.tokenizer import Tokenizer
from colanb.model.dit import DiT
from colanb.measure.estimators import (
    Estimate, bootstrap_interval, mean_interval, mean_of, paired_difference, rank_correlation, seeds_by_items,
    spearman, wilson,
)
from colanb.learn.losses import (
    batch_noise, decoder_terms, latent_statistics, masked_copy, patch_valid, prior_terms, stage1_loss,
    stage2_loss, with_filler,
)
from colanb.learn.path import clean_prefix, interpolate, path_logsnr, sample_time, time_of_logsnr
from colanb.model.cola import ColaDLM
from colanb.model.layers import Modulation
from colanb.measure.density import (
    MixturePath, carry, draw_probes, flow_log_prob, flow_sample, integrate, row_size, trace_terms,
)
from colanb.measure.likelihood import (
    Conditional, LinearGaussian, Parts, aggregated_log_density, conditional, decompose, each_draw, iwae_at,
    likelihood, log_weights, perplexity,
)
from colanb.measure.text_likelihood import History, TextScorer, price_list
from colanb.generate.sample import (
    BlockField, BlockState, Sampler, begin_states, choose_tokens, encode_prompts, filter_logits, hold_prefix,
    prompt_seeds, renoise, sees_padding, solver_step, solver_table, solver_times, transport_block,
)
from colanb.model.trunk import use
from colanb.release.sampler import ReleaseSampler
from colanb.model.vae import Encoder, Posterior, TextVAE, vae_logsnr

close = torch.testing.assert_close


def flow_matching(*inputs):
    "L_FM (Eq 3.7) alone."
    return prior_terms(*inputs)["fm"]


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    torch.manual_seed(0)


def small_vae(**changes):
    torch.manual_seed(0)
    return TextVAE(
        VAEConfig(
            **dict(
                vocab_size=20,
                d_latent=4,
                width=16,
                heads=2,
                encoder_layers=1,
                decoder_layers=1,
                ffn_dim=32,
                init_std=0.3,
            )
            | changes
        )
    )


def small_dit(**changes):
    torch.manual_seed(1)
    return DiT(
        DiTConfig(
            **dict(d_latent=4, width=16, heads=2, head_dim=8, layers=2, rope_dim=4, block_size=2, zero_init=False)
            | changes
        )
    )


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
    # one time in each of 2000 equal parts, up to rounding at their ends
    if stratified:
        assert (ranks.unique().numel() - 2000) >= -4
    else:
        assert ranks.unique().numel() < 1400  # independent draws leave 1/e of the parts empty
    order = u.flatten().argsort().float()
    assert torch.corrcoef(torch.stack([order, torch.arange(2000.0)]))[0, 1].abs() < 0.1  # in random order
    again = sample_time(config, (50, 40), stream("times"))
    assert torch.equal(again.double(), t)


@pytest.mark.parametrize("schedule", ["uniform", "logit_normal"])
@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_flow_times_stay_between_data_and_noise(monkeypatch, schedule, drawn):
    "The normal quantiles of 0 and 1 are infinite."
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: torch.full(shape, drawn))
    t = sample_time(FlowConfig(schedule=schedule), (2, 3), stream(0))
    assert ((t > 0) & (t < 1)).all()


def test_flow_clean_prefix():
    found = clean_prefix(0.5, (300, 2), 4, stream("prefix")).view(600, 4)
    lengths = found.sum(1)
    assert torch.equal(found, torch.arange(4) < lengths[:, None])  # prefixes
    counts = torch.bincount(lengths, minlength=5)
    assert counts[4] == 0 and abs(counts[0] - 300) < 50 and all(abs(counts[k] - 100) < 40 for k in (1, 2, 3))
    assert clean_prefix(1.0, (3, 2), 2, stream(0)).tolist() == [[True, False, True, False]] * 3
    assert not clean_prefix(1.0, (3, 2), 1, stream(0)).any() and clean_prefix(1.0, (3, 2), 1, stream(0)).shape == (3, 2)


def test_flow_noise_of_some_rows():
    for copies in (1, 2):
        whole = batch_noise(torch.zeros(copies * 5, 3, 2), 5, slice(None), stream("noise"))
        assert torch.equal(whole, torch.randn(copies * 5, 3, 2, generator=stream("noise")))
        part = batch_noise(torch.zeros(copies * 2, 3, 2), 5, slice(1, 3), stream("noise"))
        assert torch.equal(part, torch.cat([whole[5 * c + 1 : 5 * c + 3] for c in range(copies)]))


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
        assert row == old[:first] + [0] * gaps + old[first : 12 - gaps]
        assert seen == before[:first] + [True] * gaps + before[first : 12 - gaps]
        assert gaps < 4 and (first + gaps) % 4 == 0 and first <= 9
        changed += gaps > 0
    # half, less those that are cut at a patch's end
    assert 8 <= changed <= 25
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

WEIGHTS = dict(
    beta=0.3, lambda_mask=0.7, lambda_vae=1.9, lambda_fm=2.3, lambda_ref=1.1, clean_prefix=0.5, mask_ratio=0.4
)


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
        if not mask:
            continue
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
    fm = flow_matching(model.dit, z0, counts, config, generator)
    entropy = normal(q).entropy()[counts].sum() / valid.sum()
    reference = kl_divergence(normal(q), normal(model.reference(ids)))[counts].sum() / valid.sum()
    close(
        loss.total, 1.9 * (parts["reconstruction"] - 0.3 * entropy + 0.7 * parts["mask"]) + 2.3 * fm + 1.1 * reference
    )
    close(loss.parts["reference_kl"], reference.detach()), close(loss.parts["fm"], fm.detach())
    assert not any(part.requires_grad for part in loss.parts.values())
    without = stage2_loss(
        model, ids, valid, FlowConfig(**WEIGHTS | {"lambda_ref": 0.0, "lambda_mask": 0.0}), stream("two")
    )
    assert "reference_kl" not in without.parts
    model.reference = None
    plain = stage2_loss(model, ids, valid, FlowConfig(**WEIGHTS | {"lambda_mask": 0.0}), stream("two"))
    close(
        plain.total,
        1.9 * (plain.parts["reconstruction"] + 0.3 * plain.parts["negative_entropy"]) + 2.3 * plain.parts["fm"],
    )


def test_flow_stage2_with_a_fixed_vae():
    model, ids, valid = example()
    config = FlowConfig(**WEIGHTS)
    loss = stage2_loss(model, ids, valid, config, stream("three"), train_vae=False)
    generator = stream("three")
    q = model.vae.encode(ids)
    z0 = q.at(torch.randn(4, 8, 4, generator=generator)).detach()
    fm = flow_matching(model.dit, z0, valid, config, generator)
    close(loss.total, 2.3 * fm)
    assert set(loss.parts) == {"fm", "mean_sd", "posterior_sd", "logsnr"} and not any(
        part.requires_grad for part in loss.parts.values()
    )
    loss.total.backward()
    assert all(p.grad is None for p in model.vae.parameters()) and any(
        p.grad is not None for p in model.dit.parameters()
    )


@pytest.mark.parametrize("train_vae", [True, False])
def test_flow_rows_add_up(train_vae):
    model, ids, valid = example()
    config = FlowConfig(**WEIGHTS)
    whole = stage2_loss(model, ids, valid, config, stream("rows"), train_vae)
    parts = [
        stage2_loss(model, ids, valid, config, stream("rows"), train_vae, rows) for rows in (slice(0, 1), slice(1, 4))
    ]
    close(sum(part.total for part in parts), whole.total)
    close(sum(part.parts["fm"] for part in parts), whole.parts["fm"])
    gauges = [
        latent_statistics(model.vae.encode(ids[rows]), valid[rows], share)["posterior_sd"]
        for rows, share in ((slice(0, 1), 0.25), (slice(1, 4), 0.75))
    ]
    close(sum(part.parts["posterior_sd"] for part in parts), sum(gauges))


def plain_fm(dit, z0, counts, config, generator, block_times):
    "The flow-matching loss by a loop over sequences and blocks, each under its own clean past."
    (b, n, d), s = z0.shape, dit.config.block_size
    z1 = torch.randn(b, n, d, generator=generator)
    t = sample_time(config, (b, n // s if block_times else 1), generator)
    pinned = (
        clean_prefix(config.clean_prefix, (b, n // s), s, generator)
        if config.clean_prefix
        else torch.zeros(b, n, dtype=torch.bool)
    )
    total = 0.0
    for row in range(b):
        for block in range(n // s):
            at, mine = t[row, block if block_times else 0], slice(block * s, block * s + s)
            times = torch.where(pinned[row, mine], 0.0, at)
            noisy = (1 - times[:, None]) * z0[row, mine] + times[:, None] * z1[row, mine]
            inputs = torch.cat([z0[row, : block * s], noisy])[None]
            velocity = dit(inputs, torch.cat([torch.zeros(block * s), times])[None])[0, -s:]
            # z0 = zt - t v
            if dit.config.prediction == "z0":
                error = noisy - times[:, None] * velocity - z0[row, mine]
            else:
                error = velocity - (z1[row, mine] - z0[row, mine])
            total += error.square().mean(-1)[counts[row, mine] & ~pinned[row, mine]].sum()
    return total / (counts & ~pinned).sum()


@pytest.mark.parametrize("prediction,skip", [("velocity", False), ("velocity", True), ("z0", False)])
@pytest.mark.parametrize("prefix", [0.0, 0.8])
@pytest.mark.parametrize("time_per", ["block", "sequence"])
def test_flow_fm_loss_is_the_loop_over_blocks(prediction, skip, prefix, time_per):
    dit = small_dit(prediction=prediction, skip=skip)
    config = FlowConfig(clean_prefix=prefix, time_per=time_per)
    z0, counts = torch.randn(3, 6, 4, generator=stream("z")), torch.tensor(
        [[True] * 6, [True] * 4 + [False] * 2, [True] * 3 + [False] * 3]
    )
    with torch.no_grad():
        found = flow_matching(dit, z0, counts, config, stream("fm"))
        expected = plain_fm(dit, z0, counts, config, stream("fm"), time_per == "block")
    close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["velocity", "z0"])
@pytest.mark.parametrize("target,noised", [(True, True), (True, False), (False, True), (False, False)])
def test_flow_gradients_into_the_latents(prediction, target, noised):
    "The clean copy never passes a gradient on; the noised one and the target do unless they are detached."
    dit, counts = small_dit(prediction=prediction), torch.ones(2, 4, dtype=torch.bool)
    config = FlowConfig(detach_target=target, detach_noised=noised)
    z0 = torch.randn(2, 4, 4, generator=stream("z")).requires_grad_()
    loss = flow_matching(dit, z0, counts, config, stream("fm"))
    if target and noised and prediction == "z0":
        assert torch.autograd.grad(loss, z0, allow_unused=True)[0] is None
        return
    gradient = torch.autograd.grad(loss, z0, allow_unused=True)[0]
    if target and noised:
        assert gradient is None
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
    # a deterministic latent is always normalised
    close(q.mean, F.layer_norm(q.mean, (4,)), atol=1e-3, rtol=1e-3)
    if normalise:  # a fixed logSNR of a mean that is not normalised is refused
        fixed = small_vae(logsnr=1.5)
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
    vae = small_vae(
        patch_size=3,
        bias=False,
        qk_bias=True,
        qk_norm=False,
        heads=4,
        kv_heads=2,
        post_norm=False,
        decoder_layers=2,
        norm_eps=1e-4,
        norm_affine=False,
        activation="gelu",
        clip_qkv=2.0,
        rope_theta=100.0,
    )
    assert vae.encoder.embedding.num_embeddings == 21 and vae.mask_id == 20
    assert vae.encoder.patch.kernel_size == vae.encoder.patch.stride == (3,)
    assert [len(part.trunk.blocks) for part in (vae.encoder, vae.decoder)] == [1, 2]
    assert (
        vae.decoder.unpatch.weight.shape == (48, 16)
        and vae.decoder.head.weight.shape == (20, 16)
        and vae.decoder.norm.eps == 1e-4
    )
    config = vae.decoder.trunk.config
    assert (config.width, config.heads, config.kv_heads, config.head_dim, config.hidden) == (16, 4, 2, 4, 32)
    assert (config.activation, config.post_norm, config.norm_eps, config.norm_affine, config.clip_qkv) == (
        "gelu",
        False,
        1e-4,
        False,
        2.0,
    )
    assert (config.qk_norm, config.qkv_bias, config.out_bias, config.mlp_bias) == ("none", True, False, False)
    assert (config.rope_dim, config.rope_theta, config.rope_interleaved, config.modulated) == (4, 100.0, False, False)
    assert small_vae().decoder.trunk.config.qk_norm == "width" and small_vae().decoder.trunk.config.out_bias


def test_vae_patches_are_convolved_and_laid_out_again():
    vae = small_vae(patch_size=3)
    x = vae.encoder.embedding(torch.randint(0, 20, (2, 9), generator=stream("ids")))
    weight = vae.encoder.patch.weight  # (out, in, 3)
    expected = torch.stack([sum(x[:, 3 * i + j] @ weight[..., j].T for j in range(3)) for i in range(3)], 1)
    close(vae.encoder.patch(x.mT).mT, expected + vae.encoder.patch.bias)
    outputs = []
    vae.decoder.trunk.register_forward_hook(lambda module, given, out: outputs.append(out))
    found = vae.decode(torch.randn(2, 3, 4))
    # channels, then the tokens of a patch
    rows = vae.decoder.unpatch(outputs[0]).view(2, 3, 16, 3)
    for i in range(3):
        for j in range(3):
            close(found[:, 3 * i + j], vae.decoder.head(vae.decoder.norm(rows[:, i, :, j])))


def test_vae_initialisation():
    vae = small_vae(width=64, ffn_dim=256, init_std=0.1)
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d)):
            weight = module.weight
            assert weight.abs().max() <= 0.3 + 1e-6, name
            if weight.numel() > 4000:
                assert abs(weight.std() - 0.0987) < 0.003, name
                assert weight.max() > 0.25 and weight.min() < -0.25, name
            if getattr(module, "bias", None) is not None:
                assert not module.bias.any(), name
    assert (vae.decoder.norm.weight == 1).all()


@pytest.mark.parametrize("scale,shift", [(2.0, 0.0), (1.0, 0.5), (2.0, 0.5), (1.0, 0.0)])
def test_vae_scaling_and_shift(scale, shift):
    vae, ids = small_vae(scaling_factor=scale, shifting_factor=shift), torch.randint(0, 20, (2, 4))
    raw, q = vae.encoder(ids), vae.encode(ids)
    close(q.mean, (raw.mean - shift) * scale)
    close(q.logvar, raw.logvar + 2 * math.log(scale))
    close(vae.decode(q.mean), vae.decoder(raw.mean))
    with pytest.raises(ValueError, match="5 tokens are not a multiple of patch_size=2"):
        small_vae(patch_size=2).encode(torch.zeros(1, 5, dtype=torch.long))


# dit


def test_dit_readings_of_the_output():
    raw, z = torch.randn(2, 2, 4, 3)
    t = torch.tensor([[0.2, 0.7], [0.0, 1.0]])
    each = t.repeat_interleave(2, 1)[..., None]
    make = lambda **how: DiT.velocity(
        SimpleNamespace(config=SimpleNamespace(**dict(skip=False, prediction="velocity") | how)), raw, z, t
    )
    assert make() is raw
    close(make(prediction="z0"), (z - raw) / each.clamp(min=1e-3))
    # for data of unit variance E[z1 - z0 | zt] = (2t - 1) / c zt, whose error
    # has variance 1 / c, with c the variance of zt
    c = (1 - each) ** 2 + each**2
    close(make(skip=True), (2 * each - 1) / c * z + raw / c.sqrt())


def test_dit_modules():
    dit = small_dit(
        qk_bias=True, rope_theta=50.0, norm_eps=1e-3, mlp_ratio=3, time_dim=8, time_scale=10.0, zero_init=True
    )
    config = dit.trunk.config
    assert (config.width, config.layers, config.heads, config.head_dim, config.hidden) == (16, 2, 2, 8, 48)
    assert (config.modulated, config.zero_modulation, config.norm_eps, config.norm_affine, config.qk_norm) == (
        True,
        True,
        1e-3,
        False,
        "head",
    )
    assert (config.qkv_bias, config.out_bias, config.rope_dim, config.rope_theta, config.rope_interleaved) == (
        True,
        True,
        4,
        50.0,
        True,
    )
    assert (
        dit.norm.eps == 1e-3 and dit.modulation.parts == 2 and dit.time.time_scale == 10.0 and len(dit.time.freqs) == 4
    )
    zero = [m.linear for m in dit.modules() if isinstance(m, Modulation)] + [dit.output]
    assert len(zero) == 4 and not any(p.any() for m in zero for p in m.parameters())
    other = small_dit()
    assert (
        all(m.linear.weight.any() for m in other.modules() if isinstance(m, Modulation))
        and other.output.weight.any()
        and other.output.bias.any()
    )


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_dit_times_of_groups(groups):
    dit = small_dit().eval()
    z, t = torch.randn(2, 6, 4), torch.rand(2, groups)
    close(dit(z, t), dit(z, t.repeat_interleave(6 // groups, 1)), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="4 times do not divide 6 latents"):
        dit(z, torch.rand(2, 4))


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
        with pytest.raises(ValueError, match=f"{wrong} times do not divide 6 latents in blocks of 2"):
            dit.packed(clean, noisy, torch.rand(2, wrong))


@pytest.mark.parametrize("prediction,skip", [("velocity", False), ("velocity", True), ("z0", False)])
def test_dit_guided_is_two_passes(prediction, skip):
    dit = small_dit(prediction=prediction, skip=skip, block_size=3).eval()
    past, z, pinned = (
        torch.randn(3, 6, 4),
        torch.randn(3, 3, 4),
        torch.tensor([[True, False, False], [False] * 3, [True, True, False]]),
    )
    cache, alone = dit.trunk.cache(3, 9), torch.tensor([0, 2])
    with torch.no_grad():
        dit(past, torch.zeros(3, 1), cache)
        cache.advance(6)
        time = dit.tabulate(torch.tensor([0.0, 0.4]))
        for held in (None, pinned):
            given = time._replace(index=torch.ones(3, 1, dtype=torch.long), pinned=held)
            under, single = dit.guided(z, torch.full((3, 1), 0.4), given, cache, alone)
            times = torch.full((3, 3), 0.4) if held is None else torch.where(held, 0.0, 0.4)
            close(
                under,
                dit(torch.cat([past, z], 1), torch.cat([torch.zeros(3, 6), times], 1))[:, 6:],
                atol=1e-5,
                rtol=1e-4,
            )
            close(single, dit(z[alone], times[alone]), atol=1e-5, rtol=1e-4)


def test_dit_tables_are_the_rows_of_the_times():
    dit, t = small_dit(), torch.tensor([0.0, 0.3, 0.9])
    table = dit.tabulate(t)
    close(table.rows, F.silu(dit.time(t)))
    assert table.index.tolist() == [[0]] and table.pinned is None
    assert set(table.tables) == {m for m in dit.modules() if isinstance(m, Modulation)}
    for module, rows in table.tables.items():
        close(rows, module.linear(table.rows))
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
        if row[token] < 0:
            row[token] = row[token] * config.repetition_penalty
        else:
            row[token] = row[token] / config.repetition_penalty
    if config.temperature == 0:
        return row
    row = [x / config.temperature for x in row]
    if 0 < config.top_k < len(row):
        smallest = sorted(row, reverse=True)[config.top_k - 1]
        row = [x if x >= smallest else -math.inf for x in row]
    if config.top_p < 1:
        mass, total = 0.0, sum(math.exp(x) for x in row)
        for token in sorted(range(len(row)), key=lambda i: -row[i]):
            share = math.exp(row[token]) / total
            if mass > config.top_p:
                row[token] = -math.inf
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
    assert choose_tokens(
        logits.half(), torch.tensor([0]), SampleConfig(repetition_penalty=9.0), stream(0)
    ).tolist() == [1, 0]
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
        if first_block != "clean":
            ids = pads + ids if first_block == "left_pad" else ids + pads
        whole = len(ids) // chunk
        latents = -(-len(ids) // patch)
        rest = latents - whole * size
        if rest == size:
            whole, rest = whole + 1, 0
        filled = ids + [11] * (-len(ids) % chunk)
        assert found.blocks[i] == whole and found.pinned[i].tolist() == [j < rest for j in range(size)]
        assert found.offset[i] == (len(ids) - whole * chunk if rest else 0)
        if not ids:
            continue
        expected = vae.encode(torch.tensor([filled])).mean[0]
        close(found.latents[i, : whole * size], expected[: whole * size], atol=1e-5, rtol=1e-4)
        close(found.known[i, :rest], expected[whole * size : whole * size + rest], atol=1e-5, rtol=1e-4)
        assert found.known[i].shape == (size, 4)


def cached(dit, past):
    "A cache with whole blocks of clean latents."
    cache = dit.trunk.cache(len(past), past.shape[1] + dit.config.block_size)
    with torch.no_grad():
        dit(past, torch.zeros(len(past), 1), cache)
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
                times = torch.full((1, 2), 0.75) if held is None else torch.where(held[row : row + 1], 0.0, 0.75)
                history, own = past[row : row + 1, : 2 * count], z[row : row + 1]
                under = dit(torch.cat([history, own], 1), torch.cat([torch.zeros(1, 2 * count), times], 1))[:, -2:]
                alone = dit(own, times)
                close(found[row : row + 1], alone + scale * (under - alone), atol=2e-5, rtol=1e-4)


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
    dit, config = small_dit().eval(), SampleConfig(
        steps=3, first_block=first_block, repaint_rounds=rounds, repaint_m=0.6, solver=solver
    )
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
            close(seen[i][1], hold_prefix(z, known, pinned, times[i + 1], start, config))
    close(found, hold_prefix(z, known, pinned, 0.0, start, config))
    close(again, found)
    assert [t for t, _ in seen] == times[1:] and places == wanted * 2
    if hold:
        close(found[0, 0], known[0, 0])


class Letters(Tokenizer):
    "A tokenizer of letters."

    def __init__(self):
        pass  # no backend

    pad_id, eos_id, vocab_size = 0, 1, 20

    def encode(self, text, special=False):
        return [ord(c) - 95 for c in text]

    def decode(self, ids, skip_special=True):
        return "".join("\n" if i == 19 else chr(i + 95) for i in ids if i > 1 or not skip_special)


def test_sample_streams_and_states():
    draw = lambda generator: torch.rand(3, generator=generator).tolist()
    own, release = (sampler_of(seed=9, compat=compat).noise_stream for compat in ("none", "release"))
    assert draw(own(4, 2)) == draw(stream(9, 4, 2))
    assert draw(own(4, 2, "repaint")) == draw(stream(9, 4, 2, "repaint")) == draw(release(4, 2, "repaint"))
    assert draw(release(4, 2)) == draw(torch.Generator().manual_seed(9 + 4000 + 20_000_000))
    states = begin_states(["a", "b"], None)
    own = [stream("prompt", prompt, 0).initial_seed() for prompt in "ab"]
    assert [(s.index, s.seed, s.offset, s.tokens, s.latents, s.done) for s in states] == [
        (0, own[0], 0, [], [], False),
        (1, own[1], 0, [], [], False),
    ]
    assert prompt_seeds(["b", "a", "b"]) == [own[1], own[0], stream("prompt", "b", 1).initial_seed()]
    assert [(s.index, s.seed, s.offset) for s in begin_states(["a", "b"], [7, 5], [1, 0])] == [(0, 7, 1), (1, 5, 0)]
    with pytest.raises(ValueError, match="1 seeds for 2 prompts"):
        begin_states(["a", "b"], [7])


def sampler_of(**how):
    made = ReleaseSampler if how.get("compat") == "release" else Sampler
    return made(small_vae(), small_dit(), Letters(), SampleConfig(**dict(steps=2, max_new_tokens=5) | how))


def state_of(offset, tokens):
    state = BlockState(0, 0, offset)
    state.tokens, state.latents = list(tokens), [torch.zeros(2, 4)]
    return state


def test_sample_stop_rules():
    sampler, newline, release = sampler_of(), sampler_of(stop_at_newline=True), sampler_of(compat="release")
    given = [[1, 3, 4, 5, 6], [1, 3, 4, 5, 6, 7], [3, 4, 1], [3]]
    assert [sampler.stopped(state_of(1, tokens)) for tokens in given] == [False, True, True, False]
    given = [[19, 3], [3, 19], [19, 19], [19, 3, 4, 19], []]
    assert [newline.stopped(state_of(0, tokens)) for tokens in given] == [False, True, False, True, False]
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
    # one token of the first prompt opens its next block of 2
    prompts = ["abc", "de"]
    made = [
        [len(s.tokens) for s in states] for states in sampler.blocks(prompts, None, lambda k, t, z: seen.append((k, t)))
    ]
    # 5 tokens, and (not in the release) the one of the prompt
    count = 3
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
    states = list(sampler.blocks(["ab", "abcd", "b"], [0, 1, 2]))[-1]
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
    for made, expected in ((Sampler, vae.decoder(z / 2 + 0.5)), (ReleaseSampler, vae.decoder(z))):
        sampler = made(vae, small_dit(), Letters(), SampleConfig(compat=made.compat))
        found = sampler.decode(z, vae.decoder.trunk.cache(1, 2))
        close(found, expected, atol=1e-5, rtol=1e-4)


# likelihood


def test_likelihood_probes():
    z = torch.zeros(2, 3, 2, dtype=torch.float64)
    exact = draw_probes(z, ODEConfig())
    assert exact.shape == (6, 2, 3, 2) and torch.equal(exact.flatten(2)[:, 1], torch.eye(6).double())
    assert torch.equal(exact[:, 0], exact[:, 1])
    normal = draw_probes(z, ODEConfig(divergence="gaussian", probes=3), stream("probes"))
    assert torch.equal(normal, torch.randn(3, 2, 3, 2, generator=stream("probes")).double())
    signs = draw_probes(z, ODEConfig(divergence="rademacher", probes=3), stream("probes"))
    assert torch.equal(signs, normal.sign())


def test_likelihood_traces():
    matrix = torch.randn(3, 3, generator=stream("matrix"))
    z, probes = torch.randn(2, 3), torch.randn(4, 2, 3)
    velocity, terms = trace_terms(lambda z: z @ matrix.T, z, probes)
    close(velocity, z @ matrix.T), close(terms, torch.einsum("pbi,ij,pbj->pb", probes, matrix, probes))
    assert not velocity.requires_grad
    rows = torch.tensor([[3.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 0.0]])  # two coordinates and two integrals
    close(row_size(rows, 2), torch.tensor([[5.0], [2.0]]).sqrt())
    close(row_size(rows / 10, 2), row_size(rows, 2) / 10)


@pytest.mark.parametrize("method,order", [("euler", 1), ("midpoint", 2), ("rk4", 4), ("dopri5", 5)])
@pytest.mark.parametrize("backward", [False, True])
def test_likelihood_solver(method, order, backward):
    "dz/dt = 2 t z from 0 to 1 multiplies by e, and back divides."
    start = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    rate = lambda t, state: (2 * t * state[0], torch.ones(1, 1).double() * 3 * t**2)
    (z, total), calls = integrate(rate, start, ODEConfig(method=method, steps=8, warp=1.5), backward)
    error, bound = abs(float(z[0, 0]) / math.exp(-1 if backward else 1) - 1), {1: 0.3, 2: 0.03, 4: 2e-4, 5: 1e-4}[order]
    assert error < bound and abs(abs(float(total)) - 1) < bound
    assert (total < 0) == backward
    if method != "dopri5":
        assert calls == 8 * order
    if method == "euler":
        times, expected = [(i / 8) ** 1.5 for i in range(9)], 1.0
        if backward:
            times = times[::-1]
        for now, then in zip(times, times[1:]):
            expected *= 1 + (then - now) * 2 * now
        assert float(z[0, 0]) == pytest.approx(expected)


@pytest.mark.parametrize("free", [None, torch.tensor([[True, False, True], [True, True, True]])])
@pytest.mark.parametrize("divergence", ["exact", "rademacher"])
def test_likelihood_of_a_linear_flow(free, divergence):
    "dz/dt = a z: log p(z0) = log N(e^a z0; 0, 1) + a for each coordinate that moves; probes are exact for a diagonal."
    rate, ode = torch.tensor([0.5, -0.3, 1.0]).double(), ODEConfig(
        method="rk4", steps=20, divergence=divergence, probes=3
    )
    z0 = torch.randn(2, 3, dtype=torch.float64)
    moves = torch.ones(2, 3).double() if free is None else free.double()
    found = flow_log_prob(lambda z, t: rate * z, z0, ode, stream("linear"), free)
    z1 = torch.where(moves > 0, rate.exp() * z0, z0)
    close(found.end, z1, atol=1e-6, rtol=1e-6)
    close(found.log_prob, ((Normal(0.0, 1.0).log_prob(z1) + rate) * moves).sum(1), atol=1e-5, rtol=1e-6)
    close(found.se, torch.zeros(2).double(), atol=1e-9, rtol=0)
    assert found.nfe == 80
    back = flow_sample(lambda z, t: rate * z, z1, ode, stream("linear"), free)
    close(back.end, z0, atol=1e-6, rtol=1e-6), close(back.log_prob, found.log_prob, atol=1e-5, rtol=1e-6)


def test_likelihood_error_of_the_trace():
    matrix, z0 = torch.tensor([[0.1, 0.7], [0.2, -0.3]]).double(), torch.randn(3, 2, dtype=torch.float64)
    single = carry(lambda z, t: z @ matrix.T, z0, ODEConfig(divergence="gaussian", probes=1), stream(0), None, False, 0.0)
    assert single.se.isnan().all()
    for probes in (2, 9):
        ode = ODEConfig(method="euler", steps=1, divergence="gaussian", probes=probes)
        e = torch.randn(probes, 3, 2, generator=stream(0)).double()
        traces = torch.einsum("pbi,ij,pbj->pb", e, matrix, e)
        found = carry(lambda z, t: z @ matrix.T, z0, ode, stream(0), None, False, 0.0)
        close(found.se, traces.std(0) / probes**0.5)
        close(found.log_prob, Normal(0.0, 1.0).log_prob(z0 + z0 @ matrix.T).sum(1) + traces.mean(0))


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("sd", [0.5, torch.tensor([0.3, 0.9]).double()])
def test_likelihood_mixture(t, sd):
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.5, -1.0]]).double()
    mixture, z = MixturePath(weights, means, sd), torch.randn(4, 3, dtype=torch.float64)
    variance = (1 - t) ** 2 * torch.as_tensor(sd).double().expand(2) ** 2 + t**2
    logs = torch.stack(
        [w.log() + Normal((1 - t) * m, v.sqrt()).log_prob(z).sum(1) for w, m, v in zip(weights, means, variance)], 1
    )
    close(mixture.log_density(z, t), logs.logsumexp(1)), close(mixture.responsibilities(z, t), logs.softmax(1))
    if t == 0:
        close(mixture.log_density(z), logs.logsumexp(1)), close(mixture.responsibilities(z), logs.softmax(1))
    clean = 0.0
    for k in range(2):  # E[z0 | zt, k] for a Gaussian
        gain = (1 - t) * torch.as_tensor(sd).double().expand(2)[k] ** 2 / variance[k]
        clean = clean + logs.softmax(1)[:, k, None] * (means[k] + gain * (z - (1 - t) * means[k]))
    close(mixture.denoise(z, t), clean)
    if t:
        close(mixture.velocity(z, t), (z - clean) / t)  # z1 - z0 = (zt - z0) / t
    close(mixture.velocity(z, torch.full((4,), t, dtype=torch.float64)), mixture.velocity(z, t))
    drawn, k = mixture.sample(4000, stream("mixture"))
    assert abs((k == 0).double().mean() - 0.3) < 0.03
    for i in range(2):
        close(drawn[k == i].mean(0), means[i], atol=0.08, rtol=0)
        close(drawn[k == i].std(0), torch.as_tensor(sd).double().expand(2)[i].expand(3), atol=0.05, rtol=0)


def test_likelihood_draws_in_chunks():
    x = torch.arange(3)
    for chunk in (1, 2, 4, 100):
        double = lambda part, _: (part.double(), part.double() + 10)
        first, second = each_draw(double, x, 5, stream("x"), chunk, False, "test")
        assert first.tolist() == [[float(i)] * 5 for i in range(3)] and second.tolist() == [
            [i + 10.0] * 5 for i in range(3)
        ]
    counter = iter(range(100))
    count = lambda part, _: (torch.tensor([float(next(counter)) for _ in part]),)
    (numbered,) = each_draw(count, x, 2, stream("x"), 2, False, "test")
    assert numbered.tolist() == [[0, 3], [1, 4], [2, 5]]
    own = lambda row, draw: stream(row, draw)
    draw = lambda part, sources: (torch.cat([torch.rand(1, generator=source) for source in sources]),)
    (drawn,) = each_draw(draw, x, 2, own, 4, False, "test", first=7)
    for row in range(3):
        assert drawn[row].tolist() == [torch.rand(1, generator=stream(row, number)).item() for number in (7, 8)]
    for wrong in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="each must be >= 1"):
            each_draw(lambda part, _: (part,), x, wrong[0], stream("x"), wrong[1], False, "test")
    with pytest.raises(ValueError, match="0 texts"):
        each_draw(lambda part, _: (part,), x[:0], 1, stream("x"), 1, False, "test")


def test_likelihood_estimators():
    log_w = torch.randn(3, 8, dtype=torch.float64)
    w, found = log_w.exp(), likelihood(log_w)
    close(found.elbo, log_w.mean(1)), close(found.elbo_se, log_w.std(1) / 8**0.5)
    close(found.iwae, w.mean(1).log()), close(found.ess, w.sum(1) ** 2 / w.square().sum(1))
    close(found.iwae_se, w.std(1, unbiased=False) / w.mean(1) / 8**0.5)  # delta method
    assert found.samples == 8
    pair = likelihood(log_w[:, :2])
    close(pair.iwae_se, w[:, :2].std(1, unbiased=False) / w[:, :2].mean(1) / 2**0.5)
    single = likelihood(log_w[:, :1])
    assert single.elbo_se.isnan().all() and single.iwae_se.isnan().all()
    close(single.iwae, log_w[:, 0]), close(single.ess, torch.ones(3).double())
    close(iwae_at(log_w, 3), torch.stack([w[:, :3].mean(1).log(), w[:, 3:6].mean(1).log()]).mean(0))
    close(iwae_at(log_w, 1), found.elbo), close(iwae_at(log_w, 8), found.iwae)
    for size in (0, 9):
        with pytest.raises(ValueError, match=f"size={size} must be in 1..8"):
            iwae_at(log_w, size)
    prefix = likelihood(torch.randn(3, 4, dtype=torch.float64))
    rest = conditional(found, prefix)
    expected = Conditional(
        found.elbo - prefix.elbo,
        (found.elbo_se**2 + prefix.elbo_se**2).sqrt(),
        found.iwae - prefix.iwae,
        (found.iwae_se**2 + prefix.iwae_se**2).sqrt(),
    )
    for ours, theirs in zip(rest, expected):
        close(ours, theirs)


def test_likelihood_perplexity():
    found = perplexity([-4.0, -9.0, -2.0], [2, 3, 5])
    assert found.value == pytest.approx(math.exp(15 / 10)) and found.unit == "per token" and found.n == 3
    for wrong in (([-1.0], [1]), ([-1.0, -2.0], [1])):
        with pytest.raises(ValueError, match="need the length of each"):
            perplexity(*wrong)


@pytest.mark.parametrize("width,shift", [(1.0, 0.0), (1.4, 0.3)])
def test_likelihood_linear_gaussian(width, shift):
    "Its parts are those of the joint Gaussian: the log weights are exact, and constant if q is the posterior."
    weight = torch.randn(4, 2, generator=stream("weight"), dtype=torch.float64)
    model = LinearGaussian(weight, 0.5, width, shift)
    x = model.sample(3, stream("x"))
    generator = stream("x")
    code = torch.randn(3, 2, generator=generator).double()
    close(x, code @ weight.T + 0.5 * torch.randn(3, 4, generator=generator).double())
    covariance = torch.linalg.inv(torch.eye(2).double() + weight.T @ weight / 0.25)
    root = torch.linalg.cholesky(covariance)
    center = x @ weight @ covariance / 0.25 + shift * root.sum(1)
    q = torch.distributions.MultivariateNormal(center, scale_tril=width * root)
    z, log_q = model.infer(x, stream("z"))
    close(z, center + width * torch.randn(3, 2, generator=stream("z")).double() @ root.T), close(log_q, q.log_prob(z))
    close(model.log_likelihood(x, z), Normal(z @ weight.T, 0.5).log_prob(x).sum(1))
    close(model.log_prior(x, z, None).log_prob, Normal(0.0, 1.0).log_prob(z).sum(1), atol=1e-2, rtol=0)
    close(
        model.log_prob(x),
        torch.distributions.MultivariateNormal(
            torch.zeros(4).double(), weight @ weight.T + 0.25 * torch.eye(4).double()
        ).log_prob(x),
    )
    true = torch.distributions.MultivariateNormal(center - shift * root.sum(1), covariance)
    close(torch.tensor(model.gap), kl_divergence(q, true)[0].float())
    short = model.prefix(3)
    assert (
        torch.equal(short.weight, weight[:3])
        and (short.noise, short.width, short.shift) == (0.5, width, shift)
        and short.ode is model.ode
    )
    assert (model.prefix(3, width=2.0).width, model.prefix(3, shift=1.0).shift) == (2.0, 1.0)
    whole = model.aggregate()  # x = W z + e, so the center has covariance I - C
    close(whole.mean, shift * root.sum(1))
    close(whole.covariance_matrix, torch.eye(2).double() - covariance + width**2 * covariance)
    weights = log_weights(model, x, 4, stream("w"), chunk=5)
    close(weights.total, weights.reconstruction + weights.prior - weights.posterior)
    assert weights.total.shape == (3, 4) and weights.nfe == 16 and not weights.prior_se.any()
    if (width, shift) == (1.0, 0.0):
        close(weights.total, model.log_prob(x)[:, None].expand(3, 4), atol=2e-2, rtol=0)


def test_likelihood_parts():
    weight = torch.randn(3, 2, generator=stream("weight"), dtype=torch.float64)
    model = LinearGaussian(weight, 0.7, 1.3, 0.2)
    x = model.sample(2, stream("x"))
    aggregate = model.aggregate()
    found = decompose(model, x, lambda part, z, log_q: aggregate.log_prob(z) + 0 * log_q, 3, stream("parts"), chunk=4)
    generator, wanted = stream("parts"), {name: [] for name in Parts._fields}
    rows = torch.arange(2).repeat(3)
    for name in Parts._fields:
        for part in rows.split(4):
            z, log_q = model.infer(x[part], generator)
            if name == "reconstruction":
                wanted[name].append(model.log_likelihood(x[part], z))
            elif name == "rate":
                wanted[name].append(log_q - aggregate.log_prob(z))
            else:
                wanted[name].append(aggregate.log_prob(z) - model.log_prior(x[part], z, generator).log_prob)
    for name in Parts._fields:
        close(getattr(found, name), torch.cat(wanted[name]).view(3, 2).mean(0))
    close(found.elbo, found.reconstruction - found.rate - found.prior_kl)


@pytest.mark.parametrize("weighted", [False, True])
def test_likelihood_of_mixed_posteriors(weighted):
    q, z = Posterior(*(p.double() for p in posterior(0, 5, 3))), torch.randn(7, 3, dtype=torch.float64)
    logs = torch.randn(5, dtype=torch.float64).log_softmax(0) if weighted else None
    each = torch.stack([Normal(m, (v / 2).exp()).log_prob(z).sum(1) for m, v in zip(q.mean, q.logvar)], 1)
    expected = (each + (logs if weighted else -math.log(5))).logsumexp(1)
    for chunk in (3, 500):
        close(aggregated_log_density(q, logs, chunk)(z), expected)


def scorer_of(patch=1, size=2, **ode):
    torch.manual_seed(2)
    vae = small_vae(patch_size=patch).eval()
    return TextScorer(
        ColaDLM(vae, small_dit(block_size=size).eval()),
        ODEConfig(**dict(method="euler", steps=3, divergence="exact") | ode),
    )


def test_likelihood_texts_and_their_spans():
    scorer = scorer_of(patch=2, size=2)
    x = scorer.texts([[3] * 7, [4] * 2, [5] * 9], [2, 0, 4], pad_id=6)
    assert (x.ids.shape, x.length.tolist(), x.known.tolist(), x.chunk, len(x)) == ((3, 12), [7, 2, 9], [2, 0, 4], 4, 3)
    assert x.ids[1].tolist() == [4, 4] + [6] * 10
    own, left = scorer.spans(x)
    assert own.int().tolist() == [[0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]]
    assert left.int().tolist() == [[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    short = x[torch.tensor([1, 0])]
    assert (
        short.ids.tolist() == [[4, 4] + [6] * 6, [3] * 7 + [6]]
        and short.length.tolist() == [2, 7]
        and short.known.tolist() == [0, 2]
        and short.chunk == 4
    )
    assert scorer.texts([[3]]).known.tolist() == [0] and scorer.texts([[3]]).ids.tolist() == [[3, 0, 0, 0]]
    wrong = [
        ([3], [1], "a text of 1 tokens cannot have a prompt of 1"),
        ([3], [-1], "prompt of -1"),
        ([3, 4, 5], [1], "ends inside a patch of 2"),
        ([], [0], "a text of 0 tokens"),
    ]
    for ids, known, said in wrong:
        with pytest.raises(ValueError, match=said):
            scorer.texts([ids], known)
    scorer.vae = small_vae(patch_size=2, block_size=None)
    assert len(scorer.texts([[3] * 3, [3] * 4])) == 2
    for given, known in (([[3] * 4, [3] * 5], None), ([[3] * 4], [2])):
        with pytest.raises(ValueError, match="only whole texts of one number of blocks"):
            scorer.texts(given, known)


def test_likelihood_history_is_the_cache_up_to_a_place():
    dit = small_dit().eval()
    past, z = torch.randn(2, 4, 4), torch.randn(3, 2, 4)
    cache = cached(dit, past)
    with torch.no_grad():
        for rows, seen in (([0, 1, 1], [2, 4, 0]), ([1, 0, 0], [2, 2, 2]), ([0, 0, 1], [0, 0, 0])):
            history = History(cache, torch.tensor(rows), torch.tensor(seen))
            found = dit(z, torch.full((3, 1), 0.4), history)
            for i, (row, n) in enumerate(zip(rows, seen)):
                whole = torch.cat([past[row, :n], z[i]])[None]
                close(
                    found[i : i + 1], dit(whole, torch.tensor([[0.0] * (n // 2) + [0.4]]))[:, n:], atol=1e-5, rtol=1e-4
                )
            assert history.keys.shape[3] == max(seen)


@pytest.mark.parametrize("rows", [1, 512])
def test_likelihood_of_blocks(rows):
    "Every block by itself under its past: densities add up, held latents stay."
    scorer = scorer_of()
    scorer.rows, dit, ode = rows, scorer.dit, scorer.ode
    z = torch.randn(2, 6, 4, generator=stream("z"))
    free = torch.tensor([[True, True, False, True, False, False], [False, False, True, True, False, True]])
    for draw in (False, True):
        made, density = scorer.flow(z, free, stream("probes"), draw)
        expected, ends = torch.zeros(2), z.clone()
        for row in range(2):
            for block in range(3):
                own, past = slice(2 * block, 2 * block + 2), z[row : row + 1, : 2 * block]
                moves = free[row : row + 1, own]
                if not moves.any():
                    continue
                velocity = lambda z, t: dit(
                    torch.cat([past, z], 1), torch.cat([torch.zeros(1, 2 * block), torch.where(moves, t, 0.0)], 1)
                )[:, -2:]
                one = (flow_sample if draw else flow_log_prob)(
                    velocity, z[row : row + 1, own], ode, None, moves[..., None].expand(-1, -1, 4)
                )
                expected[row] += one.log_prob[0]
                if draw:
                    ends[row, own] = one.end[0]
        close(density.log_prob, expected, atol=1e-3, rtol=1e-4), close(made, ends, atol=1e-4, rtol=1e-4)
        close(density.end, made)
        assert density.nfe == 3 and not density.se.any()


def test_likelihood_adds_the_variances_of_blocks():
    scorer = scorer_of(divergence="gaussian", probes=2)
    scorer.rows = 1  # each block draws its own probes
    z, blocks = torch.randn(1, 4, 4), torch.arange(4)[None] // 2
    both = scorer.flow(z, blocks >= 0, stream("probes"))[1]
    generator, variance = stream("probes"), 0.0
    for block in range(2):
        variance += scorer.flow(z, blocks == block, generator)[1].se ** 2
    close(both.se, variance.sqrt(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("known", [[0, 0], [2, 0], [3, 1]])
def test_likelihood_of_texts(known):
    scorer = scorer_of()
    x = scorer.texts([[3, 4, 5, 6, 7], [8, 9]], known)
    own, left = scorer.spans(x)
    z, log_q = scorer.infer(x, stream("z"))
    generator = stream("z")
    q = scorer.vae.encode(x.ids)
    first = q.sample(generator)
    for row, n in enumerate(known):
        # the VAE of this test sees the past only
        if n:
            first[row, :n] = scorer.vae.encode(x.ids[row : row + 1, :n]).mean[0]
        if any(known) and n == 0:
            assert torch.equal(own[row], torch.arange(6) < x.length[row])
    used = own | (torch.arange(6) < x.known[:, None])
    close(z[used], first[used], atol=1e-5, rtol=1e-4)
    rest = torch.zeros(2)
    if left.any():
        noise = torch.randn(z.shape, generator=generator)
        drawn, density = scorer.flow(
            torch.where(left[..., None], noise, torch.where(used[..., None], first, z)), left, generator, draw=True
        )
        close(z[left], drawn[left], atol=1e-4, rtol=1e-4)
        rest = density.log_prob
    close(log_q, rest + (q.log_prob(z) * own).sum(1), atol=1e-3, rtol=1e-4)
    nats = scorer.vae.decode(z).log_softmax(-1)
    expected = [sum(nats[row, i, x.ids[row, i]] for i in range(known[row], int(x.length[row]))) for row in range(2)]
    close(scorer.log_likelihood(x, z), torch.stack(expected), atol=1e-4, rtol=1e-4)
    close(scorer.log_prior(x, z, None).log_prob, scorer.flow(z, own | left, None)[1].log_prob)


def test_likelihood_prices():
    scorer = scorer_of()
    x = scorer.texts([[3, 4, 5, 6], [8, 9, 2, 3]])
    model = ColaDLM(scorer.vae, scorer.dit)
    settings = [dict(method="euler", steps=2), dict(method="euler", steps=4, divergence="rademacher", probes=2)]
    reference = dict(method="midpoint", steps=6)
    z, _ = TextScorer(model).infer(x, stream(5, "cost"))
    price = lambda how: TextScorer(model, ODEConfig(**how)).log_prior(x, z, stream(5, "probes"))
    for given in (reference, None):
        table = price_list(model, x, settings, given, 5, progress=False)
        for row, how in zip(table.itertuples(), settings):
            density = price(how)
            error = (density.log_prob - price(given or how | dict(divergence="exact", probes=1)).log_prob).numpy()
            assert row.bias == pytest.approx(error.mean(), abs=1e-5) and row.error == pytest.approx(
                np.sqrt((error**2).mean()), abs=1e-5
            )
            assert row.se == pytest.approx(float(density.se.mean()), abs=1e-6) and (row.nfe, row.steps, row.texts) == (
                how["steps"],
                how["steps"],
                2,
            )
            assert row.seconds > 0


# estimators


def test_estimators_wilson():
    for correct, n, level in ((0, 5, 0.95), (3, 7, 0.9), (9, 9, 0.99)):
        found, z, p = wilson(correct, n, level), stats.norm.ppf((1 + level) / 2), correct / n
        roots = np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p])  # (p - x)^2 = z^2 x (1 - x) / n
        assert (found.low, found.high) == pytest.approx(tuple(sorted(np.clip(roots.real, 0, 1))), abs=1e-7)
        assert (found.value, found.se, found.n, found.unit) == (
            pytest.approx(p),
            pytest.approx(math.sqrt(p * (1 - p) / n)),
            n,
            "proportion",
        )
    assert wilson(0, 1).value == 0 and wilson(3, 7) == wilson(3, 7, 0.95)
    for wrong in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="need 0 <= correct <= n and n >= 1"):
            wilson(*wrong)


def test_estimators_mean():
    values = [1.0, 4.0, 2.5, 3.0]
    found, theirs = mean_interval(values, 0.9, "nats"), stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(theirs) and found.value == pytest.approx(np.mean(values))
    assert (found.se, found.n, found.unit) == (pytest.approx(stats.sem(values)), 4, "nats")
    assert mean_interval(values) == mean_interval(values, 0.95)
    two = mean_interval([1.0, 3.0])
    assert (two.se, two.high) == (pytest.approx(1.0), pytest.approx(2 + stats.t.ppf(0.975, 1)))
    single = mean_interval([2.0])
    assert (single.value, single.n) == (2.0, 1) and np.isnan([single.low, single.high, single.se]).all()
    pair = paired_difference([3.0, 5.0, 4.0], [1.0, 2.0, 5.0], 0.9, "x")
    assert pair == mean_interval([2.0, 3.0, -1.0], 0.9, "x")
    with pytest.raises(ValueError, match="3 and 2"):
        paired_difference([1, 2, 3], [1, 2])
    for wrong in ([], [math.nan], [math.inf]):
        with pytest.raises(ValueError):
            mean_interval(wrong)


def plain_two_way(y, level):
    "Mean of seeds by items: components whose mean square is no larger than the rest's are pooled (Satterthwaite)."
    (s, i), mean = y.shape, y.mean()
    row, column = y.mean(1), y.mean(0)
    rest = sum((y[a, b] - row[a] - column[b] + mean) ** 2 for a in range(s) for b in range(i)) / ((s - 1) * (i - 1))
    seeds, items = i * ((row - mean) ** 2).sum() / (s - 1), s * ((column - mean) ** 2).sum() / (i - 1)
    kept = [(m, df) for m, df in ((seeds, s - 1), (items, i - 1)) if m > rest]
    parts = kept + [((1 - len(kept)) * rest, (s - 1) * (i - 1))]
    total = sum(m for m, _ in parts)
    df = total**2 / sum(m * m / df for m, df in parts)
    se = math.sqrt(total / (s * i))
    return mean, se, stats.t.ppf((1 + level) / 2, df) * se


def test_estimators_seeds_by_items():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 6))
    flat = noise - noise.mean(1, keepdims=True)
    cases = [
        noise,
        noise + 3 * rng.normal(size=(4, 1)),
        noise + 3 * rng.normal(size=6),
        flat,
        flat - flat.mean(0) + 0.01 * np.arange(6),
        noise + 3 * rng.normal(size=(4, 1)) + 3 * rng.normal(size=6),
    ]
    for y in cases:
        found, (mean, se, half) = seeds_by_items(y, 0.9, "x"), plain_two_way(y, 0.9)
        assert tuple(found) == (
            pytest.approx(mean),
            pytest.approx(mean - half),
            pytest.approx(mean + half),
            pytest.approx(se),
            24,
            "x",
        )
    assert seeds_by_items(noise) == seeds_by_items(noise, 0.95, "proportion")
    same = seeds_by_items(np.ones((2, 3)))
    assert (same.value, same.low, same.high, same.se) == (1, 1, 1, 0)
    for shape in ((1, 4), (4, 1)):
        found = seeds_by_items(np.arange(4.0).reshape(shape))
        assert (found.value, found.n) == (1.5, 4) and np.isnan([found.low, found.high, found.se]).all()
    assert not math.isnan(seeds_by_items(np.arange(4.0).reshape(2, 2)).se)


def test_estimators_bootstraps():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=12), rng.normal(size=12)
    ratio = lambda x, y, axis: (x * y).mean(axis)
    for method in ("BCa", "basic", "percentile"):
        found = bootstrap_interval(
            [a, b], ratio, paired=True, method=method, n_resamples=200, level=0.9, unit="u", rng=3
        )
        theirs = stats.bootstrap(
            [a, b],
            ratio,
            paired=True,
            vectorized=True,
            method=method,
            axis=-1,
            n_resamples=200,
            confidence_level=0.9,
            rng=np.random.default_rng(3),
        )
        assert tuple(found) == (
            pytest.approx((a * b).mean()),
            *theirs.confidence_interval,
            theirs.standard_error,
            12,
            "u",
        )
    mean = lambda x, axis: x.mean(axis)
    theirs = stats.bootstrap([a], mean, axis=-1, n_resamples=2000, method="BCa", rng=np.random.default_rng(0))
    assert bootstrap_interval([a], mean)[1:3] == theirs.confidence_interval
    difference = lambda x, y, axis: x.mean(axis) - y.mean(axis)
    apart = bootstrap_interval([a, b[:7]], difference)  # not paired unless asked for
    assert apart.n == 12 and apart.value == pytest.approx(a.mean() - b[:7].mean())


def test_estimators_ranks():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, size=(2, 3, 8)).astype(float)
    assert rank_correlation(x, y) == pytest.approx([stats.spearmanr(a, b).statistic for a, b in zip(x, y)])
    assert rank_correlation(np.ones(4), np.arange(4.0)) == 0 == rank_correlation(np.arange(4.0), np.ones(4))
    with pytest.raises(ValueError, match="axis must be -1, got 0"):
        rank_correlation(x, y, axis=0)
    u, v = rng.normal(size=(2, 9))
    found = spearman(u, v, 150, 0.9, 5)
    assert found == bootstrap_interval([u, v], rank_correlation, True, "percentile", 150, 0.9, "rho", 5)
    assert spearman(u, v) == spearman(u, v, 2000, 0.95, 0) and found.value == pytest.approx(
        stats.spearmanr(u, v).statistic
    )
    assert spearman(u[:4], v[:4], 50).n == 4
    for wrong, said in (
        ((u[:3], v[:3]), "at least 4 runs, got 3"),
        ((u, v[:5]), "equal lengths, got 9 and 5"),
        ((np.ones(9), v), "constant side"),
        ((u, np.ones(9)), "constant side"),
    ):
        with pytest.raises(ValueError, match=said):
            spearman(*wrong)


def test_estimators_average_and_text():
    parts = [Estimate(1.0, 0.5, 2.0, 0.3, 10, "x"), Estimate(3.0, 2.8, 3.5, 0.4, 20, "x")]
    found = mean_of(parts)
    assert tuple(found) == (
        2.0,
        pytest.approx(2 - math.hypot(0.5, 0.2) / 2),
        pytest.approx(2 + math.hypot(1.0, 0.5) / 2),
        pytest.approx(0.25),
        30,
        "x",
    )
    assert mean_of(parts[:1]) == parts[0]
    with pytest.raises(ValueError, match="no estimate"):
        mean_of([])
    with pytest.raises(ValueError, match=r"different units: \['x', 'y'\]"):
        mean_of([parts[0], parts[1]._replace(unit="y")])
    assert (
        str(parts[0]) == "1.000 x (0.500 to 2.000; n=10)"
        and str(mean_interval([2.0])) == "2.000 (interval unknown; n=1)"
    )


# baselines: sampling, sizes and costs (their losses: test_baseline_objectives.py)


def baseline_of(family, **changes):
    torch.manual_seed(4)
    return make_baseline(
        BaselineConfig(
            **dict(family=family, vocab_size=20, width=16, layers=1, heads=2, intermediate=12, init_std=0.4) | ({"d_embed": 6} if family == "plaid" else {})
            | changes
        )
    ).eval()


def test_baselines_modules():
    for family in ("ar", "llada", "plaid"):
        model = baseline_of(family, kv_heads=1, norm="layer", norm_eps=1e-3, rope_theta=77.0, layers=2)
        config = model.trunk.config
        assert (config.width, config.layers, config.heads, config.kv_heads, config.head_dim, config.hidden) == (
            16,
            2,
            2,
            1,
            8,
            24,
        )
        assert (config.activation, config.modulated, config.norm, config.norm_eps, config.mlp_bias) == (
            "swiglu",
            family == "plaid",
            "layer",
            1e-3,
            False,
        )
        assert (config.rope_dim, config.rope_theta, model.norm.eps, model.exact) == (8, 77.0, 1e-3, family == "ar")
        assert model.head.weight.shape == (20, 16) and model.head.bias is None
        assert model.embedding.weight.shape == ((20, 6) if family == "plaid" else (21, 16))
        weights = torch.cat(
            [
                m.weight.flatten()
                for m in model.trunk.modules()
                if isinstance(m, nn.Linear) and "odulation" not in type(m).__name__
            ]
        )
        assert abs(weights[weights != 0].std() - 0.4) < 0.02
    zero = [m.linear for m in model.modules() if isinstance(m, Modulation)]
    assert zero and not any(p.any() for m in zero for p in m.parameters())
    tied = baseline_of("ar", tied=True)
    assert tied.head is None
    close(tied.logits(torch.ones(1, 1, 16)), tied.norm(torch.ones(1, 1, 16)) @ tied.embedding.weight[:20].T)
    with pytest.raises(ValueError, match="tied=True means nothing for family .plaid."):
        baseline_of("plaid", tied=True)
    assert (
        baseline_of("plaid").input.in_features == 12
        and baseline_of("plaid", self_condition=False).input.in_features == 6
    )


def test_baselines_canvas_and_states():
    sampler = make_sampler(baseline_of("llada"), Letters(), SampleConfig(max_new_tokens=3))
    rows, start, seen = sampler.canvas([[3, 4], [5], []], 2)
    assert rows.tolist() == [[3, 4, 20, 20], [5, 20, 20, 20], [20] * 4] and start.tolist() == [2, 1, 0]
    assert (
        seen.int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]] and sampler.canvas([[3], [4]], 2)[2] is None
    )
    states = begin_states(["a", "b"], None)
    sampler.extend(states, [[3, 4], [5, 1]])
    sampler.extend(states, [[6], [7]])
    assert [s.tokens for s in states] == [[3, 4, 6], [5, 1, 7]] and [s.done for s in states] == [True, True]
    assert [x.shape for x in states[0].latents] == [(2, 0), (1, 0)]
    assert shares(7, 3) == [3, 2, 2] and shares(2, 5) == [1, 1] and shares(6, 3) == [2, 2, 2]
    with pytest.raises(ValueError, match="compat='release'"):
        make_sampler(baseline_of("ar"), Letters(), SampleConfig(compat="release"))
    with pytest.raises(ValueError, match="without a prior"):
        make_sampler(ColaDLM(small_vae()), Letters())


@pytest.mark.parametrize("temperature,penalty", [(0.0, 1.0), (0.0, 1.7), (0.9, 1.0)])
def test_baselines_choices(temperature, penalty):
    sampler = make_sampler(
        baseline_of("ar"), Letters(), SampleConfig(temperature=temperature, repetition_penalty=penalty, seed=5)
    )
    states, logits = begin_states(["a", "b"], [7, 9]), torch.randn(2, 3, 20, generator=stream("logits"))
    states[0].tokens, states[1].tokens = [3, 4, int(logits[0, 0].argmax())], [5]
    found = sampler.choose(states, logits, 2, 1)
    for state, row, mine in zip(states, logits, found):
        close(
            mine, choose_tokens(row, torch.tensor(state.tokens), sampler.config, stream(5, state.seed, 2, 1, "tokens"))
        )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_baselines_ar_text_is_that_of_whole_passes(temperature):
    model = baseline_of("ar")
    sampler = make_sampler(model, Letters(), SampleConfig(max_new_tokens=6, temperature=temperature))
    sampler.stopped = lambda state: len(state.tokens) >= (2 if state.index == 1 else 6)
    prompts = ["abc", "", "e"]
    rounds = [[len(s.tokens) for s in states] for states in sampler.blocks(prompts, [3, 4, 5])]
    assert rounds == [[k, min(k, 2), k] for k in range(1, 7)]
    states = list(sampler.blocks(prompts, [3, 4, 5]))[-1]
    for state, prompt, limit in zip(states, prompts, (6, 2, 6)):
        ids, made = [20, *Letters().encode(prompt)], []
        for k in range(limit):
            with torch.no_grad():
                logits = model(torch.tensor([ids + made]))[0, -1:]
            made += choose_tokens(
                logits, torch.tensor(made, dtype=torch.long), sampler.config, stream(66, state.seed, k, "tokens")
            ).tolist()
        assert state.tokens == made


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("size", [None, 2, 4])
@pytest.mark.parametrize("scale,steps", [(1.0, 2), (2.0, 3)])
def test_baselines_llada_fills_its_masks(remasking, size, scale, steps):
    "Block by block, the surest (or random) open places first, each prompt as if alone."
    model = baseline_of("llada", block_size=size, remasking=remasking)
    config = SampleConfig(max_new_tokens=5, steps=steps, guidance_scale=scale)
    sampler = make_sampler(model, Letters(), config)
    sampler.stopped = lambda state: len(state.tokens) >= (2 if state.index == 1 else 5)
    states = list(sampler.blocks(["abc", "b", "de"], [3, 4, 5]))[-1]
    for state, prompt in zip(states, ("abc", "b", "de")):
        ids = Letters().encode(prompt)
        row = torch.tensor([*ids, *[20] * 5])
        for k, first in enumerate(range(0, 5, size or 5)):
            window = list(range(len(ids) + first, len(ids) + min(first + (size or 5), 5)))
            for i, count in enumerate(shares(len(window), steps)):
                with torch.no_grad():
                    logits = model(row[None])[0]
                    bare = model(torch.tensor([[20] * len(ids) + row[len(ids) :].tolist()]))[0]
                logits = (bare + scale * (logits - bare))[window]
                best = logits.argmax(-1)
                if remasking == "random":
                    sure = torch.rand(len(window), generator=stream(66, state.seed, k, i, "order"))
                else:
                    sure = logits.softmax(-1).amax(-1)
                places = [j for j in range(len(window)) if row[window[j]] == 20]
                for j in sorted(places, key=lambda j: -sure[j])[:count]:
                    row[window[j]] = best[j]
            if state.index == 1 and min(first + (size or 5), 5) >= 2:
                break
        assert state.tokens == row[len(ids) :][: len(state.tokens)].tolist() and len(state.tokens) == (
            min(size or 5, 5) if state.index == 1 else 5
        )


@pytest.mark.parametrize("first_block", ["clean", "repaint"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_baselines_plaid_is_a_loop_over_noise_levels(first_block, scale):
    model = baseline_of("plaid")
    sampler = make_sampler(
        model, Letters(), SampleConfig(max_new_tokens=3, steps=3, guidance_scale=scale, first_block=first_block)
    )
    sampler.stopped = lambda state: True
    states, clean = next(sampler.blocks(["ab", "c"], [3, 4])), first_block == "clean"
    levels = [float(model.levels.at(torch.tensor([u]))[0]) for u in (1.0, 2 / 3, 1 / 3, 0.0)]
    for state, prompt in zip(states, ("ab", "c")):
        ids = Letters().encode(prompt)
        n = len(ids)
        known, seen = (torch.arange(n + 3) < n)[None], torch.ones(1, n + 3, dtype=torch.bool)
        h0 = torch.zeros(1, n + 3, 6)
        h0[0, :n] = model.table()[ids].detach()
        noise = torch.zeros(1, n + 3, 6)
        noise[0, n:].normal_(generator=stream(66, state.seed, "new")), noise[0, :n].normal_(
            generator=stream(66, state.seed, "prompt")
        )
        z, guess = noise, None
        with torch.no_grad():
            for now, then in zip(levels[:-1] + [levels[-1]], levels[1:] + [None]):
                signal, spread = math.sqrt(1 / (1 + math.exp(-now))), math.sqrt(1 / (1 + math.exp(now)))
                z = torch.where(known[..., None], h0 if clean else signal * h0 + spread * noise, z)
                if then is None:
                    break
                level = torch.tensor([now])
                logits = model(z, level, known & clean, seen, guess)
                bare = model(z, level, known & clean, ~known, guess)
                logits = bare + scale * (logits - bare)
                guess = logits.softmax(-1) @ model.table()
                rest = (z - signal * guess) / spread
                z = math.sqrt(1 / (1 + math.exp(-then))) * guess + math.sqrt(1 / (1 + math.exp(then))) * rest
        assert state.tokens == logits[0, n:].argmax(-1).tolist() and state.done


def run_of(**changes):
    shape = dict(
        vae=dict(vocab_size=20, d_latent=4, width=16, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=32),
        data=dict(seq_len=8),
        dit=dict(d_latent=4, width=16, heads=2, head_dim=8, layers=2, rope_dim=4, block_size=2),
    )
    return RunConfig(**dict(name="run") | shape | changes)


def test_baselines_sizes():
    run = run_of()
    size, model = model_size(run, 30), ColaDLM(run.vae.replace(vocab_size=30), run.dit)
    tables = 31 * 16 + 30 * 16 + 30
    assert tuple(size) == (sum(p.numel() for p in model.parameters()) - tables, tables)
    for family, inside in (("ar", 31 * 16 + 30 * 16), ("plaid", 30 * 6 + 30 * 16)):
        rival = run_of(baseline=dict(family=family, width=16, layers=2, heads=2, intermediate=12) | ({"d_embed": 6} if family == "plaid" else {}))
        assert model_size(rival, 30).tables == inside
        assert sum(model_size(rival, 30)) == sum(
            p.numel() for p in make_baseline(rival.baseline.replace(vocab_size=30)).parameters()
        )


def test_baselines_costs():
    run = run_of(stage1=dict(steps=3, batch_size=4), stage2=dict(steps=5, batch_size=2))
    assert counted(lambda: torch.zeros(3, 4) @ torch.zeros(4, 5)) == 120.0
    assert training_flops(run, {"stage1": 10.0, "stage2": 100.0}) == 10 * 3 * 4 * 8 + 100 * 5 * 2 * 8
    for strategy, more, wanted in (
        ("fixed", {}, [("stage1", 1), ("stage2", 1)]),
        ("joint", {}, [("stage1", 1), ("stage2", 1)]),
        ("scratch", {}, [("stage2", 1)]),
        ("interval", dict(interval_joint=1, interval_fixed=3), [("stage1", 1), ("stage2", 0.25), ("stage2", 0.75)]),
    ):
        each = run_of(stage2=dict(strategy=strategy, **more))
        found = stage_losses(each, 20)
        assert [(name, share) for name, share, _, _ in found] == wanted
        learns = [all(p.requires_grad for p in model.vae.parameters()) for _, _, model, _ in found]
        if strategy in ("joint", "interval"):
            assert found[1][2].reference is not None and learns[1]
        if strategy in ("fixed", "interval"):
            assert found[-1][2].reference is None and not learns[-1]
        if strategy == "scratch":
            assert found[-1][2].reference is None
        ids, every = torch.randint(0, 20, (2, 8)), torch.ones(2, 8, dtype=torch.bool)
        work = [
            (name, share, counted(lambda: loss(use(model, "dense"), ids, every, generator=stream(0)).total.backward()))
            for name, share, model, loss in found
        ]
        spent = flops_per_token(each, 20)
        for stage in {name for name, _, _ in work}:
            assert spent[stage] == pytest.approx(sum(s * w for n, s, w in work if n == stage) / 16)
    rival = run_of(
        baseline=dict(family="ar", width=16, layers=1, heads=2, intermediate=12, vocab_size=20),
        stage2=dict(steps=5, batch_size=2),
    )
    assert [(name, share) for name, share, _, _ in stage_losses(rival, 20)] == [("stage2", 1.0)]
    assert training_flops(rival, {"stage2": 7.0}) == 7 * 5 * 2 * 8
    matrices = 16 * 48 + 16 * 16 + 16 * 24 + 12 * 16 + 16 * 20
    attention = 2 * 8 * 16  # scores and their mix over 8 tokens, all channels
    turns = 2 * 16 * 8  # of queries and keys, by a matrix for each head
    assert flops_per_token(rival, 20)["stage2"] == pytest.approx(6 * (matrices + attention) + 4 * turns)


@pytest.mark.parametrize("family", ["ar", "llada", "plaid"])
def test_baselines_likelihood_of_a_text(family):
    model, prompts, texts = baseline_of(family), [[3, 4], []], [[5, 6, 7], [8]]
    found = text_likelihood(model, prompts, texts, draws=6, seed=2)
    for i, (prompt, text, one) in enumerate(zip(prompts, texts, found)):
        ids = torch.tensor([prompt + text]).expand(1 if family == "ar" else 6, -1)
        target = (torch.arange(len(prompt + text)) >= len(prompt)).expand_as(ids)
        with torch.no_grad():
            own = stream(2, f"{text} after {prompt}")
            nats = model.estimate(ids, torch.ones_like(target), target, own).double().sum(1)
        assert one.value == pytest.approx(-float(nats.mean())) and one.tokens == len(text)
        assert one.se == (0.0 if family == "ar" else pytest.approx(float(nats.std()) / math.sqrt(6)))
    with pytest.raises(ValueError, match="2 prompts for 1 texts"):
        text_likelihood(model, prompts, texts[:1])
    with pytest.raises(ValueError, match="text 1 is empty"):
        text_likelihood(model, prompts, [[5], []])
