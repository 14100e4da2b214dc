"""The event engine: the same trains as the reference, whatever their layout, code and windows, and nothing that grows with them."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import teas
from conformance import CASES, build, check, check_all
from teas.engine import event as event_module
from teas.engine import event_layout as layout_module
from teas.engine.event import EventEngine
from teas.engine.int8 import quantise
from test_engines import flip_rate, small_resnet
from test_oracle import FIRST_SPIKE, RATE, network_of, networks

event_run = pytest.importorskip("teas.engine.event_run", reason="numba is not installed (the extra 'event')")
CPU = torch.device("cpu")
INTEGERS, FLOATS = EventEngine(), EventEngine("event_float", integers=False)
ENGINES = pytest.mark.parametrize("engine", [INTEGERS, FLOATS], ids=lambda e: e.name)
RETIMINGS = [("first", "firing_potential"), ("first", "residual"), ("even", "linear"), ("even", "firing_potential")]


@ENGINES
@pytest.mark.parametrize("case", CASES)
def test_event_engine_conforms(engine, case):
    check_all(engine, [case], firing="immediate")


@ENGINES
@pytest.mark.parametrize(("layout", "transform"), RETIMINGS)
def test_every_retimed_train_conforms(engine, layout, transform):
    cases = [case for case, (_, windows) in CASES.items() if len(set(windows)) > 1]
    assert len(cases) > 8
    check_all(engine, cases, firing="immediate", layout=layout, transform=transform)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), options=st.sampled_from(RATE + FIRST_SPIKE))
def test_random_graphs_conform(data, options):
    """Any reset, leak, code and encoding; sums of several sources, concatenated or not."""
    layers, samples = data.draw(networks("immediate"))
    network = network_of(layers, options).eval()
    if any(network.neurons(layer).reset_by != 1 for layer in network.spiking_layers):
        assert "reset_by" in INTEGERS.why_not(network, torch.device("cpu"))[0]
        return
    check(INTEGERS, network, torch.tensor([[float(x) for x in sample] for sample in samples]))


def test_most_cases_run_on_events():
    """Only what is no sum of maps of trains runs on dense currents, and says so."""
    dense = {}
    for case in CASES:
        network, inputs = build(case, firing="immediate")
        for reason in INTEGERS.plan(network, inputs[:1], "nothing").dense.values():
            dense[case] = reason
    assert set(dense) == {"circular padding", "same padding", "view and sum", "viewed", "pooling, ceil", "pooling of averages", "membrane shortcuts, shapes"}
    assert "padding 'circular'" in dense["circular padding"]
    assert "rounds sizes up" in dense["pooling, ceil"]


def test_integers_where_they_hold_every_sum():
    network, inputs = build("residual", firing="immediate")
    assert [layout.numbers.integer for layout in INTEGERS.plan(network, inputs[:1], "nothing").layouts.values()] == [False, True, True]
    assert not any(layout.numbers.integer for layout in FLOATS.plan(network, inputs[:1], "nothing").layouts.values())
    real, images = immediate(small_resnet(8))
    assert not any(layout.numbers.integer for layout in INTEGERS.plan(real, images[:1], "nothing").layouts.values())
    fine = [layout.numbers.integer for layout in INTEGERS.plan(quantise(real), images[:1], "nothing").layouts.values()]
    assert fine == [False, *[True] * 6]
    long = quantise(real.with_windows(60_000))
    fits = {keep: [layout.numbers.integer for layout in INTEGERS.plan(long, images[:1], keep).layouts.values()] for keep in ("nothing", "potentials")}
    assert any(fits["nothing"])
    assert not any(fits["potentials"])  # their sum over all spikes grows with the square of the window


@pytest.mark.parametrize("layout", ["first", "even"])
@pytest.mark.parametrize(("bias", "narrow"), [(40.0, True), (2400.0, False)])
def test_charges_that_sixteen_bits_hold_or_do_not(layout, bias, narrow):
    """Currents of a step take 16 bits in either network, a step's charge with the larger bias takes 17: a shorter way or the longer one, the same counts."""
    generator = torch.Generator().manual_seed(3)
    module = nn.Sequential(nn.Linear(24, 40), teas.IF(reset="subtract", v0=0.5), nn.Linear(40, 35), teas.IF(reset="subtract", v0=0.5), nn.Linear(35, 3))
    with torch.no_grad():
        for linear in (module[0], module[2]):
            linear.weight.copy_(torch.randint(-100, 101, linear.weight.shape, generator=generator) / 16)
            linear.bias.copy_(torch.randint(0, 32, linear.bias.shape, generator=generator) / 16)
        module[2].bias.add_((bias * torch.linspace(-1, 1, 35)).round())
    module[1].threshold.fill_(8.0), module[3].threshold.fill_(bias)
    network = teas.SpikingNetwork(module, {"1": 70, "3": 66}, layout=layout).eval()
    inputs = torch.randint(0, 5, (6, 24), generator=generator) / 4
    numbers = INTEGERS.plan(network, inputs[:1], "nothing").layouts["3"].numbers
    assert (numbers.integer, numbers.narrow) == (True, narrow)
    wanted = network(inputs).record["3"].count
    assert 0 < wanted.mean() < 60
    assert len(wanted.unique()) > 5
    assert torch.equal(INTEGERS.prepare(network, "counts")(inputs).record["3"].count, wanted)
    assert torch.equal(INTEGERS.prepare(network, "nothing")(inputs).logits, network(inputs).logits)


def immediate(found, **semantics):
    network, inputs = found
    return teas.SpikingNetwork(network.module, network.windows, **semantics).eval(), inputs[:4]


@pytest.mark.parametrize("layout", ["first", "even"])
def test_nothing_flips_on_quantised_weights(layout):
    network, inputs = immediate(small_resnet(16), layout=layout)
    network = quantise(network)
    for index, windows in enumerate(([16], [16, 15, 17])):
        network.windows = {name: windows[number % len(windows)] for number, name in enumerate(network.spiking_layers)}
        assert flip_rate(INTEGERS, network, inputs) == 0, index


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("layout", ["first", "even"])
def test_nothing_flips_in_float32_on_weights_of_many_bits(layout, bits):
    network, inputs = immediate(small_resnet(16), layout=layout)
    network = quantise(network, bits)
    network.windows = {name: 16 + number % 3 for number, name in enumerate(network.spiking_layers)}
    assert flip_rate(FLOATS, network, inputs) == 0


def test_bits_out_of_range_are_told():
    with pytest.raises(teas.TeasError, match="17 bits were asked for"):
        quantise(small_resnet()[0], 17)


DOUBLE = [{}, {"layout": "even"}, {"layout": "even", "transform": "residual"}, {"code": "first_spike"}]


@pytest.mark.parametrize("options", DOUBLE, ids=str)
@pytest.mark.parametrize("reset", [{"reset": "subtract"}, {"reset": "zero", "v_reset": 0.1}])
def test_nothing_flips_in_float64_on_real_weights(options, reset):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), teas.LIF(0.9, 0.7, **reset), nn.MaxPool2d(2), nn.Conv2d(16, 20, 3), teas.IF(0.4, **reset), nn.Flatten(1))
    network = teas.SpikingNetwork(nn.Sequential(module, nn.Linear(500, 9), teas.IF(0.3, **reset)), 12, **options).double().eval()
    network.windows = dict(zip(network.spiking_layers, (12, 17, 9), strict=True))
    inputs = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    assert flip_rate(INTEGERS, network, inputs) == 0
    with torch.no_grad():
        wanted, found = network(inputs), INTEGERS.prepare(network)(inputs)
    assert found.logits.dtype == torch.float64
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-12, atol=0)
    for layer, record in wanted.record.items():
        torch.testing.assert_close(found.record[layer].residual, record.residual, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.record[layer].firing_potential, record.firing_potential, rtol=0, atol=1e-12)
    assert all(record.count.unique().numel() > 1 for record in wanted.record.values())


def test_types_must_be_alike():
    network, _ = build("residual", firing="immediate")
    network.module.double()
    next(network.module.parameters()).data = next(network.module.parameters()).data.float()
    assert "it computes in float32 or float64, the network has float32, float64" in INTEGERS.why_not(network, CPU)


@pytest.mark.parametrize("layout", ["first", "even"])
def test_flips_are_rare_on_real_weights(layout):
    network, inputs = immediate(small_resnet(16), layout=layout)
    assert flip_rate(FLOATS, network, inputs) <= 1e-3


def test_threads_share_the_work():
    network, inputs = build("residual, unequal", firing="immediate")
    many = torch.cat([inputs] * 4)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(INTEGERS.prepare(network)(many))
    finally:
        torch.set_num_threads(before)
    for layer, record in found[0].record.items():
        assert torch.equal(record.count, found[1].record[layer].count)
        assert torch.equal(record.residual, found[1].record[layer].residual)


def test_trains_take_one_bit_a_step_and_share_memory():
    network, inputs = build("residual, added twice", firing="immediate")
    places = [layout.map for layout in INTEGERS.plan(network, inputs[:1], "nothing").layouts.values()]
    sizes = {steps: INTEGERS.plan(network.with_windows(steps), inputs[:1], "nothing").size for steps in (8, 256)}
    assert sizes[256] <= 32 * sizes[8]
    assert sizes[8] <= 8 * sum(place.rows * place.line for place in places)  # trains that pass unchanged are not copied


def test_reasons():
    network, _ = build("odd sizes")
    assert any("needs firing 'immediate'" in reason for reason in INTEGERS.why_not(network, CPU))
    network, _ = build("odd sizes", firing="immediate")
    assert INTEGERS.why_not(network, CPU) == []
    assert any("on the CPU only" in reason for reason in INTEGERS.why_not(network, torch.device("cuda")))
    assert any("longest window is 70000" in reason for reason in INTEGERS.why_not(network.with_windows(70_000), CPU))


def test_without_numba_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    network, _ = build("odd sizes", firing="immediate")
    assert any("pip install 'teas[event]'" in reason for reason in INTEGERS.why_not(network, CPU))


def strict_threshold(monkeypatch):  # `>` for `>=`: a tie no longer fires
    real = layout_module.Layout._potentials

    def above(self, place, values, fill):
        theta = bool(fill)
        return real(self, place, values + (2.0**-10 if theta else 0), fill)

    monkeypatch.setattr(layout_module.Layout, "_potentials", above)


def no_initial_potential(monkeypatch):
    real = event_run.Worker.__init__

    def empty(self, plan):
        for layout in plan.layouts.values():
            layout.start[:] = 0
        real(self, plan)

    monkeypatch.setattr(event_run.Worker, "__init__", empty)


def no_bias(monkeypatch):
    real = event_module.terms_of
    monkeypatch.setattr(event_module, "terms_of", lambda *arguments: (real(*arguments)[0], None))


def mirrored_kernels(monkeypatch):
    real = layout_module.Layout._table
    monkeypatch.setattr(layout_module.Layout, "_table", lambda self, term: real(self, dataclasses.replace(term, weight=term.weight.flip(-1))))


def branch_forgotten(monkeypatch):
    real = event_module.terms_of
    monkeypatch.setattr(event_module, "terms_of", lambda *arguments: (real(*arguments)[0][:1], real(*arguments)[1]))


def trains_overlap(monkeypatch):  # a train is overwritten while others still read it
    real = event_run.Plan.__post_init__

    def pack(self):
        real(self)
        self.trains = dict.fromkeys(self.trains, 0)

    monkeypatch.setattr(event_run.Plan, "__post_init__", pack)


def trains_never_written(monkeypatch):  # counted alone, although others read their spikes one by one
    real = event_run.Plan.__post_init__

    def pack(self):
        real(self)
        self.bare = set(self.layouts) - set(self.dense)

    monkeypatch.setattr(event_run.Plan, "__post_init__", pack)


def windows_ignored(monkeypatch):  # counts of another window taken as they are
    monkeypatch.setattr(
        event_run.Worker, "_retime", lambda self, source, steps, out: np.copyto(out, self.counts[source][: len(out), : out.shape[1]].clip(0, steps))
    )


def currents_never_end(monkeypatch):  # what a train adds at one step stays
    for rule, real in event_run.kernels.RUNNERS.items():
        monkeypatch.setitem(event_run.kernels.RUNNERS, rule, lambda *a, real=real: real(*a[:12], np.ones_like(a[12]), *a[13:]))


def tables_shifted(monkeypatch):  # looked up under the name of the next four channels
    real = layout_module.Layout._sums
    monkeypatch.setattr(layout_module.Layout, "_sums", lambda self, term: real(self, term).roll(1))


FAULTS = [
    strict_threshold, no_initial_potential, no_bias, mirrored_kernels, branch_forgotten, trains_overlap, trains_never_written,
    windows_ignored, currents_never_end,
]  # fmt: skip


@ENGINES
@pytest.mark.parametrize("fault", FAULTS)
def test_broken_event_engines_fail(engine, fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check_all(engine, CASES, firing="immediate")


@pytest.mark.parametrize("least", [-1, 10**9], ids=["looked up", "added"])
def test_ways_to_send_spikes_agree(least, monkeypatch):
    """Words of spikes looked up wherever they can be, and nowhere: the trains are those of the reference."""
    monkeypatch.setattr(event_run, "_TABLED", least)
    check_all(INTEGERS, CASES, firing="immediate")


def test_wrong_tables_are_found(monkeypatch):
    monkeypatch.setattr(event_run, "_TABLED", -1)
    tables_shifted(monkeypatch)
    with pytest.raises(AssertionError):
        check_all(INTEGERS, CASES, firing="immediate")


def wide_network(window, density):
    """Every kernel that sends what begins at once: 3x3 at stride 1 and 2, to 16, 32 and 64 channels; all trains are re-timed."""
    torch.manual_seed(window)
    widths = [(3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    layers = [layer for before, after, stride in widths for layer in (nn.Conv2d(before, after, 3, stride, 1), teas.IF(density, reset="subtract", v0=0.5))]
    network = quantise(teas.SpikingNetwork(nn.Sequential(*layers).eval(), window, layout="first", transform="residual").eval())
    network.windows = {name: window + number % 2 for number, name in enumerate(network.spiking_layers)}
    return network, torch.randn(2, 3, 13, 12)


@pytest.mark.parametrize("density", [0.125, 1.0], ids=["often", "seldom"])
@pytest.mark.parametrize("window", [2, 8, 60, 200])
def test_wide_layers_of_first_trains_count_alike(window, density):
    network, inputs = wide_network(window, density)
    assert flip_rate(INTEGERS, network, inputs) == 0
    assert flip_rate(FLOATS, network, inputs) == 0


@pytest.mark.parametrize(("window", "runs"), [(32_767, True), (32_768, False)])
def test_windows_longer_than_it_counts_are_refused(window, runs):
    """Evenly spaced trains add a count to a potential below the window, in 16 bits."""
    network, _ = build(next(iter(CASES)), firing="immediate")
    reasons = INTEGERS.why_not(network.with_windows(window), CPU)
    assert reasons == ([] if runs else [f"it counts to 32767, the longest window is {window}"])


def test_code_on_disk_is_used_until_any_file_of_the_engine_changes(tmp_path, monkeypatch):
    import numba

    from teas.engine import event_sources

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def found_on_disk():
        def doubled(number):
            return 2 * number

        made = event_sources.compiled(doubled)
        assert made(4) == 8
        return sum(made.stats.cache_hits.values())

    assert [found_on_disk(), found_on_disk()] == [0, 1]
    monkeypatch.setattr(event_sources, "_sources", "those of another version")
    assert [found_on_disk(), found_on_disk()] == [0, 1]
