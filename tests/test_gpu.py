"The CUDA backends of attention give what the dense one gives, forward and backward. Skipped where there is no GPU."
import pytest
import torch

from colanb.attention import Visibility, attend

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def passes(backend, sight, heads=4, kv_heads=2):
    "Output and gradients of one attention call on fixed inputs."
    make = torch.Generator().manual_seed(0)
    rows = sight.mask().shape
    q, k, v = (torch.randn(2, h, n, 64, generator=make).cuda().requires_grad_() for h, n in ((heads, rows[0]), (kv_heads, rows[1]), (kv_heads, rows[1])))
    out = attend(q, k, v, sight, backend)
    return out, *torch.autograd.grad(out.square().sum(), (q, k, v))


@pytest.mark.parametrize("noisy_only", [False, True], ids=["all queries", "noisy queries"])
@pytest.mark.parametrize("n, block_size", [(16, 1), (64, 4), (128, 16), (256, 16), (512, 64), (512, 128)])
@pytest.mark.parametrize("backend", ["xformers", "flex"])
def test_backend_equals_dense(backend, n, block_size, noisy_only):
    if backend == "xformers": pytest.importorskip("xformers")
    sight = Visibility(n, block_size, packed=True, noisy_only=noisy_only)
    for ours, reference in zip(passes(backend, sight), passes("dense", sight)):
        assert (ours - reference).abs().max() <= 1e-3 * reference.abs().max()
