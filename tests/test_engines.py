"""Engines against the network they execute: exact on dyadic weights, rarely a flip on others, and honest about what they can't run."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import conformance
import teas
from conformance import CASES, build, check, check_all, neurons
from teas.engine import ENGINES, choose_engine
from teas.engine import count as count_module
from teas.engine.contract import choose
from teas.engine.count import CountEngine
from teas.engine.int8 import Int8Compiler, _rounded, exact_kernels, quantise
from teas.engine.plan import Compiler
from teas.engine.reference import ReferenceEngine
from test_oracle import TWO_PHASE, network_of, networks

CPU = torch.device("cpu")
COUNT, REORDERED, INT8, REFERENCE = CountEngine(), CountEngine("count_reordered", reorder=True), CountEngine("count_int8", int8=True), ReferenceEngine()
NOT_INT8 = {"T = 2048", "from 2048 to 8", "circular padding", "same padding", "no synapses", "input at the readout"} | {
    name for name in CASES if "average" in name
}
needs_int8 = pytest.mark.skipif(not exact_kernels(), reason="no exact 8-bit kernels on this machine")


@pytest.mark.parametrize("engine", [COUNT, REORDERED, REFERENCE], ids=lambda e: e.name)
@pytest.mark.parametrize("case", CASES)
def test_float_engines_conform(engine, case):
    check_all(engine, [case])


@needs_int8
@pytest.mark.parametrize("case", CASES)
def test_int8_engine_conforms(case):
    network, _ = build(case)
    if case in NOT_INT8:
        assert INT8.why_not(network, CPU)
    else:
        check_all(INT8, [case])


def test_cases_fire_in_every_way():
    """The cases are worth running: each has silent, saturated and intermediate neurons, and the suite has ties."""
    ties = 0
    for case in CASES:
        network, inputs = build(case)
        output = network(inputs)
        for layer, record in output.record.items():
            assert (record.count == 0).any(), (case, layer)
            assert (record.count == record.window).any(), (case, layer)
            assert record.window == 1 or ((record.count > 0) & (record.count < record.window)).any(), (case, layer)
            ties += ((record.residual == 0) & (record.count > 0)).sum()
    assert ties > 100


def synapses_run(network, engine=COUNT):
    """Names of the operations with weights that an engine runs, each as often as it does."""
    modules = dict(network.module.named_modules())
    operations = [operation for plan in engine._plans(network, "nothing") for operation in plan.layer.synapses if operation.kind == "call_module"]
    return sorted(operation.name for operation in operations if isinstance(modules[operation.target], (nn.Conv2d, nn.Linear)))


def test_a_current_is_computed_once_for_the_layers_of_a_window():
    network, _ = build("membrane shortcuts")
    assert synapses_run(network) == ["c1", "c2", "c3"]
    f1, f2, f3 = network.spiking_layers
    assert synapses_run(network.with_windows({f1: 4, f2: 8, f3: 2})) == ["c1"] * 3 + ["c2"] * 2 + ["c3"]
    assert synapses_run(network.with_windows({f1: 4, f2: 8, f3: 8})) == ["c1"] * 2 + ["c2", "c3"]  # f3 reads the stream of f2
    assert synapses_run(network.with_windows({f1: 4, f2: 8, f3: 4})) == ["c1"] * 2 + ["c2"] * 2 + ["c3"]  # and c1 of f1
    drawn, _ = build("membrane shortcuts", encoding="poisson")
    assert synapses_run(drawn) == ["c1"] * 3 + ["c2", "c3"]  # each layer draws its own input


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_graphs_conform(data):
    layers, samples = data.draw(networks("two_phase"))
    network = network_of(layers, TWO_PHASE[0]).eval()
    inputs = torch.tensor([[float(x) for x in sample] for sample in samples])
    check(COUNT, network, inputs)
    check(REORDERED, network, inputs)
    if not INT8.why_not(network, CPU):
        check(INT8, network, inputs)


def strict_threshold(monkeypatch):  # `>` for `>=`: a tie no longer fires
    monkeypatch.setattr(torch.Tensor, "floor_", lambda self: self.ceil_().sub_(1))


def no_bias(monkeypatch):
    real = Compiler.weight_and_bias
    monkeypatch.setattr(Compiler, "weight_and_bias", lambda self, operation: (real(self, operation)[0], None))


def bias_once(monkeypatch):  # not once a step
    real = Compiler.weight_and_bias

    def once(self, operation):
        weight, bias = real(self, operation)
        return weight, None if bias is None else bias / self.levels

    monkeypatch.setattr(Compiler, "weight_and_bias", once)


def clamp_too_low(monkeypatch):
    real = torch.Tensor.clamp_
    monkeypatch.setattr(torch.Tensor, "clamp_", lambda self, *a, **k: real(real(self, *a, **k), max=max([k.get("max", 0), *a]) - 1))


def no_clamp(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "clamp_", lambda self, *a, **k: self)


def windows_ignored(monkeypatch):  # counts of another window taken as they are
    monkeypatch.setattr(Compiler, "charge", lambda self, values, name, any_layout=False: values[name].float())


def no_initial_potential(monkeypatch):
    real = count_module.plan_layer

    def plan(*arguments):
        before = {module: module.v0 for module in arguments[1].module.modules() if isinstance(module, teas.IF)}
        for module in before:
            module.v0 = 0.0
        try:
            return real(*arguments)
        finally:
            for module, v0 in before.items():
                module.v0 = v0

    monkeypatch.setattr(count_module, "plan_layer", plan)


def overwrites_what_others_read(monkeypatch):
    monkeypatch.setattr(Compiler, "may_overwrite", lambda self, name, operation: True)


FAULTS = [strict_threshold, no_bias, bias_once, clamp_too_low, no_clamp, windows_ignored, no_initial_potential, overwrites_what_others_read]


@pytest.mark.parametrize("engine", [COUNT, REORDERED], ids=lambda e: e.name)
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_count_engines_fail(engine, fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_all(engine, CASES)


def half_unit_forgotten(monkeypatch):
    real = Int8Compiler.rounding
    monkeypatch.setattr(Int8Compiler, "rounding", lambda self, bias, unit, theta: real(self, bias, 0 * unit, theta))


def overwrites_kept_counts(monkeypatch):
    real = Int8Compiler.fuse
    monkeypatch.setattr(Int8Compiler, "fuse", lambda self, steps, threshold, spare: real(self, steps, threshold, self.layer.sources))


def branch_forgotten(monkeypatch):
    real = Int8Compiler.pack

    def pack(self, child, integers):
        kernel = real(self, child, integers)
        return lambda x, scale, bias, dtype, **_: kernel(x, scale, bias, dtype)

    monkeypatch.setattr(Int8Compiler, "pack", pack)


def weights_wrap(monkeypatch):  # 7 bits where 8 are needed
    real = Int8Compiler.pack
    monkeypatch.setattr(Int8Compiler, "pack", lambda self, child, integers: real(self, child, integers.clamp(-63, 63)))


@needs_int8
@pytest.mark.parametrize(
    "fault", [half_unit_forgotten, overwrites_kept_counts, branch_forgotten, weights_wrap, no_bias, bias_once, clamp_too_low, no_initial_potential]
)
def test_broken_int8_engines_fail(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_all(INT8, [case for case in CASES if case not in NOT_INT8])


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1, self.if1 = nn.Conv2d(before, after, 3, stride, 1), neurons(1.3)
        self.conv2, self.if2 = nn.Conv2d(after, after, 3, 1, 1), neurons(1.7)
        self.skip = nn.Identity() if before == after and stride == 1 else nn.Conv2d(before, after, 1, stride)

    def forward(self, x):
        return self.if2(self.conv2(self.if1(self.conv1(x))) + self.skip(x))


def small_resnet(windows=45, seed=0):
    """Random weights, no two sums alike: rounding matters only where a potential is within 1e-6 of a multiple of the threshold."""
    torch.manual_seed(seed)
    blocks = [Block(8, 8, 1), Block(8, 16, 2), Block(16, 16, 1)]
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), neurons(1.1), *blocks, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))
    return teas.SpikingNetwork(module.eval(), windows, firing="two_phase").eval(), torch.randn(16, 3, 32, 32)


def flip_rate(engine, network, inputs, reference=None):
    with torch.no_grad():
        wanted = (reference or network)(inputs).record
    found = engine.prepare(network, "counts")(inputs).record
    wrong = sum((found[layer].count != wanted[layer].count).sum().item() for layer in wanted)
    return wrong / sum(record.count.numel() for record in wanted.values())


@pytest.mark.parametrize("engine", [COUNT, REORDERED], ids=lambda e: e.name)
def test_flips_are_rare_on_real_weights(engine, record_property):
    rates = [flip_rate(engine, *small_resnet(seed=seed)) for seed in range(3)]
    record_property("flip_rates", rates)
    assert sum(rates) / 3 <= (0 if engine is COUNT else 1e-5), rates


@needs_int8
@pytest.mark.parametrize("windows", [8, 45, 255])
def test_int8_never_flips_on_quantised_weights(windows):
    network, inputs = small_resnet(windows)
    quantised = quantise(network)
    assert set(INT8.fallbacks(quantised)) == {"1/_0"}  # the analog input
    assert flip_rate(INT8, quantised, inputs) == 0


@needs_int8
def test_neurons_are_fused_into_the_kernels_where_that_is_exact():
    quantised = quantise(small_resnet()[0])
    fused = {plan.layer.name for plan in INT8._plans(quantised, "counts") if plan.fused is not None}
    assert fused == {"2.if1", "2.if2", "3.if1", "4.if1", "4.if2"}  # all but the analog input, a sum of two maps, and the readout
    assert not any(plan.fused for plan in INT8._plans(quantised, "potentials"))
    for name in ("residual, per channel", "residual, per channel, unequal"):  # from 4 steps to 3: a charge is a multiple of 3/4
        network, _ = conformance.build(name)
        assert [plan.fused is not None for plan in INT8._plans(network, "counts")] == [False, True, True], name
    odd = [module for module in quantised.modules() if isinstance(module, teas.IF)]
    for module in odd:
        module.threshold.fill_(1 / 3)  # no whole number of any unit
    assert not any(plan.fused for plan in INT8._plans(quantised, "counts"))


def test_float32_is_no_further_off_than_is_said():
    """Sums of three terms in float32, in every order and with products rounded or not, against numbers that are exact to 60 bits."""
    generator = np.random.default_rng(0)
    n, most = 200_000, 46
    theta, bias = generator.uniform(0.9, 4, n), generator.uniform(-3, 3, n)
    step, count = 2.0 ** generator.integers(-14, -6, n), generator.integers(0, most, n)
    value = generator.uniform(-1, most, n)  # in thresholds
    acc = np.round((value * theta - bias - count) / step)
    exact = (step * acc.astype(np.longdouble) + bias + count) / theta.astype(np.longdouble)
    single = np.float32
    scale, amplitude, shift = (step / theta).astype(single), (1 / theta).astype(single), (bias / theta).astype(single)
    scaled, added = scale * acc.astype(single), amplitude * count.astype(single)
    inexact = single(scale.astype(np.float64) * acc + shift.astype(np.float64)), amplitude.astype(np.float64) * count  # a product is not rounded
    sums = [(scaled + shift) + added, scaled + (shift + added), (scaled + added) + shift, single(inexact[0] + inexact[1])]
    assert all(found.dtype == single for found in sums)
    bound = _rounded(most, torch.from_numpy(abs(bias / theta)), torch.from_numpy(count / theta)).numpy()
    nearest = [float((abs(found - exact) / bound).max()) for found in sums]
    assert max(nearest) <= 1, nearest
    assert max(nearest) > 0.3, nearest  # the bound is near what happens


def test_quantise_makes_another_network():
    network, inputs = small_resnet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantised = quantise(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for name, value in quantised.state_dict().items():
        assert value.dtype == torch.float32
        assert (value - before[name]).abs().max() <= before[name].abs().max() / 60, name
    rates = [net(inputs).record["4.if2"].count.mean() for net in (network, quantised)]
    assert abs(rates[1] / rates[0] - 1) < 0.05


def test_folding_batch_norm_keeps_the_counts():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), neurons(1.3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), neurons(1.1)).eval()
    for norm in (module[1], module[4]):
        norm.running_mean.normal_(0, 0.2), norm.running_var.uniform_(0.3, 2), norm.weight.data.normal_(1, 0.3), norm.bias.data.normal_(0, 0.3)
    network, inputs = teas.SpikingNetwork(module, 16, firing="two_phase").eval(), torch.randn(8, 3, 16, 16)
    assert network(inputs).record["5"].count.unique().numel() > 8
    assert flip_rate(COUNT, network, inputs) == 0
    assert flip_rate(REORDERED, network, inputs) <= 1e-4


def test_poisson_input_is_the_same_by_seed():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), neurons())
    network = teas.SpikingNetwork(module, 8, firing="two_phase", encoding="poisson").eval()
    inputs = torch.rand(2, 3, 8, 8)
    torch.manual_seed(0)
    wanted = network(inputs).logits
    torch.manual_seed(0)
    assert torch.equal(COUNT.prepare(network)(inputs).logits, wanted)


def immediate():
    return teas.SpikingNetwork(nn.Sequential(nn.Linear(3, 2), teas.IF(reset="subtract")), 4).eval()


def two_phase(**options):
    return teas.SpikingNetwork(nn.Sequential(nn.Linear(3, 2), neurons(**options), nn.Linear(2, 2)), 4, firing="two_phase").eval()


@pytest.mark.parametrize(
    ("network", "device", "reason"),
    [
        (immediate, "cpu", "needs firing 'two_phase', the network has 'immediate'"),
        (lambda: two_phase().train(), "cpu", "training mode: call network.eval()"),
        (two_phase, "cuda", "on the CPU only, not on cuda"),
        (lambda: two_phase().double(), "cpu", "float32, the network has float64"),
        (lambda: two_phase().to("meta"), "cpu", "its weights are not on the CPU"),
    ],
)
@pytest.mark.parametrize("engine", [COUNT, INT8], ids=lambda e: e.name)
def test_reasons(engine, network, device, reason):
    assert any(reason in found for found in engine.why_not(network(), torch.device(device)))


@needs_int8
def test_int8_says_what_it_leaves_to_float():
    network, _ = small_resnet(windows=300)
    assert "exceed 8 bits" in INT8.fallbacks(network)["2.if1/_2_conv1"]
    assert "quantise(network)" in INT8.fallbacks(small_resnet()[0])["2.if1/_2_conv1"]
    assert any("nothing in it can run on 8-bit kernels" in reason for reason in INT8.why_not(network, CPU))
    assert COUNT.fallbacks(network) == {}


def test_a_named_engine_that_cannot_run_gives_all_its_reasons():
    with pytest.raises(teas.TeasError, match=r"'count' can't run this network: .*two_phase.*training mode.*not on cuda"):
        choose_engine(immediate().train(), "cuda", "count")
    with pytest.raises(teas.TeasError, match=r"'count'.*two_phase"):
        COUNT.prepare(immediate())
    with pytest.raises(teas.TeasError, match="choose one of auto, count_int8, count, count_reordered, event, reference"):
        choose_engine(two_phase(), name="warp")
    with pytest.raises(teas.TeasError, match="choose one of potentials, counts, nothing"):
        COUNT.prepare(two_phase(), "all")
    with pytest.raises(teas.TeasError, match=r"'reference'.*on cpu, not on cuda"):
        choose_engine(two_phase(), "cuda")


def test_auto_logs_its_choice_once(caplog):
    caplog.set_level(logging.INFO, logger="teas")
    assert choose_engine(immediate().half()).name == "reference"
    assert len(caplog.records) == 1
    assert "engine reference was chosen; not count_int8: it needs firing 'two_phase'" in caplog.text
    assert "not event: it computes in float32 or float64, the network has float16" in caplog.text
    assert choose_engine(two_phase()).name == "count"
    choose_engine(two_phase(), name="count")
    assert len(caplog.records) == 2


def test_no_engine_at_all():
    with pytest.raises(teas.TeasError, match="'count' can't run"):
        choose(immediate(), "cpu", "auto", [COUNT])


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_damaged_input_is_refused(engine):
    network, inputs = small_resnet()
    if engine.name == "event":
        pytest.importorskip("numba")
        network = teas.SpikingNetwork(network.module, 4).eval()
    if engine.name == "count_int8":
        if not exact_kernels():
            pytest.skip("no exact 8-bit kernels on this machine")
        network = quantise(network)
    run = engine.prepare(network)
    with pytest.raises(teas.TeasError, match="NaN or infinite"):
        run(inputs * float("nan"))
    with pytest.raises(teas.TeasError, match=r"takes a tensor .* got ndarray"):
        run(inputs.numpy())
    with pytest.raises(teas.TeasError, match=r"input is torch.float16, and the weights are torch.float\d+: give inputs.to"):
        run(inputs.half())


def test_a_prepared_network_is_a_snapshot():
    network = two_phase()
    run, inputs = COUNT.prepare(network), torch.randn(4, 3)
    before = run(inputs).logits
    network.windows = dict.fromkeys(network.windows, 1)
    assert torch.equal(run(inputs).logits, before)
    assert not torch.equal(COUNT.prepare(network)(inputs).logits, before)


def test_the_benchmark_runs():
    script = Path(__file__).parents[1] / "benchmarks/engines.py"
    command = [sys.executable, script, "--windows", "2", "--batch", "2", "--rounds", "1", "--no-memory", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)["results"]["2"]
    assert set(found["rows"]) >= {"ann", "reference", "count", "count_reordered"}
    assert found["rows"]["ann"]["time_over_ann"] == 1
    assert found["flips"]["count"] == 0


def test_every_engine_is_in_the_list_once():
    names = [engine.name for engine in ENGINES]
    assert names == ["count_int8", "count", "count_reordered", "event", "reference"]
    assert set(CASES) > NOT_INT8
    assert conformance.KEEPS[0] == "potentials"


@pytest.mark.parametrize("engine", [COUNT, REORDERED], ids=lambda e: e.name)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_trains_as_input_whatever_the_shape_of_a_step(engine, dimensions):
    """`[batch, time, channel, length]` has four axes, but what a layer sums over time has three; images have one more of each."""
    torch.manual_seed(0)
    convolution = (nn.Conv1d, nn.Conv2d)[dimensions - 1](3, 4, 3)
    convolution.weight.data = (convolution.weight.data * 8).round() / 8
    convolution.bias.data = (convolution.bias.data * 8).round() / 8
    module = nn.Sequential(convolution, teas.IF(reset="subtract"), nn.Flatten(), nn.Linear(4 * 5**dimensions, 2))
    network = teas.SpikingNetwork(module, 6, firing="two_phase", encoding="train").eval()
    check(engine, network, (torch.rand(2, 6, 3, *[7] * dimensions) < 0.5).float())
