"""The public interface as a type checker sees it from outside: mypy reads this file, and nothing runs it.

A line that is wrong on purpose says which error it is; mypy complains of one that is none.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import leni_kernels as lk
import leni_kernels.functional as F
from leni_kernels.networks.surgery import Report

x = torch.ones(1, 4, 8, 8)
model: nn.Module = nn.Sequential(nn.ReLU())

# ---- modules -----------------------------------------------------------------------------------------------

leni = lk.LENI2d(4, kernel_size=5, momentum=None)
assert_type(leni(x), Tensor)
assert_type(leni.deconv, nn.ConvTranspose2d)
assert_type(leni.bn_negative, nn.BatchNorm2d)
assert_type(leni.bn_fusion, nn.BatchNorm2d)
assert_type(leni.compress, nn.Conv2d)
assert_type(leni.deconv.weight, Tensor)
assert_type(lk.Reborn2d(4, groups=2)(x), Tensor)
assert_type(lk.ConvReLU1d(4, 8, 3)(x[0]), Tensor)
assert_type(lk.ConvReLU3d(4, 8, (1, 3, 3), padding="same")(x[None]), Tensor)
convolution = lk.ConvReLU2d(4, 8, 3, padding=1, padding_mode="reflect")
assert_type(convolution(x), Tensor)
assert_type(convolution.weight, Tensor)
assert_type(convolution.bias, Tensor | None)
assert_type(convolution.threshold, nn.Parameter)
assert_type(lk.AdaReLU((4, 8, 8))(x), Tensor)
assert_type(lk.FullyParametricReLU(4)(x), Tensor)
assert_type(lk.CReLU()(x), Tensor)

separable = lk.LENI2d(4, separable=True)
assert_type(separable(x), Tensor)
assert_type(separable.deconv_pointwise, nn.Conv2d | None)

lazy = lk.LazyLENI2d(kernel_size=5, inplace=True)
assert_type(lazy(x), Tensor)
assert_type(lazy.deconv, nn.ConvTranspose2d)
assert_type(lk.LazyReborn2d(groups=2)(x), Tensor)
assert_type(lk.LazyConvReLU2d(8, 3)(x), Tensor)
assert_type(lk.LazyAdaReLU()(x), Tensor)
assert_type(lk.LazyFullyParametricReLU()(x), Tensor)

lk.LENI2d("4")  # type: ignore[arg-type]
lk.LENI2d(4)(3)  # type: ignore[arg-type]
lk.ConvReLU2d(4)  # type: ignore[call-arg]

# ---- functions ---------------------------------------------------------------------------------------------

norm = lk.Norm(x[0, :, 0, 0], x[0, :, 0, 0])
assert_type(F.leni(x, x, norm, norm, x), Tensor)
assert_type(F.reborn(x, x, norm, groups=4), Tensor)
assert_type(F.conv_relu1d(x, x, x), Tensor)
assert_type(F.conv_relu2d(x, x, x, stride=(2, 1), padding="valid"), Tensor)
assert_type(F.conv_relu3d(x, x, x), Tensor)
assert_type(F.ada_relu(x, x), Tensor)
assert_type(F.fully_parametric_relu(x, x, x), Tensor)
assert_type(F.crelu(x), Tensor)
assert_type(lk.functional.crelu(x), Tensor)

F.ada_relu(x)  # type: ignore[call-arg]

# ---- backends ----------------------------------------------------------------------------------------------

with lk.use_backend("reference"):
    explanation = lk.explain(leni, x)
assert_type(str(explanation), str)
for decision in explanation:
    assert_type(decision.backend, str)
    assert_type(decision.why_not, dict[str, str])
assert_type(lk.__version__, str)
assert_type(lk.library_path(), Path)
try:
    lk.explain(F.crelu, x)
except lk.BackendUnavailableError as error:
    assert_type(error, lk.BackendUnavailableError)

# ---- whole networks ----------------------------------------------------------------------------------------

replaced, report = lk.replace_relu(model, "leni", where="first:3", example_input=x)
assert_type(replaced, nn.Module)
assert_type(report, Report)
assert_type(report.replaced, int)
assert_type(lk.fold(model.eval()), nn.Module)
groups = lk.parameter_groups(model, weight_decay=5e-4)
assert_type(groups, list[dict[str, Any]])
torch.optim.SGD(groups, lr=0.1)
with lk.AlternatingSchedule(model, period=2) as schedule:
    schedule.step()
    assert_type(schedule.trains, str)

lk.replace_relu(model, "leni")  # type: ignore[call-arg]
