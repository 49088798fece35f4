"Comparisons of losses in fp64: the library rounds to fp32 by `Tensor.float`, and draws in torch's default type."
from contextlib import contextmanager
from unittest.mock import patch

import torch

from colanb.config import stream


@contextmanager
def double_precision():
    "Everything made inside is fp64, `Tensor.float` included."
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double): yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def redrawn(module, *place):
    "Every parameter of a module drawn again, so that each one matters."
    generator = stream("weights", *place)
    for name, p in module.named_parameters():
        gain = 1.0 if p.dim() == 1 and "norm" in name else 0.0
        p.copy_(gain + 0.4 * torch.randn(p.shape, generator=generator))
    return module


def gradients(total, model):
    "By name; zeros where there is none."
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found)}


def assert_same_total(model, found, expected):
    "Value, and the gradient of every parameter."
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    theirs, ours = gradients(expected, model), gradients(found, model)
    assert max(g.abs().max() for g in ours.values()) > 1e-6
    for name, g in theirs.items():
        torch.testing.assert_close(ours[name], g, rtol=1e-7, atol=1e-10, msg=lambda text: f"{name}: {text}")
