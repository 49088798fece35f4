"The losses of AR, LLaDA and Plaid against plain references in loops, and against what they estimate; in fp64."
import math
from itertools import product

import pytest
import torch
from scipy import stats
from scipy.special import beta as beta_function
from torch.distributions import Categorical, Normal, kl_divergence

from colanb.learn.baseline_losses import baseline_loss, clean_opening, whole_nats
from colanb.measure.baseline_likelihood import text_likelihood
from colanb.model.baselines import NoiseLevels, even_times, make_baseline, mask_tokens, noised, token_evidence
from colanb.config import BaselineConfig, stream
from colanb.model.layers import Times
from precision import assert_same_total, double_precision, redrawn

SHAPE = dict(vocab_size=7, width=16, layers=2, heads=2, intermediate=12)


@pytest.fixture(autouse=True)
def double():
    with double_precision(): yield


def make(family, **changes):
    "An untrained model, every parameter drawn again."
    return redrawn(make_baseline(BaselineConfig(family=family, **SHAPE | changes)), family)


def batch(b=4, l=8):
    ids = torch.randint(0, 7, (b, l), generator=stream("ids"))
    valid = torch.ones(b, l, dtype=torch.bool)
    valid[1, 6:], valid[2, 3:] = False, False
    return ids, valid


def reference_target(valid, share, generator):
    "Which tokens are to be predicted: all, or those behind a clean opening."
    target = valid.clone()
    if not share: return target
    chosen, part = torch.rand(2, len(valid), 1, generator=generator)
    for i in range(len(valid)):
        opening = int(part[i] * valid[i].sum()) if chosen[i] < share else 0
        target[i, :opening] = False
    return target


def reference_even_times(b, generator):
    "Uniform times, one in each of b equal parts of [0, 1]."
    order, u = torch.randperm(b, generator=generator), torch.rand(b, generator=generator)
    return [(int(order[i]) + u[i].item()) / b for i in range(b)]


def network(model, x, time=None, sees=None, clean=None):
    "Output distribution of one sequence (l, c) of inputs; sees: who is visible to whom."
    times = None
    if time is not None:
        rows = torch.nn.functional.silu(model.time(torch.tensor([0.0, time])))
        times = Times(rows, torch.ones(1, 1, dtype=torch.long), clean[None])
    x = model.norm(model.trunk(x[None], torch.arange(len(x)), sees, times))[0]
    weight = model.embedding.weight[:-1] if model.config.tied else model.head.weight
    return Categorical(logits=x @ weight.T)


def assert_same(model, found, total):
    torch.testing.assert_close(found.parts["nats"], total.detach(), rtol=1e-10, atol=1e-12)
    assert_same_total(model, found.total, total)


# ---- left to right ----

def reference_ar(model, ids, valid, rows=slice(None)):
    "-log p of each token behind those before it, each by a pass of its own."
    total, start = torch.zeros(()), model.config.vocab_size
    for i in range(len(ids))[rows]:
        for j in range(ids.shape[1]):
            if not valid[i, j]: continue
            before = torch.tensor([start, *ids[i, :j].tolist()])
            sees = torch.tensor([[column <= row for column in range(j + 1)] for row in range(j + 1)])
            total = total - network(model, model.embedding.weight[before], sees=sees).log_prob(ids[i, j])[j]
    return total / valid.sum()


ARS = [{}, dict(tied=True), dict(norm="layer", kv_heads=1)]


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)], ids=str)
@pytest.mark.parametrize("changes", ARS, ids=str)
def test_ar(changes, rows):
    "The exact loss."
    model, (ids, valid) = make("ar", **changes), batch()
    assert_same(model, baseline_loss(model, ids, valid, stream("loss"), rows), reference_ar(model, ids, valid, rows))


def test_ar_likelihood_of_a_text():
    "All texts of two tokens have probability 1 together; each is what the loss says."
    model = make("ar")
    texts = [list(pair) for pair in product(range(7), repeat=2)]
    found = text_likelihood(model, [[3, 1]] * len(texts), texts)
    assert sum(math.exp(x.value) for x in found) == pytest.approx(1) and {x.se for x in found} == {0.0}
    nats = lambda text: reference_ar(model, torch.tensor([text]), torch.ones(1, len(text)).bool()).item() * len(text)
    assert found[9].value == pytest.approx(nats([3, 1]) - nats([3, 1, *texts[9]]))


# ---- masked diffusion ----

def reference_llada(model, ids, valid, generator, share=0.0, rows=slice(None), counted=False):
    "Masked tokens, each weighed with 1/t, or with length over number of masked ones."
    (b, l), target, total = ids.shape, reference_target(valid, share, generator), torch.zeros(())
    times, score = reference_even_times(b, generator), torch.rand(b, l, generator=generator)
    for i in range(b)[rows]:
        t, places = 1 - times[i], [j for j in range(l) if target[i, j]]
        if counted:
            number = math.ceil(t * len(places))
            hit, weight = sorted(places, key=lambda j: score[i, j].item())[:number], len(places) / max(number, 1)
        else:
            t = 1e-3 + (1 - 1e-3) * t
            hit, weight = [j for j in places if score[i, j] < t], 1 / t
        inputs = torch.tensor([model.config.vocab_size if j in hit else int(ids[i, j]) for j in range(l)])
        text = network(model, model.embedding.weight[inputs], sees=valid[i].expand(l, l))
        for j in hit: total = total - weight * text.log_prob(ids[i])[j]
    return total / target.sum()


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)], ids=str)
@pytest.mark.parametrize("changes", [{}, dict(tied=True), dict(clean_prefix=0.7), dict(clean_prefix=1.0)], ids=str)
def test_llada(changes, rows):
    model, (ids, valid) = make("llada", **changes), batch()
    expected = reference_llada(model, ids, valid, stream("loss"), changes.get("clean_prefix", 0), rows)
    assert_same(model, baseline_loss(model, ids, valid, stream("loss"), rows), expected)


def test_llada_by_the_number_of_masks():
    "The less noisy estimator, used for validation and likelihood."
    model, (ids, valid) = make("llada"), batch()
    found = whole_nats(model, ids, valid, stream("loss")).total
    torch.testing.assert_close(found, reference_llada(model, ids, valid, stream("loss"), counted=True))


@pytest.mark.parametrize("counted", [False, True])
def test_llada_estimates_its_bound(counted):
    "E_t 1/t sum of masked nats, with t integrated out: a set of m of l tokens is masked with weight B(m, l-m+1)."
    model, ids, n = make("llada"), torch.tensor([[2, 5, 1]]), 3000
    exact = 0.0
    with torch.no_grad():
        for masks in product([False, True], repeat=3):
            if not any(masks): continue
            inputs = torch.tensor([7 if hit else token for hit, token in zip(masks, ids[0].tolist())])
            nats = -network(model, model.embedding.weight[inputs]).log_prob(ids[0])[torch.tensor(masks)].sum().item()
            exact += beta_function(sum(masks), 3 - sum(masks) + 1) * nats
        many = ids.expand(n, 3)
        every = torch.ones_like(many, dtype=torch.bool)
        draws = model.nats(many, every, every, stream("draws"), counted=counted).sum(1)
    assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / math.sqrt(n) + 1e-3 * exact and exact > 3


def test_masks_are_as_frequent_as_their_weight_says():
    target = torch.rand(4000, 10, generator=stream("target")) < 0.8
    target[:, 0] = True
    hit, weight = mask_tokens(target, stream("masks"))
    assert not hit[~target].any() and stats.kstest(1 / weight.flatten(), "uniform").pvalue > 1e-3
    assert ((hit * weight).sum(1) / target.sum(1)).mean().item() == pytest.approx(1, abs=0.1)
    hit, weight = mask_tokens(target, stream("masks"), counted=True)
    assert not hit[~target].any()
    torch.testing.assert_close((hit * weight).sum(1), target.sum(1).double())
    counts = torch.bincount(hit[target.all(1)].sum(1), minlength=11)
    assert counts[0] == 0 and stats.chisquare(counts[1:]).pvalue > 1e-3


def test_even_times_and_clean_openings():
    t = even_times(50, stream("even"))
    assert sorted((t * 50).long().tolist()) == list(range(50)) and t.tolist() != sorted(t.tolist())
    valid = torch.arange(9) < torch.randint(1, 10, (3000, 1), generator=stream("length"))
    opening = clean_opening(valid, 0.5, stream("opening"))
    assert torch.equal(valid & ~opening, reference_target(valid, 0.5, stream("opening")))
    assert (valid & ~opening).any(1).all()      # one token at least is to be predicted
    some = sum(1 - 1 / length for length in range(1, 10)) / 9
    assert opening[:, 0].double().mean().item() == pytest.approx(0.5 * some, abs=0.03)


# ---- diffusion of embeddings ----

def reference_levels(model, u):
    "The logSNR with mass u above it, and the density there, by walking through the bins."
    levels, config = model.levels, model.config
    width = (config.logsnr_max - config.logsnr_min) / levels.bins
    roots = [math.sqrt(h) for h in levels.height.tolist()]
    masses = [0.9 * root / sum(roots) + 0.1 / levels.bins for root in roots]
    above = 0.0
    for i, mass in enumerate(masses):
        if u < above + mass or i == levels.bins - 1:
            return config.logsnr_max - (i + (u - above) / mass) * width, mass / width
        above += mass


def reference_plaid(model, ids, valid, generator, share=0.0, rows=slice(None), training=True):
    "Reconstruction at the least noise, KL to N(0, 1) at the most, and SNR/2 times the squared error in between."
    config, (b, l), d = model.config, ids.shape, model.config.d_embed
    target, weight, total = reference_target(valid, share, generator), model.embedding.weight, torch.zeros(())
    table = torch.stack([math.sqrt(d) * row / row.pow(2).sum().sqrt() for row in weight])
    noise, times = torch.randn(2, b, l, d, generator=generator), reference_even_times(b, generator)
    sigmoid = lambda level: 1 / (1 + math.exp(-level))
    at = lambda h, level: Normal(math.sqrt(sigmoid(level)) * h, math.sqrt(sigmoid(-level)))   # q(z|h)
    evidence = lambda z, level: torch.stack([at(row, level).log_prob(z).sum(-1) for row in table], -1)
    def denoised(i, z, level, guess):
        inputs = torch.cat([z, torch.zeros_like(z) if guess is None else guess], -1) if config.self_condition else z
        x = inputs @ model.input.weight.T + model.input.bias
        text = network(model, x, 1 / (1 + math.exp(level / 2)), valid[i].expand(l, l), ~target[i])
        logits = text.logits + evidence(z, level) if config.output_prior else text.logits
        return Categorical(logits=logits).probs @ table
    for i in range(b)[rows]:
        (level, density), h0 = reference_levels(model, times[i]), torch.stack([table[token] for token in ids[i]])
        law, guess = at(h0, level), None
        z = torch.stack([law.mean[j] + law.stddev[j] * noise[0, i, j] if target[i, j] else h0[j] for j in range(l)])
        if i < b // 2 or not training:
            with torch.no_grad(): guess = denoised(i, z, level, None)
        error = (h0 - denoised(i, z, level, guess)) ** 2
        least, most = at(h0, config.logsnr_max), at(h0, config.logsnr_min)
        z_least = least.mean + least.stddev * noise[1, i]
        recognised = Categorical(logits=evidence(z_least, config.logsnr_max))
        for j in range(l):
            if not target[i, j]: continue
            prior = kl_divergence(most, Normal(0.0, 1.0))[j].sum()
            total = total + 0.5 * math.exp(level) * error[j].sum() / density - recognised.log_prob(ids[i])[j] + prior
    return total / target.sum()


PLAIDS = [{}, dict(clean_prefix=0.8), dict(output_prior=False), dict(self_condition=False), dict(schedule="even"),
          dict(logsnr_max=2.0, logsnr_min=-1.5, d_embed=3), dict(norm="layer")]


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)], ids=str)
@pytest.mark.parametrize("changes", PLAIDS, ids=str)
def test_plaid(changes, rows):
    model, (ids, valid) = make("plaid", **dict(d_embed=4) | changes), batch()
    model.levels.height.copy_(torch.rand(64, generator=stream("height")))
    expected = reference_plaid(model, ids, valid, stream("loss"), changes.get("clean_prefix", 0), rows)
    assert_same(model, baseline_loss(model, ids, valid, stream("loss"), rows), expected)


def test_plaid_for_validation():
    "Without gradients every sequence sees its own first guess."
    model, (ids, valid) = make("plaid", d_embed=4), batch()
    with torch.no_grad(): found = whole_nats(model, ids, valid, stream("loss")).total
    torch.testing.assert_close(found, reference_plaid(model, ids, valid, stream("loss"), training=False).detach())


@pytest.mark.parametrize("heights", [None, "random"], ids=["even", "learned"])
def test_plaids_bound_is_tight_for_independent_tokens(heights):
    "For uniform tokens the evidence alone is the perfect denoiser: the bound is log V under any density of levels."
    model, n = make("plaid", d_embed=3, logsnr_max=4.0, logsnr_min=-9.0), 20_000
    if heights: model.levels.height.copy_(torch.rand(64, generator=stream("height")))
    with torch.no_grad():
        model.head.weight.zero_()
        ids = torch.randint(0, 7, (n, 1), generator=stream("uniform"))
        every = torch.ones_like(ids, dtype=torch.bool)
        draws = model.nats(ids, every, every, stream("draws"))
    assert abs(draws.mean().item() - math.log(7)) < 4 * draws.std().item() / math.sqrt(n)
    assert draws.std().item() / math.sqrt(n) < 0.06


def test_evidence_is_the_log_density_up_to_a_constant():
    table = torch.nn.functional.normalize(torch.randn(5, 3, generator=stream("table")), dim=-1) * math.sqrt(3)
    logsnr, h0 = torch.tensor([-2.0, 1.0]), table[torch.tensor([[0, 4], [2, 2]])]
    noise = torch.randn(2, 2, 3, generator=stream("noise"))
    z = noised(h0, noise, logsnr)
    for i, level in enumerate(logsnr.tolist()):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
        assert alpha**2 + sigma**2 == pytest.approx(1) and math.log(alpha**2 / sigma**2) == pytest.approx(level)
        torch.testing.assert_close(z[i], alpha * h0[i] + sigma * noise[i])
        exact = torch.stack([Normal(alpha * row, sigma).log_prob(z[i]).sum(-1) for row in table], -1)
        torch.testing.assert_close(token_evidence(z, table, logsnr)[i].log_softmax(-1), exact.log_softmax(-1))


def test_noise_levels_are_drawn_from_their_density():
    levels = NoiseLevels(BaselineConfig(**SHAPE | dict(family="plaid", logsnr_max=4.0, logsnr_min=-6.0)))
    levels.height.copy_(torch.rand(64, generator=stream("height")))
    logsnr, density = levels.at(torch.rand(20_000, generator=stream("u")))
    assert logsnr.max() <= 4 and logsnr.min() >= -6
    counts = torch.histc(logsnr, 64, -6, 4).flip(0)
    assert stats.chisquare(counts, 20_000 * levels.mass()).pvalue > 1e-3
    assert (1 / density).mean().item() == pytest.approx(10, rel=0.05)      # E 1/p = length of the range


def test_noise_levels_learn_the_mean_square():
    "A bin that is visited k times moves by 1 - 0.9^k towards the mean square seen there; `even` learns nothing."
    for schedule, factor in (("learned", 1), ("even", 0)):
        levels = NoiseLevels(BaselineConfig(**SHAPE | dict(family="plaid", schedule=schedule)))
        width = 18 / 64
        levels.note(torch.tensor([8 - 0.5 * width, 8 - 3.5 * width, 8 - 3.2 * width]), torch.tensor([2.0, 3.0, 5.0]))
        levels.settle()
        expected = torch.ones(64)
        expected[0] += factor * 0.1 * (4 - 1)
        expected[3] += factor * (1 - 0.9**2) * (17 - 1)
        torch.testing.assert_close(levels.height, expected)
        assert levels.seen == []
