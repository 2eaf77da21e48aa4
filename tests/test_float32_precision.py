"""float32 products follow PyTorch's setting for convolutions, through its old names and its new ones."""

import pytest
import torch

from leni_kernels.common.gpu.support import float32_operand


@pytest.fixture(autouse=True)
def _as_pytorch_starts():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = before


def set_all(settings):
    """Write settings of torch.backends, or of matmul, in the order given."""
    for name, value in settings:
        if name == "matmul":
            torch.set_float32_matmul_precision(value)
        else:
            *owners, attribute = name.split(".")
            owner = torch.backends
            for each in owners:
                owner = getattr(owner, each)
            setattr(owner, attribute, value)


# Each with what PyTorch's convolutions then do. Of those that mix old names with new, PyTorch's own old getters raise.
SETTINGS = [
    ([], "tf32"),
    ([("cudnn.allow_tf32", False)], "fp32"),
    ([("cudnn.allow_tf32", False), ("cudnn.allow_tf32", True)], "tf32"),
    ([("cudnn.conv.fp32_precision", "ieee")], "fp32"),
    ([("cudnn.conv.fp32_precision", "tf32")], "tf32"),
    ([("cudnn.conv.fp32_precision", "none")], "fp32"),
    ([("cudnn.conv.fp32_precision", "none"), ("fp32_precision", "tf32")], "tf32"),
    ([("cudnn.conv.fp32_precision", "none"), ("cudnn.fp32_precision", "tf32")], "tf32"),
    ([("cudnn.conv.fp32_precision", "none"), ("fp32_precision", "tf32"), ("cudnn.fp32_precision", "ieee")], "fp32"),
    ([("cudnn.allow_tf32", False), ("cudnn.conv.fp32_precision", "tf32")], "tf32"),
    ([("cudnn.conv.fp32_precision", "tf32"), ("cudnn.allow_tf32", False)], "fp32"),
    ([("cudnn.rnn.fp32_precision", "ieee")], "tf32"),
    ([("cuda.matmul.fp32_precision", "tf32")], "tf32"),
    ([("cuda.matmul.fp32_precision", "ieee")], "tf32"),
    ([("cuda.matmul.allow_tf32", True), ("cudnn.allow_tf32", False)], "fp32"),
    ([("cudnn.allow_tf32", False), ("cuda.matmul.fp32_precision", "tf32")], "fp32"),
    ([("matmul", "high"), ("cudnn.conv.fp32_precision", "ieee")], "fp32"),
    ([("matmul", "medium"), ("cuda.matmul.fp32_precision", "ieee")], "tf32"),
]


@pytest.mark.parametrize(("settings", "wanted"), SETTINGS, ids=str)
def test_convolutions_decide(settings, wanted):
    set_all(settings)
    assert float32_operand("sm_90") == wanted
    assert float32_operand("sm_75") == float32_operand("gfx942") == "fp32"


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_architectures_with_tf32(architecture):
    assert float32_operand(architecture) == "tf32"


@pytest.mark.parametrize("architecture", ["sm_70", "sm_75", "gfx90a", "gfx942", "gfx1100", ""])
def test_architectures_without(architecture):
    assert float32_operand(architecture) == "fp32"


def test_a_setting_for_everything_reaches_convolutions_where_pytorch_says_so():
    """torch 2.11 leaves its convolutions as they are, later ones do not: in each, ours do as PyTorch's."""
    torch.backends.fp32_precision = "ieee"
    theirs = torch.backends.cudnn.conv.fp32_precision
    assert float32_operand("sm_90") == {"ieee": "fp32", "tf32": "tf32"}[theirs]
