"""A trained Cola DLM as four ONNX graphs and a manifest, for the page that lets it write.

The graphs hold no rule of the sampler: positions, visibility, past keys and values and the solver's times come from outside."""

import json
import warnings
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.functional import layer_norm
from torch.onnx import symbolic_helper

from colanb.config import SampleConfig
from colanb.generate.sample import solver_times
from colanb.model import dit, trunk, vae
from colanb.model.cola import ColaDLM
from colanb.model.layers import Modulation, Rotary, Times
from colanb.model.trunk import use
from colanb.text.tokenizer import Tokenizer

STEPS = (2, 4, 8, 16, 32, 64)   # what the page's dial offers
OPSET = 17
SMALL = 256                     # numbers; a shorter weight is kept as it is


class Past:
    "A cache as the networks see it, whose past, positions and visibility are a graph's inputs."

    def __init__(self, keys, values, positions, sight):
        self.keys, self.values = keys, values          # (layers, 1, h, m, e): one past for all rows
        self.given = positions, sight                  # (r, n), (r, n, m + n)
        self.past = [0] * len(positions)               # rows that have one
        self.new = []

    def positions(self, n):
        return self.given[0]

    def mask(self, n, block_size):
        return self.given[1]

    def store(self, layer, k, v):
        self.new.append((k, v))
        past = (torch.cat([part[layer]] * len(self.past)) for part in (self.keys, self.values))
        return tuple(torch.cat([old, new], 2) for old, new in zip(past, (k, v)))

    def advance(self, n):
        pass

    def written(self):
        "New keys and values, each (layers, r, h, n, e)."
        return tuple(torch.stack(parts) for parts in zip(*self.new))


@contextmanager
def seeing(positions, sight):
    "Let the encoder take positions and visibility from outside."
    with patch.object(vae, "positions_and_sight", lambda *_, **__: (positions, sight)):
        yield


class EncodeGraph(nn.Module):
    "Ids of a prompt to posterior means."

    def __init__(self, model):
        super().__init__()
        self.vae = model.vae

    def forward(self, ids, positions, sight):
        with seeing(positions, sight):
            return self.vae.encode(ids).mean


class DecodeGraph(nn.Module):
    "Latents behind a past to logits, new keys and values."

    def __init__(self, model):
        super().__init__()
        self.vae = model.vae

    def forward(self, z, keys, values, positions, sight):
        cache = Past(keys, values, positions, sight)
        return self.vae.decode(z, cache), *cache.written()


class TimesGraph(nn.Module):
    "Times to the modulation of all layers, side by side."

    def __init__(self, model):
        super().__init__()
        self.dit = model.dit

    def forward(self, t):
        return torch.cat(list(self.dit.tabulate(t).tables.values()), -1)


class StepGraph(nn.Module):
    "Noisy latents behind a clean past to what the network says of them, new keys and values."

    def __init__(self, model):
        super().__init__()
        self.dit = model.dit
        self.modulations = [module for module in self.dit.modules() if isinstance(module, Modulation)]

    def forward(self, z, table, row, keys, values, positions, sight):
        widths = [module.linear.out_features for module in self.modulations]
        tables = dict(zip(self.modulations, table.split(widths, -1)))
        cache = Past(keys, values, positions, sight)
        raw = self.dit.raw(z, Times(table, row, None, tables), positions, sight, cache)
        return raw, *cache.written()


def sight_inputs(rows, n, past):
    "Positions and visibility of `n` latents behind a past, each with the axes that may have another length."
    positions = torch.arange(n).repeat(rows, 1)
    visible = torch.ones(rows, n, past + n, dtype=torch.bool)
    return {"positions": (positions, {1: "latents"}), "sight": (visible, {1: "latents", 2: "seen"})}


def trunk_inputs(stack, rows, n, past=5):
    "The past of a trunk, and what its new latents see."
    config = stack.config
    shape = config.layers, 1, config.kv_heads or config.heads, past, config.head_dim
    stored = {name: (torch.randn(shape), {3: "past"}) for name in ("keys", "values")}
    return stored | sight_inputs(rows, n, past)


def graphs(model, n=3):
    "Name -> module, inputs as in `sight_inputs`, axes of outputs. A step has two rows: the block behind its past, and alone."
    free = {1: "latents"}
    ids = torch.ones(1, n * model.vae.config.patch_size, dtype=torch.long)
    z = torch.randn(2, n, model.dit.config.d_latent)
    channels = TimesGraph(model)(torch.zeros(1)).shape[-1]
    table = {"table": (torch.randn(2, channels), {}), "row": (torch.ones(2, n, dtype=torch.long), free)}
    read = trunk_inputs(model.vae.decoder.trunk, 1, n)
    seen = trunk_inputs(model.dit.trunk, 2, n)
    past = {"new_keys": {3: "latents"}, "new_values": {3: "latents"}}
    return {
        "encode": (EncodeGraph(model), {"ids": (ids, {1: "tokens"}), **sight_inputs(1, n, 0)}, {"mean": free}),
        "decode": (DecodeGraph(model), {"z": (z[:1], free), **read}, {"logits": {1: "tokens"}, **past}),
        "times": (TimesGraph(model), {"t": (torch.rand(3), {0: "times"})}, {"table": {0: "times"}}),
        "step": (StepGraph(model), {"z": (z, free), **table, **seen}, {"raw": free, **past}),
    }


def halved(proto):
    "Store float32 weights as bfloat16 where that loses nothing, as for a model that was shipped so; the graph widens them when it is loaded."
    wide = [weight for weight in proto.graph.initializer if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= SMALL]
    for weight in wide:
        bits = numpy_helper.to_array(weight).view(np.uint32)
        if (bits & 0xFFFF).any(): continue
        name = weight.name
        raw = (bits >> 16).astype("<u2").tobytes()
        half = helper.make_tensor(f"{name}.half", TensorProto.BFLOAT16, list(weight.dims), raw, raw=True)
        proto.graph.initializer.remove(weight)
        proto.graph.initializer.append(half)
        proto.graph.node.insert(0, helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    return proto


def transposed(g, x):
    "The last two axes changed: an operator that the exporter does not know."
    rank = symbolic_helper._get_tensor_rank(x)
    return g.op("Transpose", x, perm_i=[*range(rank - 2), rank - 1, rank - 2])


def normalised(x, shape, *rest, **named):
    "`layer_norm` over a shape of plain numbers."
    return layer_norm(x, [int(size) for size in shape], *rest, **named)


def angles_of(rotary, positions):
    "`Rotary.table`, with each angle repeated by a reshape."
    rows, latents = positions.shape
    angle = positions[..., None].float() * rotary.freqs
    angle = torch.stack([angle, angle], -1 if rotary.interleaved else -2).reshape(rows, latents, -1)
    return nn.functional.pad(angle.cos(), (0, rotary.rest), value=1.0), nn.functional.pad(angle.sin(), (0, rotary.rest))


def rotated(rotary, x, table):
    "`Rotary.forward` without its change of shape, whose lengths tracing would fix."
    if rotary.dim == 0: return x
    cos, sin = (part.unsqueeze(-2) for part in table)
    return x * cos + x @ rotary.quarter * sin


def modulated(x, shift, scale):
    "`modulate` where each latent has a vector of its own: a quarter of a pass went into changes of shape."
    return x * (1 + scale[:, :, 0]) + shift[:, :, 0]


def gated(x, branch, weight):
    "`gate`, likewise."
    return x + branch * weight[:, :, 0]


PLAIN = (
    (nn.functional, "layer_norm", normalised), (Rotary, "table", angles_of), (Rotary, "forward", rotated),
    (trunk, "modulate", modulated), (dit, "modulate", modulated), (trunk, "gate", gated),
)


@contextmanager
def plain():
    "Let the networks compute for a while by operators that tracing takes as they are."
    with ExitStack() as stack:
        for owner, name, function in PLAIN: stack.enter_context(patch.object(owner, name, function))
        yield


def export_graph(module, inputs, outputs):
    "One graph, as ONNX, by tracing: PyTorch's other exporter takes minutes."
    tensors = tuple(tensor for tensor, _ in inputs.values())
    free = {name: axes for name, (_, axes) in inputs.items() if axes} | outputs
    written = BytesIO()
    torch.onnx.register_custom_op_symbolic("aten::mT", transposed, OPSET)
    with warnings.catch_warnings(), plain():
        warnings.simplefilter("ignore")   # of conditions on shapes that are the same in every call
        torch.onnx.export(
            module.eval(), tensors, written, dynamo=False, opset_version=OPSET, dynamic_axes=free, input_names=list(inputs),
            output_names=list(outputs))
    return halved(onnx.load_from_string(written.getvalue()))


def check_page_can_run(config, model, tokenizer):
    "Raise `ValueError` for what the page's sampler does not know."
    known = {
        "first_block": ("clean",), "solver": ("euler",), "eta": (0,), "temperature": (0,), "repetition_penalty": (1,), "compat": ("none",),
        "stop_at_newline": (False,),
    }
    faults = [f"sample.{name}={getattr(config, name)!r}: the page knows {values[0]!r} only"
              for name, values in known.items() if getattr(config, name) not in values]
    if model.dit is None: faults.append("a model of stage 1 has no prior and cannot write")
    elif model.dit.config.self_condition: faults.append("dit.self_condition=True: the page hands no guess from step to step")
    if model.vae.config.patch_size != 1: faults.append(f"vae.patch_size={model.vae.config.patch_size}: the page knows patches of 1 token only")
    if tokenizer.words: faults.append("a tokenizer of words: the page knows byte-level BPE only")
    if faults: raise ValueError("; ".join(faults))


def stack_shape(stack):
    "What an empty cache of a trunk needs to know."
    config = stack.config
    return {"layers": config.layers, "heads": config.kv_heads or config.heads, "dim": config.head_dim}


def manifest(config, model, tokenizer):
    "All that the page's sampler must know of a model, the solver's times among it."
    prior = model.dit.config
    steps = sorted({*STEPS, config.steps})
    return {
        "d": prior.d_latent, "block": prior.block_size, "prediction": prior.prediction, "skip": prior.skip,
        "dit": stack_shape(model.dit.trunk), "decoder": {**stack_shape(model.vae.decoder.trunk), "block": model.vae.config.block_size},
        "encoder": {"block": model.vae.config.block_size}, "vocabulary": model.vae.config.vocab_size,
        "pad": tokenizer.pad_id, "stop": sorted(getattr(tokenizer, "stop_ids", {tokenizer.eos_id})), "silent": [tokenizer.pad_id, tokenizer.eos_id],
        "steps": config.steps, "guidance": config.guidance_scale, "seed": config.seed, "tokens": config.max_new_tokens,
        "times": {count: solver_times(config.replace(steps=count)) for count in steps},
    }


@torch.no_grad()
def export_model(model: ColaDLM, tokenizer: Tokenizer, config: SampleConfig, out: Path):
    "Write a model's graphs, tokenizer and manifest into a folder; return the manifest with the files' sizes in bytes."
    check_page_can_run(config, model, tokenizer)
    use(model.eval(), backend="dense", onednn=False)   # by formula: kernels mean nothing outside PyTorch
    out.mkdir(parents=True)
    for name, parts in graphs(model).items():
        onnx.save(export_graph(*parts), out / f"{name}.onnx")
    tokenizer.save(out / "tokenizer.json")
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    record = {**manifest(config, model, tokenizer), "sizes": sizes}
    (out / "manifest.json").write_text(json.dumps(record, allow_nan=False))
    return record
