"The backends of attention on a card give what dense attention in double precision gives, forward and backward. Skipped where there is no GPU."
import pytest
import torch

from colanb.model.visibility import Visibility
from colanb.release.conformance import TOLERANCE
from colanb.lab.gpu import SHAPES, backend_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def full_precision():
    "fp32 means fp32."
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.parametrize("packed, noisy_only", [(False, False), (True, False), (True, True)], ids=["clean", "packed", "packed, noisy queries"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]} latents, block {shape[1]}")
@pytest.mark.parametrize("backend", ["flex", "masked", "xformers"])
def test_backend_equals_dense(backend, shape, packed, noisy_only):
    if backend == "xformers": pytest.importorskip("xformers")
    found = backend_error(backend, Visibility(*shape, packed, noisy_only), "cuda")
    assert max(found.values()) <= TOLERANCE
