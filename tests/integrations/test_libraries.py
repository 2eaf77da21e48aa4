"""Other libraries around networks: they give what PyTorch alone gives, and the kernels stay in use."""

import pytest
import torch
import torch.nn.functional as F

import leni_kernels as lk


def stepped(network, batch):
    """The network after a step of gradient descent in plain PyTorch."""
    images, targets = batch
    F.cross_entropy(network(images), targets).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    return network.state_dict()


def test_timm_s_average_of_weights(make_network):
    utils = pytest.importorskip("timm.utils")
    network = make_network()
    average = utils.ModelEmaV3(network, decay=0.5)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    average.update(network)
    for got, old, new in zip(average.module.parameters(), before, network.parameters(), strict=True):
        torch.testing.assert_close(got, (old + new) / 2)


def test_captum(make_network, batch):
    """Attributions are those of the definition's layers."""
    attr = pytest.importorskip("captum.attr")
    images, targets = batch
    network = make_network().eval()
    methods = {"saliency": lambda: attr.Saliency(network).attribute(images.clone().requires_grad_(), target=targets),
               "integrated gradients": lambda: attr.IntegratedGradients(network).attribute(
                   images, target=targets, n_steps=8),
               "Grad-CAM": lambda: attr.LayerGradCam(network, network[1]).attribute(images, target=targets)}
    for name, attributions in methods.items():
        got = attributions()
        with lk.use_backend("reference"):
            wanted = attributions()
        torch.testing.assert_close(got, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_lightning(make_network, batch, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = make_network()

        def training_step(self, batch, index):
            images, targets = batch
            return F.cross_entropy(self.network(images), targets)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    task = Task()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=4)
    lightning.Trainer(fast_dev_run=True, accelerator="cpu", logger=False, enable_progress_bar=False,
                      enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
                      ).fit(task, loader)
    torch.testing.assert_close(task.network.state_dict(), stepped(make_network(), batch))
    assert not list(tmp_path.iterdir())


def test_accelerate(make_network, batch):
    accelerate = pytest.importorskip("accelerate")
    images, targets = batch
    accelerator, network = accelerate.Accelerator(cpu=True), make_network()
    prepared, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), lr=0.1))
    accelerator.backward(F.cross_entropy(prepared(images), targets))
    optimizer.step()
    torch.testing.assert_close(accelerator.unwrap_model(prepared).state_dict(), stepped(make_network(), batch))
