"""What the shipped model does on its way from noise to text and back, recorded for the widgets; seeds are fixed.

`flow_record` follows latents of a few texts as the sampler carries them, `density_record` the solve for a density."""

from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
from torchdiffeq import odeint

from colanb.config import ODEConfig, stream
from colanb.evidence.plots import house_style
from colanb.generate.sample import Sampler, begin_states, solver_times
from colanb.measure import text_likelihood
from colanb.measure.density import Density, augmented_rate, draw_probes, fixed_times, log_standard_normal, trace_error
from colanb.measure.text_likelihood import SamplerScorer, sampler_start

SEEDS = (0, 1, 2, 3)     # one text each
TOKENS = 16              # of each text
TEXT = "Once upon a time there was a little girl who lived by the sea."
PROBES = 4               # of each random kind
KINDS = ("exact", "rademacher", "gaussian")


def kind_of(token):
    "What a token is: the colours of the picture."
    if "\n" in token: return "end of a line"
    if not any(character.isalnum() for character in token): return "punctuation"
    return "start of a word" if token.startswith(" ") else "inside of a word"


@torch.no_grad()
def sampled_paths(model, tokenizer, config):
    "Latents of texts from nothing: (text, block, time, place in the block, channel), noise first; and their tokens."
    sampler = Sampler(model.vae, model.dit, tokenizer, config.replace(max_new_tokens=TOKENS))
    prompts = [""] * len(SEEDS)
    states = begin_states(prompts, list(SEEDS), [0] * len(SEEDS))
    paths = []

    def keep(block, t, z):
        if block == len(paths): paths.append([sampler.noise(states, block)])
        paths[block].append(z)

    for written in sampler.blocks(prompts, list(SEEDS), on_step=keep): pass
    tokens = [state.tokens for state in written]
    return torch.stack([torch.stack(path) for path in paths]).permute(2, 0, 1, 3, 4), tokens


@torch.no_grad()
def readings(model, path):
    "Tokens that the decoder reads at each time from a text's blocks, finished ones before: (block, time, place)."
    found = []
    finished = path[:1, -1, :0]                            # (1, 0, channel)
    for block in path:                                     # (time, place, channel)
        before = finished.expand(len(block), -1, -1)
        logits = model.vae.decode(torch.cat([before, block], 1))
        found.append(logits[:, before.shape[1]:].argmax(-1))
        finished = torch.cat([finished, block[-1:]], 1)
    return torch.stack(found)


def principal_axes(points):
    "Mean of points (n, channel), and the three directions of largest variance as columns, largest loading positive."
    mean = points.mean(0)
    axes = torch.linalg.eigh((points - mean).T @ (points - mean))[1].flip(1)[:, :3]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return mean, axes * largest.sign()


def share_shown(points, axes):
    "Share of the variance of points (n, channel) that lies in the axes."
    centred = points - points.mean(0)
    return ((centred @ axes).square().sum() / centred.square().sum()).item()


def told(tokenizer, ids):
    "A token as text."
    return tokenizer.decode([ids], skip_special=False)


def rounded(numbers, digits):
    "Nested lists of numbers with fewer digits."
    if isinstance(numbers, dict): return {name: rounded(part, digits) for name, part in numbers.items()}
    if isinstance(numbers, list): return [rounded(part, digits) for part in numbers]
    return round(numbers, digits)


def point_records(tokenizer, places, ids):
    "Each latent of a text: what its token is, its way (time, 3) and what is read on it."
    for place, read in zip(places.tolist(), ids.tolist()):
        words = [told(tokenizer, token) for token in read]
        yield {"kind": kind_of(words[-1]), "words": words, "path": rounded(place, 3)}


def flow_record(model, tokenizer, config):
    """The ways of latents from noise to data in three directions, and what the decoder reads on them.

    The directions are those in which finished latents differ most: most times lie near the noise, which has none."""
    paths, tokens = sampled_paths(model, tokenizer, config)
    points = paths.transpose(2, 3).flatten(1, 2).double()  # (text, latent, time, channel)
    mean, axes = principal_axes(points[:, :, -1].flatten(0, 1))
    texts = []
    for path, seen, ids in zip(paths, (points - mean) @ axes, tokens):
        read = readings(model, path).transpose(1, 2).flatten(0, 1)
        texts.append({"text": tokenizer.decode(ids), "points": list(point_records(tokenizer, seen, read))})
    times = points.permute(2, 0, 1, 3).flatten(1, 2)       # (time, latent, channel)
    return {
        "times": rounded(solver_times(config), 4), "channels": points.shape[-1], "guidance": config.guidance_scale,
        "shares": [share_shown(part, axes) for part in times], "seeds": SEEDS, "texts": texts,
    }


def draw_flow(record, path):
    "Two of the three directions at the first, a middle and the last time, as a picture."
    house_style()
    points = [point for text in record["texts"] for point in text["points"]]
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
    for ax, at in zip(axes, (0, len(record["times"]) - 2, -1)):
        for kind in sorted({point["kind"] for point in points}):
            own = [point["path"][at] for point in points if point["kind"] == kind]
            ax.scatter([x for x, _, _ in own], [y for _, y, _ in own], s=14, label=kind)
        ax.set(title=f"t = {record['times'][at]:.2f}", xlabel="first direction")
    axes[0].set_ylabel("second direction")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path)
    plt.close(figure)


class Watched:
    "Stands in for `flow_log_prob` and keeps what it passes: points and the integrals (time, probe, latent)."

    def __call__(self, velocity, z, ode, generator, free, start):
        exact = ode.divergence == "exact"
        rate = augmented_rate(velocity, draw_probes(z, ode, generator), 1.0, exact)
        self.times = fixed_times(ode, start, z)
        state = z, z.new_zeros(1 if exact else ode.probes, len(z))
        self.points, self.integrals = odeint(rate, state, self.times, method=ode.method)
        self.normal = log_standard_normal(self.points[-1], 1.0)
        error = trace_error(self.integrals[-1], exact)
        return Density(self.normal + self.integrals[-1].mean(0), error, self.points[-1], 0)


def solve_of(kind):
    "How the density is solved."
    return ODEConfig(divergence=kind, probes=1 if kind == "exact" else PROBES)


def density_way(model, x, latents, start, kind):
    "The density of a text's latents by one kind of divergence, with all that was passed on the way."
    watched = Watched()
    with torch.no_grad(), patch.object(text_likelihood, "flow_log_prob", watched):
        scorer = SamplerScorer(model, start, solve_of(kind))
        scorer.log_prior(x, latents, stream(0, "probes"))
    return watched


def density_record(run, model, tokenizer):
    "The density of one text's latents, step by step: the divergence added up, all of it and by random probes."
    start = sampler_start(run)
    ids = tokenizer.encode(TEXT)
    scorer = SamplerScorer(model, start)
    x = scorer.texts([ids])
    latents, _ = scorer.infer(x, stream(0, "latents"))
    ways = {kind: density_way(model, x, latents, start, kind) for kind in KINDS}
    way = ways["exact"]

    sums = {kind: ways[kind].integrals.permute(2, 1, 0).tolist() for kind in KINDS}   # (latent, probe, time)
    return {
        "text": TEXT, "tokens": [told(tokenizer, token) for token in ids], "start": start,
        "times": rounded(way.times.tolist(), 5), "normal": rounded(way.normal.tolist(), 4), "sums": rounded(sums, 4),
    }
