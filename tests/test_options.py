"Options beyond the paper against plain references, written as loops."

import math
from statistics import NormalDist

import pytest
import torch
from safetensors.torch import load_file

from colanb.learn import train
from colanb.generate.baselines import make_sampler
from colanb.config import DiTConfig, FlowConfig, RunConfig, SampleConfig, VAEConfig, load_profile, stream
from colanb.text.corpus import Corpus, prepare
from colanb.learn.losses import EVERY, BlockTimes, batch_noise, prior_estimate, refit_loss, stage2_loss, token_codes
from colanb.learn.path import clean_prefix, sample_time
from colanb.model.cola import ColaDLM
from colanb.model.folders import load_model
from colanb.generate.sample import transport_block
from colanb.learn.train import train_vae
from colanb.measure.cost import flops_per_token, training_flops

VAE = VAEConfig(vocab_size=30, d_latent=8, width=32, heads=4, encoder_layers=1, decoder_layers=1, ffn_dim=64)
DIT = DiTConfig(d_latent=8, width=32, heads=4, head_dim=8, layers=2, rope_dim=8, block_size=4, zero_init=False)
TOKENS = dict(output="tokens", prediction="z0")


def batch():
    ids = torch.randint(3, 30, (3, 16), generator=stream("ids"))
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[0, 11:] = False
    return ids, valid


def made(seed=0, **changes):
    torch.manual_seed(seed)
    return ColaDLM(VAE, DIT.replace(**changes))


def drawn(model, ids, flow, place):
    "What a stage-2 loss draws, in its order: latents, noise, times, clean openings."
    generator, s = stream(*place), model.dit.config.block_size
    q = model.vae.encode(ids)
    z0 = q.at(batch_noise(q.mean, len(ids), EVERY, generator))
    z1 = batch_noise(z0, len(ids), EVERY, generator)
    t = sample_time(flow, (len(ids), ids.shape[1] // s), generator).repeat_interleave(s, 1)
    pinned = clean_prefix(flow.clean_prefix, (len(ids), ids.shape[1] // s), s, generator)
    return z0, z1, t.masked_fill(pinned, 0.0), pinned


def block_sight(n, s):
    "Who sees whom: all earlier blocks, and one's own."
    block = torch.arange(n) // s
    return block[:, None] >= block


def block_output(dit, z0, zt, t, row, first):
    "Token distribution and clean latent of one block, by itself against the history before it."
    s = dit.config.block_size
    z = torch.cat([z0[row:row + 1, :first], zt[row:row + 1, first:first + s]], 1)
    at = torch.cat([torch.zeros(1, first), t[row:row + 1, first:first + s]], 1)
    hidden = dit.hidden(z, dit.embed(at), torch.arange(first + s), block_sight(first + s, s))[0, first:]
    logits = hidden @ dit.tokens.logits.weight.T + dit.tokens.logits.bias
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return p.log(), p @ dit.tokens.codes + hidden @ dit.output.weight.T + dit.output.bias


@torch.no_grad()
def test_token_output_and_its_losses_are_plain_sums():
    (ids, valid), flow = batch(), FlowConfig(clean_prefix=0.6, lambda_ce=0.7)
    model = made(**TOKENS)
    loss = stage2_loss(model, ids, valid, flow, stream("loss"), train_vae=False)
    z0, z1, t, pinned = drawn(model, ids, flow, ("loss",))
    zt = (1 - t[..., None]) * z0 + t[..., None] * z1
    error, entropy, count = 0.0, 0.0, 0
    for row in range(len(ids)):
        for first in range(0, 16, 4):
            log_p, guess = block_output(model.dit, z0, zt, t, row, first)
            for i in range(4):
                if not valid[row, first + i] or pinned[row, first + i]: continue
                error += (guess[i] - z0[row, first + i]).square().mean().item()
                entropy -= log_p[i, ids[row, first + i]].item()
                count += 1
    assert pinned.any() and count < int(valid.sum())
    assert loss.parts["fm"].item() == pytest.approx(error / count, rel=1e-4)
    assert loss.parts["ce"].item() == pytest.approx(entropy / count, rel=1e-4)
    assert loss.total.item() == pytest.approx((error + 0.7 * entropy) / count, rel=1e-4)


def test_token_losses_of_parts_of_a_batch_add_up():
    (ids, valid), flow, found = batch(), FlowConfig(clean_prefix=0.6, lambda_ce=0.7, lambda_next=0.3), []
    for parts in ([EVERY], [slice(0, 1), slice(1, 3)]):
        model = made(**TOKENS, next_head=True)
        sum(stage2_loss(model, ids, valid, flow, stream("loss"), rows=rows).total for rows in parts).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_codes_are_the_encoders_means():
    vae = made().vae
    codes = token_codes(vae, 7)
    for token in range(30): torch.testing.assert_close(codes[token], vae.encode(torch.tensor([[token]])).mean[0, 0])


def test_default_has_no_more_parameters():
    assert set(made().dit.state_dict()) < set(made(**TOKENS).dit.state_dict())
    assert {k.split(".")[0] for k in set(made(**TOKENS).dit.state_dict()) - set(made().dit.state_dict())} == {"tokens"}


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2])
def test_next_tokens_are_predicted_from_the_clean_history_alone(patch_size):
    (ids, valid), s, p = batch(), 2, patch_size
    torch.manual_seed(0)
    flow = FlowConfig(lambda_next=0.3)
    model = ColaDLM(VAE.replace(patch_size=p), DIT.replace(next_head=True, block_size=s))
    loss = stage2_loss(model, ids, valid, flow, stream("loss"), train_vae=False)
    q = model.vae.encode(ids)
    z0 = q.at(batch_noise(q.mean, len(ids), EVERY, stream("loss")))
    dit, n, entropy, count = model.dit, 16 // p, 0.0, 0
    for row in range(len(ids)):
        for i in range(n - s):
            seen = (i // s + 1) * s   # up to the end of the latent's own block
            hidden = dit.hidden(z0[row:row + 1, :seen], dit.embed(torch.zeros(1, 1)), torch.arange(seen), block_sight(seen, s))[0, i]
            logits = dit.following.weight @ hidden + dit.following.bias
            for j in range(p):
                place = (i + s) * p + j
                if not valid[row, place]: continue
                entropy -= logits[30 * j:30 * (j + 1)].log_softmax(0)[ids[row, place]].item()
                count += 1
    assert loss.parts["next"].item() == pytest.approx(entropy / count, rel=1e-4)
    assert loss.total.item() == pytest.approx((loss.parts["fm"] + 0.3 * loss.parts["next"]).item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_sampler_on_the_quantile_grid_is_the_plain_loop(eta):
    model = made(**TOKENS)
    dit, s, loc, scale = model.dit.eval(), 4, 1.2, 0.7
    config = SampleConfig(steps=5, grid="quantile", grid_loc=loc, grid_scale=scale, eta=eta, guidance_scale=2.0)
    history, start = torch.randn(2, 8, 8, generator=stream("history")), torch.randn(2, s, 8, generator=stream("start"))
    cache = dit.trunk.cache(2, 16)
    for block in history.split(s, 1):
        dit(block, torch.zeros(2, 1), cache)
        cache.advance(s)
    noises = lambda place: torch.stack([torch.randn(s, 8, generator=stream(item, place)) for item in range(2)])
    none = torch.zeros(2, s, dtype=torch.bool)
    found = transport_block(dit, start, cache, torch.zeros_like(start), none, 2.0, config, noises)
    normal, times = NormalDist(), [1.0]
    for i in range(1, 5): times.append(1 / (1 + math.exp(-loc - scale * normal.inv_cdf(1 - i / 5))))
    times.append(0.0)
    for item in range(2):
        z = start[item:item + 1]
        for i in range(5):
            t, then = times[i], times[i + 1]
            at = torch.cat([torch.zeros(1, 8), torch.full((1, s), t)], 1)
            under = dit(torch.cat([history[item:item + 1], z], 1), at)[:, -s:]
            alone = dit(z, torch.full((1, 1), t))
            v = alone + 2.0 * (under - alone)
            old = z + (1 - t) * v
            fresh = torch.randn(s, 8, generator=stream(item, f"fresh {i} 0"))
            z = (1 - then) * (z - t * v) + then * (math.sqrt(1 - eta**2) * old + eta * fresh)
        torch.testing.assert_close(found[item:item + 1], z, atol=1e-4, rtol=1e-4)


def test_no_fresh_noise_is_euler_and_draws_nothing():
    model = made()
    start, none = torch.randn(1, 4, 8, generator=stream("start")), torch.zeros(1, 4, dtype=torch.bool)
    def refused(place): raise AssertionError(f"noise was asked for: {place}")
    with torch.no_grad():
        found = transport_block(model.dit, start, model.dit.trunk.cache(1, 4), start, none, 1.0, SampleConfig(steps=3, eta=0.0), refused)
        z, times = start, torch.linspace(1, 0, 4).tolist()
        for t, then in zip(times, times[1:]): z = z + (then - t) * model.dit(z, torch.full((1, 1), t))
    torch.testing.assert_close(found, z, atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2])
def test_loss_at_another_block_size_is_that_of_a_dit_with_this_size(size):
    (ids, valid), flow = batch(), FlowConfig(clean_prefix=0.6, lambda_ce=0.7, lambda_next=0.3)
    model, other = (made(**TOKENS, next_head=True, block_size=s) for s in (4, size))
    found = stage2_loss(model, ids, valid, flow, stream("loss"), train_vae=False, block_size=size)
    expected = stage2_loss(other, ids, valid, flow, stream("loss"), train_vae=False)
    assert {k: v.item() for k, v in found.parts.items()} == {k: v.item() for k, v in expected.parts.items()}
    assert found.total != stage2_loss(model, ids, valid, flow, stream("loss"), train_vae=False).total


@pytest.fixture(scope="module")
def trained_vae(tmp_path_factory):
    "A small corpus and a VAE of a few steps."
    place = tmp_path_factory.mktemp("options")
    run = RunConfig.read({
        "name": "options", "data": {"source": "testbed", "level": "micro", "documents": 200, "tokenizer": "word", "seq_len": 32, "packing": "whole"},
        "vae": VAE.model_dump(), "dit": DIT.model_dump(), "flow": {"clean_prefix": 0.5},
        **{stage: {"steps": 10, "batch_size": 4, "lr": 3e-3, "warmup": 2, "log_every": 1, "eval_every": 50, "save_every": 5, "strategy": "fixed"} for stage in ("stage1", "stage2")}})
    prepare(run.data, place / "tokens")
    corpus = Corpus.load(place / "tokens")
    train_vae(run, corpus, place / "vae", 0, device="cpu", scratch=place / "scratch")
    return run, corpus, place / "vae"


class Stopped(Exception):
    "Raised to stop a training."


def test_block_sizes_follow_the_step_and_survive_a_stop(trained_vae, tmp_path, monkeypatch):
    run, corpus, vae = trained_vae
    run, sizes, stop = run.replace(stage2=run.stage2.replace(block_schedule=[(1, 0.4), (2, 0.6)])), [], None
    inner = train.stage2_loss
    def watched(*given, **named):
        if torch.is_grad_enabled():
            if len(sizes) == stop: raise Stopped
            sizes.append(given[7])
        return inner(*given, **named)
    monkeypatch.setattr(train, "stage2_loss", watched)
    train.train_prior(run, corpus, vae, tmp_path / "whole", 0, device="cpu", scratch=tmp_path / "a")
    assert sizes == [1, 1, 1, 1, 2, 2, 4, 4, 4, 4]
    sizes.clear()
    stop = 7
    with pytest.raises(Stopped): train.train_prior(run, corpus, vae, tmp_path / "parts", 0, device="cpu", scratch=tmp_path / "b")
    sizes.clear()
    stop = None
    train.train_prior(run, corpus, vae, tmp_path / "parts", 0, device="cpu", scratch=tmp_path / "b")
    assert sizes == [2, 4, 4, 4, 4]   # from the checkpoint at step 5
    whole, parts = (load_file(tmp_path / name / "dit.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


ALL = {"dit": {**TOKENS, "next_head": True}, "flow": {"lambda_ce": 1.0, "lambda_next": 0.3}, "sample": {"grid": "quantile", "eta": 0.5, "steps": 4, "max_new_tokens": 8}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_options_train_load_and_generate(trained_vae, tmp_path, precision):
    run, corpus, vae = trained_vae
    run = run.replace(dit=run.dit.replace(**ALL["dit"], zero_init=True), flow=run.flow.replace(**ALL["flow"]), sample=run.sample.replace(**ALL["sample"]),
                      stage2=run.stage2.replace(steps=30, precision=precision, block_schedule=[(1, 0.4), (2, 0.6)], ema=0.9))
    seen = {}

    def look(model, step):
        seen.update({name: value.clone() for name, value in model.dit.state_dict().items()})
        return {}

    log = train.train_prior(run, corpus, vae, tmp_path / "model", 0, look, device="cpu", scratch=tmp_path / "scratch")
    losses = log.dropna(subset=["loss"])
    for part, start in (("ce", corpus.tokenizer.vocab_size), ("next", corpus.tokenizer.vocab_size)):
        assert losses[part].iloc[0] == pytest.approx(math.log(start), rel=0.02)
        assert losses[part].iloc[-5:].mean() < losses[part].iloc[0] - 0.3
    assert {"val_ce", "val_next", "val_fm"} <= set(log)
    stored, model, tokenizer = load_model(tmp_path / "model", ema=False)
    _, averaged, _ = load_model(tmp_path / "model")
    assert stored.dit.vocab_size == tokenizer.vocab_size and (stored.sampling().grid_loc, stored.sampling().grid_scale) == (run.flow.loc, run.flow.scale)
    weights, means = model.dit.state_dict(), averaged.dit.state_dict()
    assert set(weights) == set(means) and any(not torch.equal(weights[k], means[k]) for k in weights)
    assert all(torch.equal(seen[k], means[k]) for k in means)    # evaluations are of the averages, and leave the weights as they are
    for each in (model, averaged):
        made = make_sampler(each, tokenizer, stored.sampling()).generate(["", "Once"], [3, 4])
        assert all(torch.isfinite(g.latents).all() and 0 < len(g.latents) for g in made)
    with pytest.raises(ValueError, match="dit_ema"): load_model(vae, ema=True)


def guessing(model):
    "The map of a guess starts at zero; here it says something."
    torch.nn.init.normal_(model.dit.guess.weight, generator=stream("guess"))
    return model


@pytest.mark.parametrize("changes", [{}, TOKENS, dict(skip=True)])
def test_first_guess_is_a_pass_without_gradients_that_the_second_sees(changes):
    (ids, valid), flow = batch(), FlowConfig(clean_prefix=0.6, lambda_ce=0.7 if changes == TOKENS else 0.0)
    model = guessing(made(**changes, self_condition=1.0))
    loss = stage2_loss(model, ids, valid, flow, stream("loss"), train_vae=False)
    z0, z1, t, pinned = (x.detach() for x in drawn(model, ids, flow, ("loss",)))
    zt = (1 - t[..., None]) * z0 + t[..., None] * z1
    per_block = t.unflatten(1, (-1, 4)).amax(-1)   # a block's own time; openings are pinned at 0
    blocks = sample_time_of(model, ids, flow)
    assert (per_block <= blocks + 1e-6).all()
    v = model.dit.velocity(model.dit.packed(z0, zt, blocks, pinned), zt, t)
    guess = (zt - t[..., None] * v).detach()
    raw = model.dit.packed(z0, zt, blocks, pinned, guess=guess)
    error = raw - z0 if changes == TOKENS else model.dit.velocity(raw, zt, t) - (z1 - z0)
    counted = valid & ~pinned
    fm = error.square().mean(-1)[counted].mean()
    torch.testing.assert_close(loss.parts["fm"], fm.detach(), rtol=1e-4, atol=1e-6)
    own = [p for p in model.dit.parameters() if p.requires_grad]
    if changes != TOKENS:
        ours = torch.autograd.grad(loss.total, own, allow_unused=True)
        plain = torch.autograd.grad(fm, own, allow_unused=True)
        for one, other in zip(ours, plain): torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert torch.autograd.grad(stage2_loss(model, ids, valid, flow, stream("loss"), train_vae=False).total, model.dit.guess.weight)[0].abs().max() > 0


def sample_time_of(model, ids, flow):
    "The blocks' times that the loss draws."
    generator, s = stream("loss"), model.dit.config.block_size
    q = model.vae.encode(ids)
    for _ in range(2): batch_noise(q.mean, len(ids), EVERY, generator)
    return sample_time(flow, (len(ids), ids.shape[1] // s), generator)


@torch.no_grad()
def test_share_of_steps_with_a_guess():
    (ids, valid), flow = batch(), FlowConfig()
    model, always, never = (guessing(made(self_condition=p)) for p in (0.3, 1.0, 1e-12))
    losses = [[stage2_loss(m, ids, valid, flow, stream("loss", i), train_vae=False).total.item() for m in (model, always, never)] for i in range(200)]
    assert all(own in (one, other) and one != other for own, one, other in losses)
    share = sum(own == one for own, one, _ in losses) / 200
    assert abs(share - 0.3) < 0.11   # 3.4 standard errors


def test_without_self_condition_nothing_is_drawn_and_nothing_added():
    assert set(made().dit.state_dict()) == set(made(self_condition=0.5).dit.state_dict()) - {"guess.weight"}
    (ids, valid), flow = batch(), FlowConfig()
    plain, never = made(), guessing(made(self_condition=1e-12))
    never.load_state_dict(plain.state_dict(), strict=False)
    one, other = (stage2_loss(m, ids, valid, flow, stream("loss"), train_vae=False).total for m in (plain, never))
    assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_sampler_hands_the_guess_on_from_pass_to_pass(scale):
    model = guessing(made(**TOKENS, self_condition=0.5))
    dit, s = model.dit.eval(), 4
    history, z = torch.randn(2, 8, 8, generator=stream("history")), torch.randn(2, s, 8, generator=stream("start"))
    cache = dit.trunk.cache(2, 12)
    dit(history, torch.zeros(2, 1), cache)
    cache.advance(8)
    config = SampleConfig(steps=3, guidance_scale=scale)
    no_pins = torch.zeros(2, s, dtype=torch.bool)
    found = transport_block(dit, z, cache, torch.zeros_like(z), no_pins, scale, config, lambda place: z)
    guess, lone_guess = None, None
    for t, t_next in ((1.0, 2 / 3), (2 / 3, 1 / 3), (1 / 3, 0.0)):
        at = dit.embed(torch.full((2, 1), t))
        whole = dit.embed(torch.tensor([[0.0] * 8 + [t] * s] * 2))
        under = dit.raw(torch.cat([history, z], 1), whole, torch.arange(12), block_sight(12, s), guess=guess)[:, 8:]
        lone = dit.raw(z, at, torch.arange(s), None, guess=lone_guess)
        guess, lone_guess = under, lone
        clean = lone + scale * (under - lone)
        z = z + (t_next - t) * (z - clean) / t
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)


def test_a_guess_costs_a_forward_pass_in_its_share_of_steps():
    run = RunConfig(name="cost", data=dict(level="micro", seq_len=16), vae=VAE, dit=DIT, flow={}, stage1=dict(steps=1), stage2=dict(steps=1, strategy="fixed"), sample={})
    flops = {p: flops_per_token(run.replace(dit=DIT.replace(self_condition=p)), 30)["stage2"] for p in (0.0, 0.5, 1.0)}
    assert flops[0.5] == pytest.approx((flops[0.0] + flops[1.0]) / 2)
    assert 1.2 < flops[1.0] / flops[0.0] < 1.4   # forward and backward are three forwards; the encoder runs forward alone


def test_all_strategies_with_a_trained_vae_start_from_the_same_dit(trained_vae):
    run, _, vae = trained_vae
    starts = []
    for strategy, weight in (("fixed", 0.1), ("joint", 0.1), ("joint", 0.0), ("interval", 0.1)):
        own = run.replace(stage2=run.stage2.replace(strategy=strategy), flow=run.flow.replace(lambda_ref=weight))
        torch.manual_seed(3)
        _, model = train._prior_model(own, vae, "cpu")
        starts.append(model.dit.state_dict())
        assert (model.reference is None) == (strategy == "fixed" or weight == 0)
        if model.reference is not None:
            assert not any(p.requires_grad for p in model.reference.parameters())
            assert all(p.requires_grad for p in model.vae.encoder.parameters())
    assert all(torch.equal(start[k], starts[0][k]) for start in starts[1:] for k in starts[0])


def estimate_by_blocks(dit, z0, z1, t, solve):
    "The prior's clean latents, a block at a time against its own history, unpacked."
    s, found = dit.config.block_size, torch.zeros_like(z0)
    for row in range(len(z0)):
        for first in range(0, z0.shape[1], s):
            own = slice(first, first + s)
            at = t[row:row + 1, own]
            z = (1 - at[..., None]) * z0[row:row + 1, own] + at[..., None] * z1[row:row + 1, own]
            for k in range(solve):
                now = at * (solve - k) / solve
                v = dit(torch.cat([z0[row:row + 1, :first], z], 1), torch.cat([torch.zeros(1, first), now], 1))[:, first:]
                z = z - (at / solve)[..., None] * v
            found[row, own] = z[0]
    return found


@pytest.mark.parametrize("solve", [1, 3])
@pytest.mark.parametrize("changes", [{}, TOKENS])
def test_refit_is_the_plain_loop_in_loss_and_gradients(changes, solve):
    (ids, valid), flow = batch(), FlowConfig(clean_prefix=0.6)
    model = made(**changes)
    loss = refit_loss(model, ids, valid, flow, stream("loss"), solve)
    with torch.no_grad():
        z0, z1, t, pinned = drawn(model, ids, flow, ("loss",))
        z = estimate_by_blocks(model.dit, z0, z1, t, solve)
    error, right = 0.0, 0
    for row in range(len(ids)):
        logits = model.vae.decode(z[row:row + 1])[0]
        for i in range(16):
            if not valid[row, i]: continue
            error = error - logits[i].log_softmax(0)[ids[row, i]]
            right += int(logits[i].argmax() == ids[row, i])
    plain = error / valid.sum()
    assert pinned.any() and (z - z0).abs().max() > 0.1
    torch.testing.assert_close(loss.total, plain, rtol=1e-4, atol=1e-5)
    assert loss.parts["accuracy"].item() == pytest.approx(right / int(valid.sum()))
    own = list(model.vae.decoder.parameters())
    for one, other in zip(torch.autograd.grad(loss.total, own), torch.autograd.grad(plain, own)):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_refits_of_parts_of_a_batch_add_up():
    (ids, valid), flow, found = batch(), FlowConfig(clean_prefix=0.6), []
    for parts in ([EVERY], [slice(0, 1), slice(1, 3)]):
        model = made()
        sum(refit_loss(model, ids, valid, flow, stream("loss"), 2, rows).total for rows in parts).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_refit_with_a_guess_hands_it_on():
    (ids, valid), flow = batch(), FlowConfig()
    model = guessing(made(**TOKENS, self_condition=0.5))
    z0, z1, t, _ = drawn(model, ids, flow, ("loss",))
    blocks = t.unflatten(1, (-1, 4))[..., 0]
    first = model.dit.packed(z0, (1 - t[..., None]) * z0 + t[..., None] * z1, blocks)
    half = first + (t / 2)[..., None] * ((1 - t[..., None]) * z0 + t[..., None] * z1 - first) / t[..., None]
    second = model.dit.packed(z0, half, blocks / 2, guess=first)
    times = BlockTimes(blocks, blocks, None, valid)
    torch.testing.assert_close(prior_estimate(model.dit, z0, z1, times, 2), second, rtol=1e-4, atol=1e-4)


def plain_refit(folder, corpus, run, steps):
    "A loop of AdamW steps on the decoder alone, without schedules."
    _, model, tokenizer = load_model(folder)
    decoder = list(model.vae.decoder.parameters())
    optimizer = torch.optim.AdamW(decoder, lr=run.refit.lr, betas=run.refit.betas, weight_decay=run.refit.weight_decay, fused=True)
    batches = corpus.batches("train", run.refit.batch_size, 0)
    for step in range(steps):
        ids = batches[step]
        loss = refit_loss(model, ids, ids != tokenizer.pad_id, run.flow, stream(0, "refit", step), run.refit.solve)
        gradients = torch.autograd.grad(loss.total, decoder)
        for p, g in zip(decoder, gradients): p.grad = g
        torch.nn.utils.clip_grad_norm_(decoder, run.refit.clip)
        optimizer.step()
    return model.vae.state_dict()


def test_only_the_decoder_moves_and_as_in_a_plain_loop(trained_vae, tmp_path):
    run, corpus, vae = trained_vae
    run = run.replace(stage2=run.stage2.replace(ema=0.5))
    refit = {"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup": 0, "decay": "none", "log_every": 1, "eval_every": 6, "save_every": 3, "solve": 2}
    seen = []
    def watch(model, step): return seen.append((step, model.vae.decoder.head.weight.sum().item())) or {}
    train.train_prior(run, corpus, vae, tmp_path / "off", 0, watch, device="cpu")
    assert [step for step, _ in seen] == [10]
    log = train.train_prior(run.replace(refit=refit), corpus, vae, tmp_path / "on", 0, watch, device="cpu")
    assert [step for step, _ in seen] == [10, 10] and seen[0][1] != seen[1][1]   # measured once, after the refit
    assert log.step.max() == 16 and log.val_accuracy.notna().sum() == 1
    before, after = tmp_path / "on" / train.BEFORE_REFIT, tmp_path / "on"
    for name in ("vae", "dit", "dit_ema"):   # without the option the same bits
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (tmp_path / "off", before))
        assert all(torch.equal(one[k], other[k]) for k in one)
    averaged, prior = load_file(before / "dit_ema.safetensors"), load_file(after / "dit.safetensors")
    assert all(torch.equal(averaged[k], prior[k]) for k in prior) and not (after / "dit_ema.safetensors").exists()
    old, new = (load_file(folder / "vae.safetensors") for folder in (before, after))
    moved = {k for k in old if not torch.equal(old[k], new[k])}
    assert moved and all(k.startswith("decoder.") for k in moved)
    plain = plain_refit(before, corpus, run.replace(refit=refit), 6)
    for k in new: torch.testing.assert_close(new[k], plain[k], rtol=1e-4, atol=1e-6)
    stored, model, tokenizer = load_model(after)
    torch.testing.assert_close(model.vae.state_dict(), new, rtol=0, atol=0)
    assert stored.refit.steps == 6 and make_sampler(model, tokenizer, stored.sample).generate([""])[0].tokens is not None
    assert len(train.train_prior(run.replace(refit=refit), corpus, vae, after, 0, device="cpu")) == len(log)   # nothing is trained again
    with pytest.raises(ValueError, match="refit.steps was 6, is 7"):
        train.train_prior(run.replace(refit=refit | {"steps": 7}), corpus, vae, after, 0, device="cpu")


def test_a_stopped_refit_goes_on_to_the_same_end(trained_vae, tmp_path, monkeypatch):
    run, corpus, vae = trained_vae
    run = run.replace(refit={"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup": 2, "eval_every": 50, "save_every": 2})
    train.train_prior(run, corpus, vae, tmp_path / "whole", 0, device="cpu")
    inner, calls = train.refit_loss, []
    def watched(*given):
        calls.append(1)
        if len(calls) == 4: raise Stopped
        return inner(*given)
    monkeypatch.setattr(train, "refit_loss", watched)
    with pytest.raises(Stopped): train.train_prior(run, corpus, vae, tmp_path / "parts", 0, device="cpu")
    monkeypatch.setattr(train, "refit_loss", inner)
    train.train_prior(run, corpus, vae, tmp_path / "parts", 0, device="cpu")
    whole, parts = (load_file(tmp_path / name / "vae.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_refit_costs_passes_of_the_prior_and_the_decoder():
    run = RunConfig(name="cost", data=dict(level="micro", seq_len=16), vae=VAE, dit=DIT, flow={}, stage1=dict(steps=1), stage2=dict(steps=1, strategy="fixed"), sample={})
    flops = [flops_per_token(run.replace(refit=dict(steps=1, solve=k)), 30) for k in (1, 2, 3)]
    assert "refit" not in flops_per_token(run, 30)
    one, two, three = (f["refit"] for f in flops)
    assert 0 < two - one == pytest.approx(three - two)   # a forward pass of the prior each
    assert two - one == pytest.approx(flops[0]["stage2"] / 3, rel=0.1)


@pytest.mark.parametrize("name, tokens", [("english", 1024), ("recipe", 52)])
def test_runs_of_a_study_of_switches_cost_the_same(name, tokens):
    "The steps of each run are chosen so that it costs the recipe's training FLOPs, to 1 %."
    runs = [run for _, run in load_profile(name=name).study_runs("switches")]
    first, *others = (training_flops(run, flops_per_token(run, tokens)) for run in runs)
    for run, flops in zip(runs[1:], others): assert flops == pytest.approx(first, rel=0.01), run.model_dump(exclude_defaults=True)
