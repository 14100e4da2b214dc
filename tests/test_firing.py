"""Neurons of the event kernels, several steps of some vectors at once, beside plain loops over neurons and steps."""

from __future__ import annotations

import numpy as np
import pytest

numba = pytest.importorskip("numba")

from teas.engine.firing import firing  # noqa: E402
from teas.engine.lanes import LANES, Block  # noqa: E402

VECTORS, STEPS = 7, 11  # four vectors together, three by themselves
NEURONS = VECTORS * LANES


def neurons_of(seed, shifts=15, steps=STEPS):
    """Potentials, held currents, drive, thresholds and shifts of all neurons, and what changes at each step: some fire never, some at every step."""
    rng = np.random.default_rng(seed)
    shift = rng.integers(0, shifts, NEURONS, np.int32)
    theta = ((rng.integers(0, 4000, NEURONS) << shift) + rng.integers(1, 1 << shift, NEURONS, endpoint=True)).astype(np.int32)  # more bits than float32 has
    theta[::9] = 2**30  # what padding has
    held, changes = rng.integers(-2000, 2000, NEURONS, np.int16), rng.integers(-3000, 3000, (steps, NEURONS), np.int16)
    changes[:, ::5] = 0
    drive = (rng.integers(-500, 500, NEURONS) << shift).astype(np.int32)
    return (theta // 2).astype(np.int32), held, drive, theta, shift, changes


def stepped(potential, held, drive, theta, shift, changes, keeps):
    """Potentials, held currents and spikes a neuron after all steps."""
    ends, lasting, spikes = [], [], []
    for i in range(NEURONS):
        v, current, fired = int(potential[i]), int(held[i]), 0
        for step in range(len(changes)):
            current = int(changes[step, i]) + (current if keeps else 0)
            v += (current << int(shift[i])) + int(drive[i])
            if v >= theta[i]:
                v, fired = v - int(theta[i]), fired + 1
        ends.append(v), lasting.append(current if keeps else int(held[i])), spikes.append(fired)
    return ends, lasting, spikes


def counter(keeps):
    """Neurons whose counts are asked for, as a function of arrays, vectors and the steps from one to another of all."""
    count = firing("subtract", keeps, True, True)

    @numba.njit(boundscheck=False, error_model="numpy")
    def run(potential, current, held, drive, theta, shift, may, how, counts, vectors, begin, end, steps, quiet):
        zero, pitch = np.uint64(0), np.uint64(vectors * LANES)
        count(
            potential, zero, current, zero, pitch, held, drive, zero, theta, shift, theta, may, how, counts, zero, zero, np.uint64(vectors),
            np.uint64(end - begin), quiet, zero, np.uint64(begin), np.uint64(steps),
        )  # fmt: skip

    return run


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("vnni", [True, False], ids=["the processor's own way", "the way of any processor"])
def test_counted_neurons_are_those_of_a_loop(keeps, vnni, monkeypatch):
    if not vnni:
        monkeypatch.setattr(Block, "has", lambda self, feature: False)
    run, unknown = counter(keeps), np.array([STEPS + 1], np.uint32)
    for seed in range(5):
        potential, held, drive, theta, shift, changes = neurons_of(seed)
        wanted = stepped(potential, held, drive, theta, shift, changes, keeps)
        current, counts = changes.flatten(), np.full(NEURONS, 3, np.uint16)
        may, how = np.zeros(VECTORS, np.uint16), np.zeros(4, np.float32)
        run(potential, current, held, drive, theta, shift, may, how, counts, VECTORS, 0, STEPS, STEPS, unknown)
        assert (potential.tolist(), held.tolist(), (counts - 3).tolist()) == wanted
        assert not current.any()
        assert 0 in wanted[2]
        assert max(wanted[2]) > STEPS // 2


@pytest.mark.parametrize("quiet", [1, 2, 7, 16, 17, 30, 39, 40])
def test_steps_in_which_nothing_changes_are_those_of_a_loop(quiet):
    run, steps, four = counter(True), 40, 4 * LANES
    for seed in range(20):
        potential, held, drive, theta, shift, changes = neurons_of(seed, 8, steps)
        theta[::4] = np.maximum(1, theta[::4] >> 9)  # many of these are charged by more than a threshold a step
        potential[1::4] = 12 * np.minimum(theta[1::4], 2**20)  # and these have several spikes to fire when they begin
        changes //= 10
        changes[quiet:, :four] = 0
        wanted = stepped(potential, held, drive, theta, shift, changes, True)
        counts, may, how = np.zeros(NEURONS, np.uint16), np.zeros(VECTORS, np.uint16), np.zeros(4, np.float32)
        for begin, end in ((0, 16), (16, 32), (32, 40)):
            current = changes[begin:end].flatten()
            run(potential, current, held, drive, theta, shift, may, how, counts, VECTORS, begin, end, steps, np.array([quiet], np.uint32))
            assert not current.any()
        assert (potential.tolist(), held.tolist(), counts.tolist()) == wanted
        falling, often = np.array(wanted[0][:four]) < 0, np.array(wanted[2][:four]) == steps
        assert falling.any()
        assert often.any()
