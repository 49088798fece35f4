"fp64 for tests: the library rounds to fp32 by `Tensor.float`, and draws in torch's default type."
from contextlib import contextmanager
from unittest.mock import patch

import torch


@contextmanager
def double_precision():
    "Everything made inside is fp64, `Tensor.float` included."
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double): yield
    finally:
        torch.set_default_dtype(before)
