"""The native file: round trips, and files that are cut short, foreign or mutated."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import teas


def module(width=5, **options):
    return nn.Sequential(nn.Linear(6, width), teas.IF(torch.full((width,), 0.5), **options), nn.Linear(width, 3), teas.LIF(0.5, **options))


def network(**options):
    torch.manual_seed(0)
    return teas.SpikingNetwork(module(**options), {"1": 3, "3": 5}, layout="even")


def test_round_trip_is_exact_and_byte_stable(tmp_path):
    original = network()
    teas.save_network(original, tmp_path / "a.safetensors")
    loaded = teas.load_network(tmp_path / "a.safetensors", module())
    assert loaded.windows == original.windows
    assert loaded.semantics == original.semantics
    x = torch.randn(16, 6)
    assert torch.equal(original(x).logits, loaded(x).logits)
    assert original(x).record["1"].count.sum() > 0
    teas.save_network(loaded, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_weights_in_bytes_are_within_half_a_step_and_the_rest_is_exact(tmp_path):
    original = network()
    teas.save_network(original, tmp_path / "a.safetensors", bits=8)
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert file.get_tensor("0.weight").dtype == torch.int8
        assert json.loads(file.metadata()["teas"])["format"] == 2
    loaded = teas.load_network(tmp_path / "a.safetensors", module())
    assert loaded.windows == original.windows
    for name, value in original.module.state_dict().items():
        found = loaded.module.state_dict()[name]
        if value.dim() < 2:
            assert torch.equal(found, value)
        else:
            step = value.abs().amax(1, keepdim=True) / 127
            assert ((found - value).abs() <= step * 0.501).all()
            assert (found != value).any()
    teas.save_network(loaded, tmp_path / "b.safetensors", bits=8)
    again = teas.load_network(tmp_path / "b.safetensors", module())
    for name, value in loaded.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], value, rtol=1e-6, atol=0)
    with pytest.raises(teas.TeasError, match="32, 16 or 8 bits"):
        teas.save_network(original, tmp_path / "c.safetensors", bits=4)


def test_bytes_without_their_step_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    teas.save_network(network(), path, bits=8)
    rewritten(path, lambda header, tensors: tensors.update({"0.weight:step": torch.ones(2)}))
    with pytest.raises(teas.TeasError, match=r"0\.weight is stored in bytes"):
        teas.load_network(path, module())
    teas.save_network(network(), path, bits=8)
    rewritten(path, lambda header, tensors: tensors.pop("0.weight:step"))
    with pytest.raises(teas.TeasError, match=r"0\.weight is stored in bytes without a step per channel"):
        teas.load_network(path, module())


def saved(tmp_path):
    path = tmp_path / "w.safetensors"
    teas.save_network(network(), path)
    return path


def rewritten(path, change):
    with safe_open(str(path), "pt") as file:
        header, tensors = json.loads(file.metadata()["teas"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, str(path), metadata={"teas": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: tensors.pop("2.bias"), "missing 2.bias"),
        (lambda header, tensors: tensors.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda header, tensors: tensors.update({"0.bias": torch.zeros(9)}), r"0.bias is \(9,\), not \(5,\)"),
        (lambda header, tensors: tensors["0.weight"].fill_(float("inf")), "0.weight has a NaN or infinite"),
        (lambda header, tensors: tensors["1.threshold"].fill_(-1), "must be positive"),
        (lambda header, tensors: header.update(format=99), "newer teas"),
        (lambda header, tensors: header.update(windows={"1": 0, "3": 2}), "integer >= 1"),
        (lambda header, tensors: header.update(windows={"1": 2}), "no window for layer '3'"),
        (lambda header, tensors: header.update(windows=3), "damaged"),
        (lambda header, tensors: header.update(semantics={"code": "morse"}), "rate, radix, first_spike"),
        (lambda header, tensors: header.update(semantics={"beep": "morse"}), "unknown option"),
        (lambda header, tensors: header["neurons"]["1"].update(reset="subtract"), "differ from those of the module"),
    ],
)
def test_files_that_do_not_fit_are_refused(change, message, tmp_path):
    path = saved(tmp_path)
    rewritten(path, change)
    with pytest.raises(teas.TeasError, match=message):
        teas.load_network(path, module())


def test_missing_foreign_and_cut_files(tmp_path):
    with pytest.raises(teas.TeasError, match="does not exist"):
        teas.load_network(tmp_path / "nothing", module())
    save_file({"a": torch.zeros(2)}, str(tmp_path / "foreign"))
    with pytest.raises(teas.TeasError, match="written by another tool"):
        teas.load_network(tmp_path / "foreign", module())
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(teas.TeasError, match="cut short"):
        teas.load_network(path, module())


def test_damaged_weights_are_never_written(tmp_path):
    broken = network()
    broken.module[0].weight.data[0, 0] = float("nan")
    with pytest.raises(teas.TeasError, match=r"0\.weight"):
        teas.save_network(broken, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(teas.TeasError, match="No space left on device"):
        teas.save_network(network(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
