"""replace_relu on torchvision's and timm's networks: at thresholds of 0 nothing changes, in either mode."""

import copy
import io
import pickle

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.utils import _pytree as pytree

import leni_kernels as lk
from leni_kernels.networks.surgery import Tracer

torchvision = pytest.importorskip("torchvision")
IMAGES = (2, 3, 32, 32)


def from_torchvision(name, **options):
    return lambda: getattr(torchvision.models, name)(weights=None, **options)


def from_timm(name):
    return lambda: pytest.importorskip("timm").create_model(name, pretrained=False)


def vgg16_bn():
    """With a classifier of a size for tests."""
    model = torchvision.models.vgg16_bn(weights=None, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier[0], model.classifier[3], model.classifier[6] = (nn.Linear(512, 64), nn.Linear(64, 64),
                                                                     nn.Linear(64, 10))
    return model


# The network, and how many of its calls of ReLU and ReLU6 are fused into convolutions, of how many.
NETWORKS = {
    "resnet18": (from_torchvision("resnet18"), (15, 17)),
    "vgg16_bn": (vgg16_bn, (8, 15)),
    "mobilenet_v2": (from_torchvision("mobilenet_v2"), (34, 35)),
    "densenet121": (from_torchvision("densenet121"), (119, 121)),
    "squeezenet1_1": (from_torchvision("squeezenet1_1"), (8, 26)),
    "googlenet": (from_torchvision("googlenet", init_weights=False), (19, 57)),
    "regnet_y_400mf": (from_torchvision("regnet_y_400mf"), (48, 65)),
    "timm resnet10t": (from_timm("resnet10t"), (9, 11)),
    "timm regnety_002": (from_timm("regnety_002"), (39, 53)),
    "timm mobilenetv3_small_050": (from_timm("mobilenetv3_small_050"), (13, 14)),
    "timm selecsls42": (from_timm("selecsls42"), (34, 41)),
}


def randomised(model):
    """Running statistics and scales as of a network that has trained."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model


def output(model, images):
    torch.manual_seed(1)  # dropout
    return pytree.tree_leaves(model(images))


def assert_same(model, other, images, tolerance):
    for actual, expected in zip(output(model, images), output(other, images), strict=True):
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("make", "counts"), NETWORKS.values(), ids=NETWORKS)
def test_fused_into_convolutions(make, counts):
    model, images = randomised(make()).eval(), torch.randn(IMAGES)
    result, report = lk.replace_relu(model, "conv_relu", example_input=images, include=("relu6",))
    assert (report.replaced, len(report.rows)) == counts
    assert result.state_dict().keys() - model.state_dict().keys() == {
        f"{name}.threshold" for name, module in result.named_modules() if isinstance(module, lk.ConvReLU2d)}
    with torch.no_grad():
        assert_same(result, model, images, 1e-5)
        # In training, batch norms of few values amplify what float32 rounds.
        for each in (result, model):
            each.double().train()
        for parameter in set(result.parameters()):
            assert parameter.requires_grad
        images = images.double()
        assert_same(result, model, images, 1e-6)
        buffers = dict(result.named_buffers())
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name], buffer)
        for module in result.modules():
            if isinstance(module, lk.ConvReLU2d):
                nn.init.normal_(module.threshold, std=0.1)
        result.eval()
        expected, = output(result, images)
        assert not torch.allclose(expected, output(model.eval(), images)[0])
        for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
            assert torch.equal(output(copied, images)[0], expected)
        stored = io.BytesIO()
        torch.save(result.state_dict(), stored)
        stored.seek(0)
        nn.init.zeros_(next(result.parameters()))
        result.load_state_dict(torch.load(stored, weights_only=True))
        assert torch.equal(output(result, images)[0], expected)


@pytest.mark.parametrize("name", ["resnet18", "timm regnety_002"])
def test_slopes_everywhere(name):
    model, images = randomised(NETWORKS[name][0]()).double(), torch.randn(IMAGES, dtype=torch.float64)
    result, report = lk.replace_relu(model, "fully_parametric_relu", example_input=images)
    assert report.replaced == len(report.rows)
    with torch.no_grad():
        for training in (True, False):
            assert_same(result.train(training), model.train(training), images, 1e-9)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_leni_everywhere_folded_and_fused(name):
    model, images = NETWORKS[name][0]().eval(), torch.randn(IMAGES)
    result, report = lk.replace_relu(model, "leni", example_input=images)
    assert report.replaced == len(report.rows)
    randomised(result)
    with torch.no_grad():
        folded = lk.fold(result)
        assert not any(isinstance(module, lk.LENI2d) for module in folded.modules())
        assert_same(folded, result, images, 1e-5)
        fused = fuse(fx.GraphModule(folded, Tracer().trace(folded)), no_trace=True)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        assert_same(fused, result, images, 1e-5)


def test_compiled():
    torch._dynamo.reset()
    model, images = NETWORKS["timm resnet10t"][0]().eval(), torch.randn(IMAGES)
    result, _ = lk.replace_relu(model, "leni", "first:2", example_input=images)
    with torch.no_grad():
        assert_same(torch.compile(result, fullgraph=True, backend="aot_eager"), result, images, 1e-5)
