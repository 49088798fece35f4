"Compiled training steps, and those whose linear maps go through oneDNN, give the loss and the gradients of a plain one."
import pytest
import torch

from colanb.config import DiTConfig, FlowConfig, VAEConfig, stream
from colanb.learn.losses import stage2_loss
from colanb.model.cola import ColaDLM
from colanb.model.trunk import has_compiler, use

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


def gradients(model, ids):
    loss = stage2_loss(model, ids, torch.ones_like(ids, dtype=torch.bool), FlowConfig(clean_prefix=0.5), stream(0))
    loss.total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return loss.total.item(), found


@pytest.mark.parametrize("onednn,compiled", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("size", [(2, 16), (4, 128)])   # small and large linear maps
def test_fast_steps_equal_the_plain_one(size, onednn, compiled):
    torch.manual_seed(0)
    vae = VAEConfig(vocab_size=40, d_latent=8, width=64, heads=4, encoder_layers=1, decoder_layers=1, ffn_dim=64)
    model = ColaDLM(vae, DiTConfig(d_latent=8, width=64, heads=4, head_dim=16, layers=2, rope_dim=6, block_size=4, zero_init=False))
    ids = torch.randint(0, 40, size)
    loss, plain = gradients(use(model, backend="dense", compiled=False, onednn=False), ids)
    fast_loss, fast = gradients(use(model, backend="sdpa", compiled=compiled, onednn=onednn), ids)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in plain.items():
        assert (fast[name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max()), name
