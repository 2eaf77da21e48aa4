"""replace_relu on torchvision's and timm's networks: at thresholds of 0 nothing changes, in either mode."""

import copy
import io
import pickle
import time

import pytest
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.utils import _pytree as pytree

import leni_kernels as lk
from leni_kernels.networks.examples import tensors_in

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
        fused = fuse(folded)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        assert_same(fused, result, images, 1e-5)


def test_compiled():
    torch._dynamo.reset()
    model, images = NETWORKS["timm resnet10t"][0]().eval(), torch.randn(IMAGES)
    result, _ = lk.replace_relu(model, "leni", "first:2", example_input=images)
    with torch.no_grad():
        assert_same(torch.compile(result, fullgraph=True, backend="aot_eager"), result, images, 1e-5)


# ---- networks that no trace follows: detection, segmentation, video, optical flow ---------------------------


def detector(name, **options):
    return lambda: getattr(torchvision.models.detection, name)(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, **options)


def segmentation_models(name):
    return lambda: getattr(pytest.importorskip("segmentation_models_pytorch"), name)("resnet18", encoder_weights=None)


def monai_unet():
    return pytest.importorskip("monai.networks.nets").UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=2, act="RELU")


def features_of(name):
    return lambda: pytest.importorskip("timm").create_model(name, pretrained=False, features_only=True)


def checkpointed(name):
    def make():
        model = from_timm(name)()
        model.set_grad_checkpointing(True)
        return model

    return make


def batch(*shape):
    return lambda: (torch.randn(shape or (2, 3, 64, 64), dtype=torch.float64),)


def photographs():
    box = {"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]], dtype=torch.float64), "labels": torch.tensor([1])}
    return [torch.rand(3, 64, 64, dtype=torch.float64) for _ in range(2)], [box, box]


def frames():
    return torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)  # float32, as RAFT itself makes some


# The network, its example, and how many of its calls of ReLU and ReLU6 are replaced, of how many.
WHOLE = {
    "timm dla34": (from_timm("dla34"), batch(2, 3, 32, 32), 33),
    "timm hrnet_w18_small_v2": (from_timm("hrnet_w18_small_v2"), batch(), 134),
    "timm xception41 features": (features_of("xception41"), batch(2, 3, 32, 32), 40),
    "timm mobileone_s0": (from_timm("mobileone_s0"), batch(2, 3, 32, 32), 43),
    "timm ghostnet_050 features": (features_of("ghostnet_050"), batch(), 30),
    "timm resnet26t checkpointed": (checkpointed("resnet26t"), batch(), 27),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (detector("fasterrcnn_mobilenet_v3_large_320_fpn"), photographs, 24),
    "retinanet_resnet50_fpn": (detector("retinanet_resnet50_fpn"), photographs, 90),
    "deeplabv3_resnet50": (lambda: torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None), batch(2, 3, 32, 32), 56),
    "r3d_18": (lambda: torchvision.models.video.r3d_18(weights=None), batch(2, 3, 4, 16, 16), 17),
    "raft_small": (lambda: torchvision.models.optical_flow.raft_small(weights=None), frames, 111),
    "Unet": (segmentation_models("Unet"), batch(), 27),
    "DeepLabV3Plus": (segmentation_models("DeepLabV3Plus"), batch(), 26),
    "monai UNet": (monai_unet, batch(1, 1, 8, 16, 16), 9),
}


def seeded(model, example):
    torch.manual_seed(1)
    return model(*copy.deepcopy(example))


HEAVY = ("timm xception41 features", "timm mobileone_s0", "timm hrnet_w18_small_v2", "retinanet_resnet50_fpn",
         "deeplabv3_resnet50")


@pytest.mark.parametrize(("kind", "name"), [
    (kind, name) for name in WHOLE for kind in ("conv_relu", "fully_parametric_relu")
    if name not in HEAVY or kind == "conv_relu"])
def test_what_the_user_wrote_runs(kind, name):
    make, make_example, count = WHOLE[name]
    model, example = randomised(make()), make_example()
    dtype = tensors_in(example)[-1].dtype
    model, tolerance = model.to(dtype), 1e-6 if dtype == torch.float64 else 1e-3
    result, report = lk.replace_relu(model, kind, example_input=example, include=("relu6",))
    assert not report.notes
    assert report.replaced == count if kind == "fully_parametric_relu" else 0 < report.replaced < count
    assert isinstance(result, type(model))
    assert vars(model).keys() <= vars(result).keys()
    for training in (True, False):
        with torch.set_grad_enabled(training):
            expected, actual = (seeded(each.train(training), example) for each in (model, result))
        assert type(actual) is type(expected)
        for one, other in zip(tensors_in(actual), tensors_in(expected), strict=True):
            scale = other.double().abs().max().item() if other.numel() else 0.0
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)
        for output in (actual, expected) if training else ():  # a checkpoint moves running statistics again
            sum(each.square().mean() for each in tensors_in(output) if each.requires_grad).backward()
        if training:
            gradients = [parameter.grad for parameter in result.parameters() if parameter.grad is not None]
            assert len(gradients) > count
            assert all(gradient.isfinite().all() for gradient in gradients)
    stored = io.BytesIO()
    torch.save(result, stored)
    stored.seek(0)
    copies = (torch.load(stored, weights_only=False), pickle.loads(pickle.dumps(result)), copy.deepcopy(result))
    with torch.no_grad():
        for each in copies:
            for one, other in zip(tensors_in(seeded(each, example)), tensors_in(actual), strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["leni", "reborn"])
@pytest.mark.parametrize("name", ["r3d_18", "monai UNet", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_blocks_in_volumes_and_detectors_train(kind, name):
    make, make_example, count = WHOLE[name]
    model, example = make().double(), make_example()
    result, report = lk.replace_relu(model, kind, example_input=example)
    assert report.replaced >= count - 5
    losses = tensors_in(seeded(result.train(), example))
    sum(each.square().mean() for each in losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in result.parameters() if parameter.grad is not None)
    kinds = (lk.LENI2d, lk.LENI3d, lk.Reborn2d, lk.Reborn3d)
    blocks = [module for module in result.modules() if isinstance(module, kinds)]
    assert len(blocks) == report.replaced
    assert all(block.deconv.weight.grad is not None for block in blocks)
    with torch.no_grad():
        seeded(result.eval(), example)


@pytest.mark.parametrize("name", ["mobileone_s0", "resnet152"])
def test_large_networks_take_seconds(name):
    make = from_timm(name) if name == "mobileone_s0" else from_torchvision(name)
    model, start = make(), time.process_time()
    lk.replace_relu(model, "fully_parametric_relu", example_input=torch.randn(1, 3, 32, 32))
    assert time.process_time() - start < 60


@pytest.mark.parametrize(("kind", "name"), [
    ("leni", "resnet18"), ("conv_relu", "resnet18"), ("conv_relu", "googlenet"), ("conv_relu", "densenet121")])
def test_compiled_without_breaks(kind, name):
    torch._dynamo.reset()
    model, images = NETWORKS[name][0]().eval(), torch.randn(IMAGES)
    result, _ = lk.replace_relu(model, kind, example_input=images)
    with torch.no_grad():
        assert_same(torch.compile(result, fullgraph=True, backend="eager"), result, images, 1e-6)
