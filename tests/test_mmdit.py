"The prior of text and images: who sees whom, what it costs, and that without images it is the DiT."
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from colanb.config import DiTConfig
from colanb.model.dit import DiT
from colanb.model.trunk import use
from colanb.model.visibility import packed_parts
from colanb.unified.mmdit import MMDiT, MMDiTConfig, Packed, TaskSight, UnifiedFlowConfig, draw_pass, Latents, task_loss, visibility_closure

TEXT = dict(d_latent=6, width=32, heads=4, head_dim=8, layers=3, rope_dim=4, block_size=4, zero_init=False)
IMAGE = dict(d_latent=5, rows=2, columns=3, rope_dim=2)
BLOCKS = [slice(0, 4), slice(4, 8), slice(8, 12)]


def config(**changes):
    return MMDiTConfig(dit=TEXT, image=IMAGE).replace(**changes)


def model(**changes):
    "A model with random weights, vectors of segments included."
    torch.manual_seed(0)
    made = MMDiT(config(**changes)).double()
    torch.nn.init.normal_(made.kinds)
    return made


def inputs(task, **changes):
    "What a pass of a task takes, in double precision."
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)
    made = Packed(
        task, noisy=draw(2, 12, 6), t=torch.rand(2, 3, generator=g, dtype=torch.float64), clean=draw(2, 12, 6), image=draw(2, 6, 5),
        image_t=torch.full((2, 1), 0.4, dtype=torch.float64), prompt=draw(2, 3, 6))
    if task != "it2t": made = made._replace(prompt=None)
    if task == "t2t": made = made._replace(image=None, image_t=None)
    if task == "it2t": made = made._replace(image_t=torch.zeros(2, 1, dtype=torch.float64))
    if task == "joint": made = made._replace(clean=None, t=made.t[:, :1])
    return made._replace(**changes)


def influence(network, packed, of, on, block=slice(None)):
    "How much each position of an input changes an output: the largest gradient of a random combination of its numbers."
    given = getattr(packed, on).clone().requires_grad_()
    out = getattr(network.packed(packed._replace(**{on: given})), of)[:, block]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    grad, = torch.autograd.grad((out * weights).sum(), given, allow_unused=True)
    return torch.zeros(given.shape[:2], dtype=out.dtype) if grad is None else grad.abs().amax(-1)


@pytest.mark.parametrize("share", [0, 1 / 3, 1])
@pytest.mark.parametrize("block_size", [1, 4, 12])
def test_without_an_image_it_is_the_dit(share, block_size):
    "The DiT's own weights give its velocities and its gradients."
    torch.manual_seed(0)
    text = DiTConfig(**TEXT).replace(block_size=block_size)
    dit, other = DiT(text), MMDiT(MMDiTConfig(dit=text, image=IMAGE, dual_share=share))
    assert other.load_state_dict(dit.state_dict(), strict=False).unexpected_keys == []
    clean, noisy, t = torch.randn(2, 12, 6), torch.randn(2, 12, 6), torch.rand(2, 12 // block_size)
    wanted, found = dit.packed(clean, noisy, t), other.packed(Packed("t2t", noisy, t, clean)).text
    assert (wanted - found).abs().max() <= 1e-6
    wanted.square().mean().backward()
    found.square().mean().backward()
    of_other = dict(other.named_parameters())
    for name, own in dit.named_parameters(): assert (own.grad - of_other[name].grad).abs().max() <= 1e-6, name


@pytest.mark.parametrize("n,size", [(12, 1), (12, 4), (16, 8), (8, 8)])
def test_text_alone_has_the_visibility_of_the_packed_pass(n, size):
    found = TaskSight("t2t", size, clean=n - size, noisy=n).parts()
    wanted = packed_parts(n, size)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def sees(sight, query, key):
    "Who of one segment reads whom of another over any number of layers."
    names = sight.segments()
    rows, columns = ([i for i, name in enumerate(names) if name == own] for own in (query, key))
    return visibility_closure(sight.mask())[rows][:, columns]


def of_later_blocks(size, n, clean):
    "True where a clean latent is of the noisy latent's block or a later one."
    return torch.arange(clean) // size >= (torch.arange(n) // size)[:, None]


SIGHTS = {
    "t2t": dict(clean=8, noisy=12), "t2i": dict(clean=12, noisy=12, image=6), "it2t": dict(prompt=3, clean=8, noisy=12, image=6)}


@pytest.mark.parametrize("task", SIGHTS)
def test_no_number_of_layers_shows_a_block_to_its_noisy_copy(task):
    sight = TaskSight(task, 4, **SIGHTS[task])
    assert not (sees(sight, "N", "C") & of_later_blocks(4, 12, sight.clean)).any()
    assert (sees(sight, "N", "C") | of_later_blocks(4, 12, sight.clean)).all()   # and all that is earlier is seen
    assert not sees(sight, "N", "N")[:4, 4:].any() and not sees(sight, "C", "N").any() and not sees(sight, "I", "N").any()


@pytest.mark.parametrize("leak", [
    TaskSight("t2i", 4, clean=12, noisy=12, image=6, noisy_sees_image=True),
    TaskSight("it2t", 4, prompt=3, clean=12, noisy=12, image=6, image_sees="clean")], ids=lambda sight: sight.task)
def test_the_two_leaks_leak_everything(leak):
    assert sees(leak, "N", "C").all()


TABLE = {   # the table of the blog: task -> query -> keys; < and = say which blocks
    "t2t": {"C": {"C": "<="}, "N": {"C": "<", "N": "="}},
    "t2i": {"I": {"C": "all", "I": "all"}, "C": {"C": "<="}, "N": {"C": "<", "N": "="}},
    "it2t": {"P": {"P": "all", "I": "all"}, "I": {"P": "all", "I": "all"}, "C": {"P": "all", "I": "all", "C": "<="},
             "N": {"P": "all", "I": "all", "C": "<", "N": "="}},
    "joint": {"I": {"I": "all", "N": "all"}, "N": {"N": "=", "I": "all"}},
}


@pytest.mark.parametrize("task", TABLE)
def test_masks_are_those_of_the_table(task):
    "Written out pair by pair."
    lengths = dict(SIGHTS, joint=dict(noisy=4, image=6))[task]
    sight = TaskSight(task, 4, **lengths)
    places = [(name, i // 4) for name, length in zip("PCNI", sight[2:6]) for i in range(length)]
    rules = {"all": lambda q, k: True, "<=": lambda q, k: k <= q, "<": lambda q, k: k < q, "=": lambda q, k: k == q}
    wanted = [[key in TABLE[task][query] and rules[TABLE[task][query][key]](i, j) for key, j in places] for query, i in places]
    assert sight.mask().tolist() == wanted
    assert sight.segments() == [name for name, _ in places]


@pytest.mark.parametrize("task", ["t2t", "t2i", "it2t"])
def test_gradients_respect_the_order_of_blocks(task):
    network = model()
    for b, own in enumerate(BLOCKS):
        found = influence(network, inputs(task), "text", "clean", own)
        assert (found[:, own.start:] == 0).all() and (found[:, :own.start] > 0).all()
        noisy = influence(network, inputs(task), "text", "noisy", own)
        assert (noisy[:, own] > 0).all() and noisy.gt(0).sum() == 2 * 4


def test_gradients_across_modalities():
    network = model()
    assert (influence(network, inputs("t2i"), "image", "clean") > 0).all()      # the last clean block too
    assert (influence(network, inputs("t2i"), "image", "image") > 0).all()
    assert (influence(network, inputs("t2i"), "image", "noisy") == 0).all()
    assert (influence(network, inputs("t2i"), "text", "image") == 0).all()
    for on in ("image", "prompt"): assert (influence(network, inputs("it2t"), "text", on, BLOCKS[0]) > 0).all()
    assert (influence(network, inputs("it2t"), "image", "prompt") > 0).all()
    for on in ("clean", "noisy"): assert (influence(network, inputs("it2t"), "image", on) == 0).all()
    for of, on in (("text", "image"), ("image", "noisy"), ("text", "noisy"), ("image", "image")):
        assert (influence(network, inputs("joint"), of, on) > 0).all()


def test_leaks_have_gradients():
    "With either switch a noisy block depends on the clean block that it should guess."
    for task, changes in (("t2i", dict(noisy_sees_image=True)), ("it2t", dict(image_sees="clean"))):
        for own in BLOCKS:
            found = influence(model(**changes), inputs(task), "text", "clean", own)
            assert (found[:, own] > 0).all(), (task, own)


def test_a_blind_image_does_not_read_the_prompt():
    found = influence(model(image_sees="nothing"), inputs("it2t"), "image", "prompt")
    assert (found == 0).all()
    assert (influence(model(image_sees="nothing"), inputs("it2t"), "text", "prompt") > 0).all()   # N and C still read it


def test_a_leak_in_one_task_changes_no_other():
    plain, leaky = model(), model(noisy_sees_image=True, image_sees="clean")
    for task in ("t2t", "joint"):
        assert torch.equal(plain.packed(inputs(task)).text, leaky.packed(inputs(task)).text)


def test_a_hidden_caption_leaves_the_image_alone():
    network = model()
    given = inputs("t2i", hidden=torch.tensor([True, False]))
    found = influence(network, given, "image", "clean")
    assert (found[0] == 0).all() and (found[1] > 0).all()
    alone = network.hidden(None, network.image_stream(given.image, network.embed(given.image_t))).image
    image = network.packed(given).image
    assert (image[0] - alone[0]).abs().max() < 1e-12 and (image[1] - alone[1]).abs().max() > 1e-3
    text = network.packed(given).text
    assert (text - network.packed(inputs("t2i")).text).abs().max() < 1e-12


def test_noise_in_the_sequence_changes_nothing_for_the_image():
    network = model()
    with_n, without = inputs("t2i"), inputs("t2i", noisy=None, t=None)
    assert (network.packed(with_n).image - network.packed(without).image).abs().max() < 1e-12
    assert network.packed(without).text is None


def test_samples_do_not_see_each_other():
    network = model()
    for task in ("t2t", "t2i", "it2t", "joint"):
        both = inputs(task)
        one = Packed(task, *(x if x is None else x[:1] for x in both[1:]))
        for of_both, of_one in zip(network.packed(both), network.packed(one)):
            assert of_both is None or (of_both[:1] - of_one).abs().max() < 1e-12


def test_a_time_for_each_latent_is_a_time_for_each_block():
    network = model()
    for task in ("t2t", "t2i", "it2t", "joint"):
        fine = inputs(task)
        fine = fine._replace(t=fine.t.repeat_interleave(12 // fine.t.shape[1], 1))
        assert (network.packed(fine).text - network.packed(inputs(task)).text).abs().max() < 1e-12


def test_positions_count():
    "Turning the picture, or moving its latents, is seen."
    network = model()
    given = inputs("it2t")
    moved = given._replace(image=given.image.flip(1))
    assert (network.packed(given).text - network.packed(moved).text).abs().max() > 1e-3


# parameters and operations

@pytest.mark.parametrize("share,ratio", [(0, 1), (1 / 3, 4 / 3), (1, 2)])
def test_parameters_of_the_layers(share, ratio):
    c, layers = TEXT["width"], TEXT["layers"]
    # qkv and out, MLP with biases, modulation with biases, weights and biases of the norms of queries and keys
    block = 4 * c**2 + (8 * c**2 + 5 * c) + (6 * c**2 + 6 * c) + 4 * TEXT["head_dim"]
    found = sum(p.numel() for p in model(dual_share=share).trunk.blocks.parameters())
    assert found == pytest.approx(ratio * layers * block, rel=1e-12)


def operations(share, layers):
    network = use(model(dual_share=share, dit=dict(TEXT, layers=layers)).float(), backend="dense")   # the fused kernel is not counted
    given = Packed("t2i", *(x if x is None else x.float() for x in inputs("t2i")[1:]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter: network.packed(given)
    return counter.get_total_flops()


def test_operations_of_the_layers():
    "Two a weight and position; modulation for each distinct time; attention over all pairs."
    counts = {share: operations(share, 3) for share in (0, 1 / 3, 1)}
    assert len(set(counts.values())) == 1, counts
    c, positions, times, samples = TEXT["width"], 12 + 12 + 6, 1 + 2 * 3 + 2, 2
    layer = 2 * samples * positions * 12 * c**2 + 2 * times * 6 * c**2
    # queries and keys are rotated by a matrix in each head, and the kernel multiplies twice by all pairs
    rotation = 2 * 2 * samples * positions * c * TEXT["head_dim"]
    attention = 4 * samples * positions**2 * c
    assert operations(1 / 3, 6) - counts[1 / 3] == 3 * (layer + rotation + attention)


# what is refused

@pytest.mark.parametrize("task,changes,message", [
    ("t2t", dict(image=torch.zeros(2, 6, 5, dtype=torch.float64)), "image means nothing for task 't2t'"),
    ("t2i", dict(image=None), "needs image"), ("t2i", dict(noisy=None), "noisy and t come together"),
    ("t2i", dict(prompt=torch.zeros(2, 3, 6, dtype=torch.float64)), "prompt means nothing"),
    ("joint", dict(clean=torch.zeros(2, 12, 6, dtype=torch.float64)), "clean means nothing"),
    ("it2t", dict(image=torch.zeros(2, 4, 5, dtype=torch.float64)), r"\(2, 4, 5\).*2\*3=6 positions"),
    ("it2t", dict(image=torch.zeros(2, 6, 6, dtype=torch.float64)), "6 channels: image.d_latent=5"),
    ("it2t", dict(prompt=torch.zeros(2, 3, 5, dtype=torch.float64)), r"prompt \(2, 3, 5\): text latents are \(b, n, 6\)"),
    ("t2t", dict(t=torch.zeros(2, 5, dtype=torch.float64)), "5 times do not divide 12"),
    ("t2t", dict(clean=torch.zeros(2, 8, 6, dtype=torch.float64)), "differ in shape"),
    ("t2i", dict(image_t=torch.zeros(2, 6, dtype=torch.float64)), r"image_t \(2, 6\)"),
    ("t2i", dict(hidden=torch.zeros(3, dtype=torch.bool)), "3 samples"),
    ("t2t", dict(task="i2t"), "task='i2t': choose from t2t, t2i, it2t, joint")])
def test_what_does_not_fit_is_named(task, changes, message):
    with pytest.raises(ValueError, match=message): model().packed(inputs(task)._replace(**changes))


def test_text_must_be_whole_blocks():
    ten = torch.zeros(2, 10, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="10 text latents are not a multiple of dit.block_size=4"):
        model().packed(inputs("t2t", clean=ten, noisy=ten, t=torch.zeros(2, 5, dtype=torch.float64)))


def test_a_model_of_text_alone_takes_no_image():
    network = model(image=None)
    assert network.packed(inputs("t2t")).text.shape == (2, 12, 6)
    with pytest.raises(ValueError, match="model of text alone"): network.packed(inputs("t2i"))


@pytest.mark.parametrize("changes,message", [
    (dict(dual_share=1.5), "dual_share=1.5: must be >= 0 and <= 1"), (dict(image_sees="all"), "choose from prompt, nothing, clean"),
    (dict(dit=dict(TEXT, prediction="z0")), "dit.prediction='z0'"), (dict(dit=dict(TEXT, rope_dim=6)), "10 rotated channels"),
    (dict(image=dict(IMAGE, rows=0)), "image.rows=0: must be >= 1"), (dict(images=None), "did you mean 'image'")])
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message): config(**changes)


# training

def test_times_are_drawn_by_each_modality_s_own_schedule():
    flow = UnifiedFlowConfig(text=dict(loc=1.5, scale=0.5), image=dict(loc=-1.0, scale=0.8))
    batch = Latents(torch.randn(4000, 8, 6), torch.randn(4000, 6, 5))
    network = model().float()
    drawn = draw_pass(network, "t2i", batch, flow, torch.Generator().manual_seed(0)).packed
    for t, loc, scale in ((drawn.t, 1.5, 0.5), (drawn.image_t, -1.0, 0.8)):
        assert t.logit().mean() == pytest.approx(loc, abs=0.03) and t.logit().std() == pytest.approx(scale, rel=0.03)
    correlation = torch.corrcoef(torch.stack([drawn.t[:, 0], drawn.t[:, 1], drawn.image_t[:, 0]])).fill_diagonal_(0)
    assert correlation.abs().max() < 0.06
    assert drawn.hidden.float().mean() == pytest.approx(0.1, abs=0.02)
    same = draw_pass(network, "t2i", batch, flow.replace(one_schedule=True), torch.Generator().manual_seed(0)).packed
    assert same.image_t.logit().mean() == pytest.approx(1.5, abs=0.03)


def test_a_picture_that_is_read_is_clean():
    batch = Latents(torch.randn(2, 8, 6), torch.randn(2, 6, 5), torch.randn(2, 3, 6))
    drawn = draw_pass(model().float(), "it2t", batch, UnifiedFlowConfig(), torch.Generator().manual_seed(0))
    assert torch.equal(drawn.packed.image, batch.image) and (drawn.packed.image_t == 0).all() and drawn.target.image is None
    noised = draw_pass(
        model(image_loss_in_it2t=True).float(), "it2t", batch, UnifiedFlowConfig(), torch.Generator().manual_seed(0))
    assert not torch.equal(noised.packed.image, batch.image) and (noised.packed.image_t > 0).all()


def test_latents_that_do_not_count_have_no_loss():
    counted = torch.ones(2, 8, dtype=torch.bool)
    counted[0, 4:] = False
    batch = Latents(torch.randn(2, 8, 6), counted=counted)
    changed = batch.text.clone()
    changed[0, 4:] = 7.0
    losses = [task_loss(model().float(), "t2t", Latents(text, counted=counted), UnifiedFlowConfig(), torch.Generator().manual_seed(0))
              for text in (batch.text, changed)]
    assert torch.equal(losses[0].total, losses[1].total)


@pytest.mark.parametrize("share", [0, 1 / 3, 1])
def test_every_weight_is_trained(share):
    "Over the three tasks each weight has a gradient."
    network = model(dual_share=share).float()
    batch = Latents(torch.randn(4, 12, 6), torch.randn(4, 6, 5), torch.randn(4, 3, 6))
    for task in ("t2t", "t2i", "it2t"):
        given = batch if task == "it2t" else batch._replace(prompt=None, image=batch.image if task == "t2i" else None)
        task_loss(network, task, given, UnifiedFlowConfig(caption_dropout=0), torch.Generator().manual_seed(0)).total.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_recomputed_and_dense_passes_give_the_same():
    network = model()
    wanted = network.packed(inputs("t2i"))
    for way in (dict(recompute=True), dict(backend="dense")):
        for one, other in zip(network.packed(inputs("t2i")), use(model(), **way).packed(inputs("t2i"))):
            assert (one - other).abs().max() < 1e-12
    assert wanted.text.shape == (2, 12, 6)
