"A unified prior that is trained on a joint distribution known in closed form, sampled in every direction."
import pytest
import torch

from colanb.config import ODEConfig, SampleConfig, VAEConfig
from colanb.measure.density import flow_log_prob
from colanb.model.vae import TextVAE
from colanb.unified.mmdit import Latents, MMDiT, MMDiTConfig, UnifiedFlowConfig, task_loss
from colanb.unified.multimodal_sample import CachedPrior, PairSampler, UnifiedSampler, image_field, text_field

STRENGTH = 0.9   # correlation of an image entry with its entry of the turned text; the rest is noise
SPREAD = (1 - STRENGTH**2)**0.5
INFORMATION = -2 * torch.tensor(1 - STRENGTH**2).log().item()   # nats: four entries of -log(1 - .9^2) / 2
TURN = torch.tensor([[3**0.5, -1.0], [1.0, 3**0.5]]) / 2        # by 30 degrees


def turned(text):
    "An orthogonal map of a text's two latents to an image's: in the other order, their channels turned."
    return text.flip(1) @ TURN.T


def turned_back(image):
    return image.flip(1) @ TURN


def draw_pairs(count, seed):
    "Text N(0, 1), and the image 0.9 A text + noise, so that both have unit variance."
    text, noise = torch.randn(2, count, 2, 2, generator=torch.Generator().manual_seed(seed))
    return text, STRENGTH * turned(text) + SPREAD * noise


def train(tasks, steps):
    "A small MMDiT, trained on these tasks in turn: 20 ms of one core a step."
    torch.manual_seed(0)
    dit = dict(d_latent=2, width=32, heads=2, head_dim=16, layers=3, rope_dim=4, block_size=2, mlp_ratio=2)
    model = MMDiT(MMDiTConfig(dit=dit, image=dict(d_latent=2, rows=1, columns=2, rope_dim=4, rope_theta=10.0)))
    flow = UnifiedFlowConfig(text=dict(loc=0.0), image=dict(loc=0.0), caption_dropout=0.2)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        task = tasks[step % len(tasks)]
        text, image = draw_pairs(128, step)
        batch = Latents(text, None if task == "t2t" else image)
        optimiser.zero_grad()
        task_loss(model, task, batch, flow, generator).total.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained():
    "On the authors' three tasks."
    return train(["t2t", "t2i", "it2t"], 900)


@pytest.fixture(scope="module")
def joint():
    "On both at their own times."
    return train(["joint"], 600)


def sampler(model):
    return PairSampler(CachedPrior(model), SampleConfig(steps=8, solver="heun", guidance_scale=1.0))


SEEDS = list(range(2000))


def assert_conditional(drawn, mean, name):
    "Means of 100 draws for each of 20 conditions: within .2 of the truth, where .9 is missed without the condition."
    by_condition = drawn.unflatten(0, (20, 100))
    error = (by_condition.mean(1) - mean[::100]).square().mean().sqrt().item()
    ignored = mean.square().mean().sqrt().item()
    spread = by_condition.std(1).mean().item()
    print(f"{name}: error of the mean {error:.3f} (condition ignored: {ignored:.3f}), spread {spread:.3f} (true: {SPREAD:.3f})")
    assert error < 0.2 and ignored > 0.7 and spread == pytest.approx(SPREAD, abs=0.12)


def conditions():
    text, image = draw_pairs(20, 12345)
    return text.repeat_interleave(100, 0), image.repeat_interleave(100, 0)


def test_conditionals_of_a_trained_model(trained):
    text, image = conditions()
    own = sampler(trained)
    assert_conditional(own.image(SEEDS, list(text)), STRENGTH * turned(text), "image given text")
    assert_conditional(own.answer(SEEDS, image, 1), STRENGTH * turned_back(image), "text given image")


def correlation(text, image):
    return torch.corrcoef(torch.stack([turned(text).flatten(), image.flatten()]))[0, 1].item()


def test_pairs_of_a_trained_model(trained):
    "In both orders text and image have the right correlation and about unit variance; drawn apart they have none."
    own = sampler(trained)
    for pair in (own.text_then_image(SEEDS, 1), own.image_then_text(SEEDS, 1)):
        assert correlation(*pair) == pytest.approx(STRENGTH, abs=0.05)
        for z in pair: assert z.mean() == pytest.approx(0, abs=0.1) and z.var() == pytest.approx(1, abs=0.25)
    assert correlation(pair.text, own.image(SEEDS[::-1])) == pytest.approx(0, abs=0.06)


def test_guidance_goes_beyond_the_conditional_mean(trained):
    "Away from the mean of images alone, which is 0."
    text, _ = conditions()
    guided = PairSampler(CachedPrior(trained), SampleConfig(steps=8, solver="heun", guidance_scale=2.0))
    slope = (guided.image(SEEDS, list(text)) * turned(text)).mean() / text.square().mean()
    assert slope > 1.05 * STRENGTH


def test_a_model_of_both_at_once(joint):
    own = sampler(joint)
    text, image = conditions()
    assert_conditional(own.together(SEEDS, 1, text=text).image, STRENGTH * turned(text), "together: image given text")
    assert_conditional(own.together(SEEDS, 1, image=image).text, STRENGTH * turned_back(image), "together: text given image")
    pair = own.together(SEEDS, 1)
    assert correlation(*pair) == pytest.approx(STRENGTH, abs=0.05)


def test_fields_have_the_density_of_the_truth(trained):
    "log p(image | text) - log p(image) is on average the mutual information."
    text, image = draw_pairs(200, 777)
    ode = ODEConfig(method="midpoint", steps=16)
    conditional = flow_log_prob(image_field(trained, text), image, ode).log_prob
    alone = flow_log_prob(image_field(trained), image, ode).log_prob
    gain = (conditional - alone).mean().item()
    print(f"gain {gain:.2f} nats, mutual information {INFORMATION:.2f}")
    assert gain == pytest.approx(INFORMATION, abs=0.5)
    of_text = flow_log_prob(text_field(trained, text, image), text, ode).log_prob
    of_text_alone = flow_log_prob(text_field(trained, text), text, ode).log_prob
    assert (of_text - of_text_alone).mean().item() == pytest.approx(INFORMATION, abs=0.5)


# from tokens and pixels, and back: random weights

@pytest.fixture(scope="module")
def unified():
    torch.manual_seed(0)
    dit = dict(d_latent=6, width=32, heads=4, head_dim=8, layers=3, rope_dim=4, block_size=4, zero_init=False)
    model = MMDiT(MMDiTConfig(dit=dit, image=dict(d_latent=5, rows=2, columns=3, rope_dim=2)))
    shape = dict(width=32, heads=4, encoder_layers=1, decoder_layers=1, ffn_dim=64, init_std=0.3)
    words = TextVAE(VAEConfig(vocab_size=20, d_latent=6, **shape)).eval()
    pixels = TextVAE(VAEConfig(vocab_size=7, d_latent=5, patch_size=4, block_size=None, **shape)).eval()
    return UnifiedSampler(model, words, pixels, SampleConfig(steps=3, guidance_scale=2.0, temperature=0.7))


def ids(length, count, most, seed=0):
    return list(torch.randint(0, most, (count, length), generator=torch.Generator().manual_seed(seed)))


def test_every_use_in_a_batch_and_alone(unified):
    "Pictures of captions, answers, texts and pairs: the same ids, drawn with a temperature, whatever the batch."
    captions = [*ids(8, 2, 20), *ids(12, 1, 20)]
    pictures, questions = ids(24, 3, 7), [*ids(3, 2, 20), *ids(5, 1, 20)]
    uses = {
        "draw": lambda i: unified.draw([5, 6, 7][i], captions[i]).pixels,
        "alone": lambda i: unified.draw([5, 6, 7][i]).pixels,
        "describe": lambda i: unified.describe([5, 6, 7][i], pictures[i], 2, questions[i]).tokens,
        "write": lambda i: unified.write([5, 6, 7][i], 2).tokens,
        "image first": lambda i: unified.both([5, 6, 7][i], 2, "image first", questions[i]).tokens,
        "text first": lambda i: unified.both([5, 6, 7][i], 2, "text first").pixels,
        "together": lambda i: unified.both([5, 6, 7][i], 2, "together").pixels,
    }
    for name, use in uses.items():
        batch = use(slice(0, 3))
        for i in range(3): assert torch.equal(use(slice(i, i + 1))[0], batch[i]), name
        assert not torch.equal(batch[0], batch[1]), name


def test_the_last_picture_that_is_watched_is_the_one_drawn(unified):
    seen = []
    drawn = unified.draw([1, 2], ids(8, 2, 20), on_picture=lambda t, pixels: seen.append((t, pixels)))
    assert [t for t, _ in seen] == pytest.approx([2 / 3, 1 / 3, 0]) and torch.equal(seen[-1][1], drawn.pixels)
    with pytest.raises(ValueError, match=r"captions of \[4, 8\] tokens"):
        unified.draw([1, 2], [*ids(8, 1, 20), *ids(4, 1, 20)], on_picture=lambda t, pixels: None)


def test_what_a_sampler_cannot_use_is_named(unified):
    with pytest.raises(ValueError, match=r"\(1, 5, 5\).*2\*3=6 positions"): unified.describe([1], ids(20, 1, 7), 1)
    with pytest.raises(ValueError, match="6 text latents are not a multiple of dit.block_size=4"): unified.draw([1], ids(6, 1, 20))
    with pytest.raises(ValueError, match="2 seeds for 1"): unified.draw([1, 2], ids(8, 1, 20))
    with pytest.raises(ValueError, match="2 prompts for 1 images"): unified.describe([1], ids(24, 1, 7), 1, ids(3, 2, 20))
    with pytest.raises(ValueError, match="choose from 'text first'"): unified.both([1], 1, "text")
    bare = UnifiedSampler(unified.pairs.prior.model, unified.vae("text"), None)
    with pytest.raises(ValueError, match="image_vae is None"): bare.draw([1])
