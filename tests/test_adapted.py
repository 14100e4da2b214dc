"""`teas.adapt` in one call, and what it returns in a plain PyTorch loop and in Lightning's Trainer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import teas
from peers import digits
from teas.adapt import allocation


def network(window=8):
    torch.manual_seed(0)
    options = {"reset": "subtract", "surrogate": "arctan"}
    return teas.SpikingNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), teas.IF(**options), nn.Linear(32, 10), teas.IF(**options)), window)


def loader(count=256):
    return DataLoader(TensorDataset(*digits(count)), batch_size=64, shuffle=True)


@pytest.mark.parametrize("by", ["damage", "activity", "uniform"])
def test_windows_meet_the_mean_and_share_the_weights(by):
    net = network()
    adapted = teas.adapt(net, list(loader()), 3.5, by=by)
    assert isinstance(adapted, nn.Module)
    assert 3 <= adapted.windows.mean <= 3.5
    assert net.windows == {"2": 8, "4": 8}
    assert adapted.module[1].weight is net.module[1].weight
    if by == "uniform":
        assert adapted.windows == {"2": 4, "4": 3}
    if by == "activity":
        activity = {name: found.activity for name, found in teas.measure_activity(net, list(loader())).items()}
        assert adapted.windows == allocation.by_activity(activity, dict(net.windows), 3.5)


@pytest.mark.parametrize("by", ["damage", "activity"])
def test_training_while_windows_shrink_learns(by):
    net, data = network(), loader(1000)
    teas.adapt(net, data, 8, by="uniform", epochs=3, learning_rate=5e-3, scale=8)
    adapted = teas.adapt(net, data, 4, by=by, epochs=2, finetune=1, learning_rate=5e-3, scale=8)
    assert adapted.windows.mean <= 4
    images, labels = digits(1700)
    assert (adapted.eval()(images[1000:]).logits.argmax(1) == labels[1000:]).float().mean() > 0.7


def test_bad_requests_are_refused():
    with pytest.raises(teas.TeasError, match="windows only shrink"):
        teas.adapt(network(), list(loader()), 9)
    with pytest.raises(teas.TeasError, match="only once"):
        teas.adapt(network(), iter(loader()), 4)
    with pytest.raises(teas.TeasError, match="choose one of damage, activity, uniform"):
        teas.adapt(network(), list(loader()), 4, by="magic")


def test_a_plain_pytorch_loop(tmp_path):
    adapted = teas.adapt(network(), list(loader()), 4).train()
    optimizer = torch.optim.Adam(adapted.parameters(), 5e-3)
    losses = []
    for _ in range(4):
        for images, labels in loader():
            loss = F.cross_entropy(8 * adapted(images).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-4:]) < sum(losses[:4])
    twin = network().with_windows(adapted.windows)
    twin.load_state_dict(adapted.state_dict())
    images = digits(32)[0]
    assert torch.equal(twin(images).logits, adapted(images).logits)
    assert adapted.to("cpu", torch.float64)(images.double()).logits.dtype == torch.float64


def test_lightning_trains_it(tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning: pip install 'teas[lightning]'")

    class Classifier(lightning.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def training_step(self, batch, _):
            images, labels = batch
            return F.cross_entropy(8 * self.network(images).logits, labels)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 5e-3)

    adapted = teas.adapt(network(), list(loader()), 4)
    before = adapted.module[1].weight.detach().clone()
    images, labels = digits(256)
    loss_before = F.cross_entropy(8 * adapted(images).logits, labels).item()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", default_root_dir=str(tmp_path), **quiet)
    trainer.fit(Classifier(adapted), loader())
    assert not torch.equal(adapted.module[1].weight, before)
    assert F.cross_entropy(8 * adapted.eval()(images).logits, labels).item() < loss_before
