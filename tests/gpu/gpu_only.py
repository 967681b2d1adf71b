"""What the tests of the GPU share: the marks, and where things are."""

import pytest
import torch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
marks = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
