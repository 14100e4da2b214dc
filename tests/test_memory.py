"""Ways to train in less memory: the same step from less that is kept, and a clear end where memory runs out."""

import pytest
import torch
from torch import nn

import teas
from teas.adapt.memory import explained, peak_memory
from teas.ann.architectures import Design, build
from teas.spiking.recompute import from_bits, to_bits

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


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 5, 7), (4, 2, 0)])
def test_bits_come_back(shape):
    train = (torch.rand(shape) < 0.3).double()
    bits = to_bits(train)
    assert bits.numel() == (train.numel() + 7) // 8
    assert torch.equal(from_bits(bits, train.shape, train.dtype), train)


def test_recomputation_changes_no_bit_of_weights_and_statistics():
    plain, small = network(dropout=0.3), network(dropout=0.3)
    first, second = (step(net, *examples(), regulariser="sound", strength=0.1, recompute=flag) for net, flag in ((plain, False), (small, True)))
    assert first.loss == second.loss
    for (name, a), b in zip(plain.state_dict().items(), small.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(plain.state_dict()["module.fc1.weight"], network().state_dict()["module.fc1.weight"])
    assert plain.state_dict()["module.norm1.num_batches_tracked"] == 1


def test_every_way_to_recompute_has_the_same_gradients():
    inputs, labels = examples()
    found = []
    for recompute in (False, True, "neurons"):
        net = network().train()
        net.recompute = recompute
        nn.functional.cross_entropy(5 * net(inputs).logits, labels).backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    assert any(gradient.abs().sum() > 0 for gradient in found[0].values())
    for other in found[1:]:
        for name, gradient in found[0].items():
            assert torch.equal(gradient, other[name]), name


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
    plain, small = kept_bytes(False), kept_bytes(True)
    potentials = 4 * 64 * (6 * 4 * 12 * 12 + 4 * 6 * 2 * 2 + 3 * 20 + 5 * 3)  # float32, time by batch by neuron
    assert plain > 2 * potentials  # trains and potentials at the least
    records = 3 * 4 * 64 * (4 * 12 * 12 + 6 * 2 * 2 + 20 + 3)  # counts, mean firing potentials, residuals
    assert small < records + potentials / 8  # and bits, but no potential and no train of any step
    assert small < kept_bytes("neurons") < plain - potentials  # sums beside, but neither normalised ones nor potentials


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
