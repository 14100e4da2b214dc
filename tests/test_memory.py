"""Ways to train in less memory: the same step from less that is kept, and a clear end where memory runs out."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import teas
from teas.adapt.memory import explained, peak_memory
from teas.ann.architectures import Design, build
from teas.spiking import network as network_module
from teas.spiking import recompute as recompute_module
from teas.spiking.neuron import run_immediate
from teas.spiking.recompute import from_bits, to_bits
from teas.spiking.room import room

WINDOWS = {"conv_if1": 6, "conv_if2": 4, "if1": 3, "if2": 5}


def network(dropout=0.0, dtype=torch.float32, voters=1):
    torch.manual_seed(0)
    design = Design((4, 6, 20), pooling="max", batch_norm=True, dropout=dropout, voters=voters)
    module = build("lenet", (1, 12, 12), 3, lambda: teas.LIF(0.75, learn_leak=True, surrogate="arctan"), design)
    return teas.SpikingNetwork(module.to(dtype), WINDOWS)


def step(net, inputs, labels, **options):
    torch.manual_seed(1)
    stage = teas.Stage("step", 1, 1e-2, scale=5.0, **options)
    return teas.run_stage(net, torch.utils.data.DataLoader([*zip(inputs, labels, strict=True)], len(labels)), stage)[0]


def examples(n=8, dtype=torch.float32):
    torch.manual_seed(2)
    return torch.randn(n, 1, 12, 12, dtype=dtype), torch.randint(3, (n,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # compiled loops, and torch alone
@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5, 7), (4, 2, 0), (1000, 33)])
def test_bits_come_back(shape, dtype):
    train = (torch.rand(shape) < 0.3).to(dtype)
    bits = to_bits(train)
    assert np.array_equal(bits.numpy(), np.packbits(train.numpy().astype(bool)))
    assert torch.equal(from_bits(bits, train.shape, train.dtype), train)


@pytest.mark.parametrize("channels_last", [False, True])
def test_room_for_a_large_tensor_is_like_any_other(channels_last):
    shape, order = (2, 5, 1000, 1000), torch.channels_last if channels_last else torch.contiguous_format
    found = room(shape, torch.float32, torch.device("cpu"), channels_last)
    assert found.stride() == torch.empty(shape, memory_format=order).stride()
    values = torch.randn(shape)
    found.copy_(values)
    kept = found[1].clone()
    assert torch.equal(found, values)
    part = found[1]
    del found
    assert torch.equal(part, kept)  # its memory lives as long as anything reads it
    with pytest.raises((MemoryError, RuntimeError), match="can't allocate"):
        room((2**57,), torch.float32, torch.device("cpu"))


def test_bits_come_back_in_the_order_of_memory():
    train = (torch.rand(3, 5, 4, 7) < 0.3).float().contiguous(memory_format=torch.channels_last)
    found = from_bits(to_bits(train), train.shape, train.dtype, channels_last=True)
    assert torch.equal(found, train)
    assert found.stride() == train.stride()


def test_channels_that_lie_last_stay_there_and_learn_the_same():
    inputs = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, bias=False), torch.nn.BatchNorm2d(6), teas.IF(), torch.nn.Conv2d(6, 4, 3), teas.IF(), torch.nn.Flatten(),
            torch.nn.Linear(64, 3),
        )  # fmt: skip
        net = teas.SpikingNetwork(module.double(), 5).train().to(memory_format=order)
        output = net(inputs.contiguous(memory_format=order), keep_spikes=True)
        assert all(layer.spikes.flatten(0, 1).is_contiguous(memory_format=order) for layer in output.record.values())
        output.logits.square().sum().backward()
        gradients.append([parameter.grad.contiguous() for parameter in net.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients)
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients[0])


def test_recomputation_changes_no_bit_of_weights_and_statistics():
    plain, small = network(dropout=0.3), network(dropout=0.3)
    first, second = (step(net, *examples(), regulariser="sound", strength=0.1, recompute=flag) for net, flag in ((plain, False), (small, True)))
    assert first.loss == second.loss
    for (name, a), b in zip(plain.state_dict().items(), small.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(plain.state_dict()["module.fc1.weight"], network().state_dict()["module.fc1.weight"])
    assert plain.state_dict()["module.norm1.num_batches_tracked"] == 1


def test_recomputation_has_the_same_gradients():
    inputs, labels = examples()
    found = []
    for recompute in (False, True):
        net = network().train()
        net.recompute = recompute
        nn.functional.cross_entropy(5 * net(inputs).logits, labels).backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert any(gradient.abs().sum() > 0 for gradient in found[0].values())
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def kept_bytes(recompute):
    """Bytes that a forward pass of training leaves allocated, all that it allocated minus all that it freed."""
    net = network()
    net.recompute = recompute
    inputs = examples(64)[0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        output = net(inputs)
    assert output.logits.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def test_recomputation_keeps_little_more_than_bits():
    kept, small = kept_bytes(False), kept_bytes(True)
    convolved, mapped = 4 * 64 * (4 * 12 * 12 + 4 * 6 * 2 * 2), 4 * 64 * (3 * 20 + 5 * 3)  # float32 sums; those of the first layer are alike at every step
    trains = 64 * (6 * 4 * 12 * 12 + 4 * 6 * 2 * 2 + 3 * 20 + 5 * 3) / 8  # bits, time by batch by neuron
    pooled = 64 * 4 * 4 * 4 * 4 * (4 + 8)  # at the window of the second layer: a smaller train before its convolution, and indices of 8 bytes
    records = 3 * 4 * 64 * (4 * 12 * 12 + 6 * 2 * 2 + 20 + 3)  # counts, mean firing potentials, residuals
    assert small < records + 2 * trains  # bits, but no potential and no train of any step
    assert small < kept < records + convolved + mapped + 4 * trains + 2 * pooled  # sums beside, but neither normalised ones nor potentials


def test_parts_of_a_batch_make_the_same_step():
    """Equal up to the order of float64 sums, which Adam's first step divides by their own size: 1e-9."""
    results = []
    for parts in (1, 4):
        net = network(dtype=torch.float64)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # its statistics are those of a part, not of the batch
                module.train = lambda mode=True, module=module: module
        results.append((step(net, *examples(10, torch.float64), parts=parts), net.state_dict()))
    (whole, expected), (split, found) = results
    assert split.loss == pytest.approx(whole.loss, abs=1e-9)
    assert split.activity == pytest.approx(whole.activity)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)


def test_sixteen_bits_train_and_potentials_stay_in_thirty_two():
    net = network()
    seen = []
    net.module.conv2.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    before = net.state_dict()["module.fc1.weight"].clone()
    epoch = step(net, *examples(), precision="bfloat16")
    assert seen == [torch.bfloat16]
    assert net.module.fc1.weight.dtype == torch.float32
    assert not torch.equal(before, net.module.fc1.weight)
    assert abs(epoch.loss - step(network(), *examples()).loss) < 0.3
    assert net(examples()[0]).record["conv_if2"].residual.dtype == torch.float32


def test_loss_by_step_by_hand():
    net = network(voters=2)
    inputs, labels = examples()
    output = net(inputs)
    by_step = net.outputs_by_step(output.record)
    assert by_step.shape == (5, 8, 3)
    torch.testing.assert_close(by_step.mean(0), output.logits)
    by_hand = torch.stack([nn.functional.cross_entropy(5 * now, labels) for now in by_step]).mean()
    assert step(network(voters=2), inputs, labels, loss="per_step").loss == pytest.approx(by_hand.item(), rel=1e-6)
    two_phase = teas.SpikingNetwork(nn.Sequential(nn.Linear(2, 2), teas.IF(reset="subtract")), 4, firing="two_phase")
    with pytest.raises(teas.TeasError, match="loss 'rate'"):
        two_phase.outputs_by_step(two_phase(torch.zeros(1, 2)).record)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_running_out_of_memory_names_batch_windows_and_three_ways_out(error):
    net = network()

    def fail(module, inputs, output):
        raise error

    net.module.conv2.register_forward_hook(fail)
    with pytest.raises(teas.TeasError) as caught:
        step(net, *examples(), parts=2)
    message = str(caught.value)
    for part in ("8 samples in 2 parts", str(WINDOWS), "mean 4.5", "training.parts = 4", "training.recompute", "training.window"):
        assert part in message


def test_a_real_allocation_that_fails_is_recognised():
    with pytest.raises(teas.TeasError, match="out of memory"), explained(64, 1, teas.TimeWindows({"a": 4})):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="another"), explained(64, 1, teas.TimeWindows({"a": 4})):
        raise RuntimeError("another")


def test_peak_memory_is_that_of_the_process():
    assert 20 < peak_memory(torch.device("cpu")) < 1e6


NORMS = {"usual": {}, "cumulative": {"momentum": None}, "plain": {"affine": False}, "forgetful": {"track_running_stats": False}}
NEURONS = {
    "leaky": lambda: teas.LIF(0.75, learn_leak=True, surrogate="arctan"),
    "subtracting": lambda: teas.IF(0.5, reset="subtract", learn_threshold=True, surrogate="arctan"),
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("code", ["rate", "first_spike"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("neurons", NEURONS.values(), ids=NEURONS)
def test_a_norm_inside_the_window_is_the_norm_before_it(neurons, dtype, code, options):
    """A hooked norm stays a module of its own: spikes and statistics are the same to the bit, gradients to rounding; in 16 bits these depend on the order
    in memory: 20 %."""
    found = []
    for hooked in (False, True):
        torch.manual_seed(3)
        norms = [nn.BatchNorm2d(4, **options), nn.BatchNorm2d(5, **options)]
        convolutions = nn.Conv2d(2, 4, 3, bias=False), norms[0], neurons(), nn.Conv2d(4, 5, 3, bias=False), norms[1], neurons()
        net = teas.SpikingNetwork(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(45, 3), neurons()), 4, code=code)
        net.windows = dict(zip(net.spiking_layers, (4, 6, 9), strict=True))
        if hooked:
            for norm in norms:
                norm.register_forward_hook(lambda *_: None)
        net.train()
        inputs = torch.randn(7, 2, 7, 7, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = net(inputs).logits
        (logits - 1).square().sum().backward()
        state = {f"state {name}": value for name, value in net.state_dict().items()}
        found.append({"inputs": inputs.grad, "logits": logits.detach(), **state, **{name: p.grad for name, p in net.named_parameters()}})
    assert found[0]["inputs"].norm() > 0
    for name, value in found[0].items():
        allowed = 0.2 if dtype == torch.bfloat16 else 0 if name == "logits" or name.startswith("state") else 1e-5
        assert (value - found[1][name]).double().norm() <= allowed * found[1][name].double().norm(), name


def test_a_batch_of_one_value_a_channel_is_told():
    net = teas.SpikingNetwork(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), teas.IF(), nn.Linear(4, 2)), 4).train()
    with pytest.raises(teas.TeasError, match="more than one value per channel"):
        net(torch.randn(1, 3))


BITS = {
    "first": {}, "even": {"layout": "even"}, "residual": {"transform": "residual"}, "linear": {"transform": "linear"}, "first spike": {"code": "first_spike"},
    "poisson": {"encoding": "poisson"}, "latency": {"code": "first_spike", "encoding": "latency"}, "event counts": {"encoding": "train"},
}  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", BITS.values(), ids=BITS)
def test_bits_change_no_gradient(options, recompute, monkeypatch):
    """The same step with trains kept as they are; a recording may have several events in a bin."""
    found = []
    for kept in (recompute_module.kept_as_bits, lambda trains: contextlib.nullcontext()):
        monkeypatch.setattr(recompute_module, "kept_as_bits", kept)
        monkeypatch.setattr(network_module, "kept_as_bits", kept)
        torch.manual_seed(4)
        module = nn.Sequential(nn.Linear(6, 9), teas.IF(0.4, surrogate="arctan"), nn.Linear(9, 5), teas.LIF(0.8, 0.3, surrogate="arctan"))
        net = teas.SpikingNetwork(module, {"1": 4, "3": 7}, **options).train()
        net.recompute = recompute
        inputs = torch.randint(4, (8, 4, 6)).float() if "train" in options.values() else torch.rand(8, 6)
        (net(inputs).logits - 1).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert all(gradient.norm() > 0 for gradient in found[0].values() if gradient is not None)
    for name, gradient in found[0].items():
        assert gradient is None or torch.equal(gradient, found[1][name]), name


def test_potentials_come_back_in_thirty_two_bits():
    """Sums of 16 bits have the gradient of the same sums in 32, rounded."""
    torch.manual_seed(0)
    sums, weight, neuron = torch.randn(6, 3, 8).bfloat16(), torch.randn(6, 3, 8), teas.LIF(0.9, surrogate="arctan")
    gradients = []
    for kind in (torch.bfloat16, torch.float32):
        current = sums.to(kind, copy=True).requires_grad_()
        (run_immediate(current, neuron).spikes * weight).sum().backward()
        gradients.append(current.grad)
    assert torch.equal(gradients[0], gradients[1].bfloat16())
