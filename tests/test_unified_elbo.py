"What one prior gains over two: identities for any encoders, against sums over all pairs, and refusals."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colanb.config import ImageVAEConfig, ODEConfig, RunConfig, stream
from colanb.model.vae import Posterior
from colanb.unified.image_vae import ImageVAE, picture_corpus, picture_ids, pictures_of, train_image_vae
from colanb.unified.scenes import Scenes, scene_entropies
from colanb.unified.unified_elbo import (
    ExactPrior, PairLatents, PairModel, entropy_gaps, every_pair, feature_posterior, information_meter, informations,
    logit_midpoints, null_branch, pair_densities, pair_priors, round_path,
)

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("fixed")

WORLD = Scenes("micro")
PAIRS = every_pair(WORLD)
CAPS = scene_entropies(WORLD)


def latents_of(seed, sd, d_text=2, d_image=3):
    "Random encoders of all pairs."
    text = feature_posterior(PAIRS.text_features, d_text, sd, stream(seed, "text"))
    return PairLatents(PAIRS, text, feature_posterior(PAIRS.image_features, d_image, sd, stream(seed, "image")))


def log_probs(q, z):
    "log q(z | item) of every latent and every item."
    shape = len(z), *q.mean.shape
    return Posterior(q.mean.expand(shape), q.logvar.expand(shape)).log_prob(z[:, None].expand(shape))


def brute_force(latents, z):
    "Log densities of pairs of latents, of both, the caption's and the picture's, by a sum over the pairs."
    z_text, z_image = z.split(latents.split, -1)
    text = log_probs(latents.text, z_text)[:, PAIRS.text]
    image = log_probs(latents.image, z_image)[:, PAIRS.image]
    return [x.logsumexp(-1) - math.log(len(PAIRS.text)) for x in (text + image, text, image)]


# the pairs

def test_pairs_are_those_of_the_world():
    for number in range(0, len(PAIRS.text), 97):
        text, image = PAIRS.captions[PAIRS.text[number]], PAIRS.pictures[PAIRS.image[number]]
        scene = WORLD.scenes[int(PAIRS.text[number]) // 2]
        assert WORLD.judge_caption(text, scene).describes
        assert (image != scene.theme).any() and len(np.unique(image)) == 2
    assert math.log(len(PAIRS.text)) == pytest.approx(CAPS.joint)
    assert math.log(len(PAIRS.captions)) == pytest.approx(CAPS.H_text)
    assert math.log(len(PAIRS.pictures)) == pytest.approx(CAPS.H_image)
    with pytest.raises(ValueError, match="only `micro` is listed"): every_pair(Scenes("micro", partial=True))


@settings(max_examples=5)
@given(st.integers(0, 1000), st.floats(0.1, 1.5))
def test_aggregated_posteriors_are_sums_over_pairs(seed, sd):
    latents = latents_of(seed, sd)
    z = latents.draw(1, stream(seed))[1][::100]
    z_text, z_image = z.split(latents.split, -1)
    both, text, image = brute_force(latents, z)
    torch.testing.assert_close(latents.log_both(z), both)
    torch.testing.assert_close(latents.log_text(z_text), text)
    torch.testing.assert_close(latents.log_image(z_image), image)
    prior = ExactPrior(latents)                                   # conditional mixtures are the joint over the marginal
    torch.testing.assert_close(prior.image_path(z_text).log_density(z_image), both - text)
    torch.testing.assert_close(prior.text_path(z_image).log_density(z_text), both - image)


# U2, U3, U5

@settings(max_examples=4)
@given(st.integers(0, 1000), st.floats(0.1, 1.0))
def test_informations_add_up_below_their_caps(seed, sd):
    found = informations(latents_of(seed, sd), 3, stream(seed, "draws"))
    assert abs(found.gap.value) < 5 * max(found.gap.se, 0.01)
    for part, cap in zip(found, (CAPS.joint, CAPS.H_text, CAPS.H_image, CAPS.information)):
        assert part.value < cap + 5 * max(part.se, 0.01)


def test_ode_densities_are_those_of_the_mixtures():
    latents = latents_of(1, 0.5)
    z = latents.draw(1, stream(1))[1][::60]
    z_text, z_image = z.split(latents.split, -1)
    found = pair_densities(ExactPrior(latents, ODEConfig(steps=32)), z_text, z_image)
    both, text, image = brute_force(latents, z)
    torch.testing.assert_close(found.gain, both - text - image, atol=0.05, rtol=0)
    torch.testing.assert_close(found.gap, torch.zeros_like(both), atol=0.05, rtol=0)
    lopsided = found._replace(image_given=found.image)               # a picture that ignores its caption
    torch.testing.assert_close(lopsided.gap, -found.gain, atol=0.05, rtol=0)


def test_fields_need_round_noise():
    latents = latents_of(0, 0.5)
    uneven = Posterior(latents.text.mean, latents.text.logvar + torch.arange(2))
    with pytest.raises(ValueError, match="noise is the same"): round_path(uneven)
    with pytest.raises(ValueError, match="256 captions"): PairLatents(PAIRS, latents.image, latents.image)


# U4

@given(st.floats(0.02, 0.98))
def test_meter_of_two_gaussians(variance):
    t, weight = logit_midpoints()
    losses = [v / ((1 - t) ** 2 * v + t ** 2) for v in (1.0, variance)]
    assert (weight * (losses[0] - losses[1])).sum().item() == pytest.approx(-0.5 * math.log(variance), abs=2e-3)


@settings(max_examples=3)
@given(st.floats(0.1, 0.9))
def test_meter_on_draws(variance):
    generator = stream("meter", str(variance))
    known = math.sqrt(1 - variance) * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    z0 = known + math.sqrt(variance) * torch.randn(4000, 1, generator=generator, dtype=torch.float64)

    def field(mean, v):
        "Velocity of N(mean, v) on the linear path."
        def velocity(z, t):
            t = t[:, None]
            slope = (t - (1 - t) * v) / ((1 - t) ** 2 * v + t ** 2)
            return -mean + slope * (z - (1 - t) * mean)
        return velocity

    metered = information_meter(field(0.0, 1.0), field(known, variance), z0, generator)
    se = metered.std().item() / len(metered) ** 0.5
    assert abs(metered.mean().item() + 0.5 * math.log(variance)) < 5 * se


# U6, U7

def test_null_branch_notices_what_is_missing():
    drawn = [example.scene for example in WORLD.draw(600, seed=3)]
    assert null_branch(drawn, WORLD).off.abs().max() < 4
    without_red = [scene for scene in drawn if scene.things[0].colour != 0]
    table = null_branch(without_red, WORLD)
    assert table.off["red"] < -4 and table.found["red"] == 0


def test_no_prior_is_below_the_entropy():
    latents = latents_of(2, 0.3)
    x = torch.arange(len(PAIRS.text))
    nats = {}
    for name, prior in pair_priors(latents).items():
        model = PairModel(latents, prior)
        z, log_q = model.infer(x, stream(4))
        nats[name] = log_q - model.log_likelihood(x, z) - model.log_prior(x, z, stream(4)).log_prob
    table = entropy_gaps(WORLD, nats, separate=["two priors"])
    assert not table.below.any() and table.nats["one prior"] < table.nats["two priors"] < table.nats["standard normal"]
    assert entropy_gaps(WORLD, {"too good": nats["one prior"] - 10}).below.all()


# the Image VAE

@given(st.integers(0, 2 ** 32 - 1), st.sampled_from([4, 16, 64]), st.sampled_from([8, 16, 32]))
def test_pixels_come_back_in_their_places(seed, patch_size, side):
    config = ImageVAEConfig(side=side, patch_size=patch_size)
    pictures = np.random.default_rng(seed).integers(10, size=(2, side, side))
    assert (pictures_of(picture_ids(pictures, config), config) == pictures).all()


@pytest.mark.parametrize("size, dtype, value, message", [
    (15, int, 0, "must be"), (16, float, 0, "integers"), (16, bool, 0, "integers"), (16, int, 10, "palette index 10"),
    (16, int, -1, "palette index -1")])
def test_image_vae_refuses_what_is_no_picture(size, dtype, value, message):
    with pytest.raises(ValueError, match=message): picture_ids(np.full((1, 16, size), value, dtype), ImageVAEConfig())


def test_image_vae_has_the_text_vaes_interface():
    torch.manual_seed(0)
    vae = ImageVAE(ImageVAEConfig(width=16, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=16))
    ids = torch.randint(10, (3, 256))
    q = vae.encode(ids)
    logits = vae.decode(q.sample(stream(0)))
    assert logits.shape == (3, 256, 10) and q.kl().shape == (3, 16) and vae.mask_id == 10
    logits.sum().backward()
    assert vae.encoder.patch.places.grad.abs().sum() > 0 and vae.decoder.input.places.grad.abs().sum() > 0
    corpus = picture_corpus(WORLD, 10, vae.config)
    with pytest.raises(ValueError, match="has no section `image`"): train_image_vae(RunConfig(name="x"), corpus, "out", 0)
