"""The semantics a second time: plain Python, exact fractions, loops over time and neuron. No torch, nothing shared with the package.

A layer is a dict: name, window, inputs (list of (source name, weights[neuron][source neuron])), bias, threshold (one per neuron), reset, leak, v0.
The source "input" is the analog input vector. One call runs one sample.
"""

from fractions import Fraction
from math import ceil, floor


def half_up(x):
    return floor(x + Fraction(1, 2))


def layout_train(n, window, layout):
    if layout == "first":
        return [1 if t < n else 0 for t in range(window)]
    return [1 if (t + 1) * n // window > t * n // window else 0 for t in range(window)]


def retimed_train(neuron, window, options):
    """One neuron's train in the receiver's window (Eq. 3). neuron: dict with spikes, fired (potentials at its spikes), residual, threshold."""
    spikes, theta = neuron["spikes"], neuron["threshold"]
    source_window = len(spikes)
    if window == source_window:
        return spikes
    ratio = Fraction(window, source_window)
    n = sum(spikes)
    if options["code"] == "rate":
        if options["transform"] == "linear":
            x = Fraction(n)
        elif options["transform"] == "residual":
            x = n + neuron["residual"] / theta
        else:
            x = n + 1 - theta / (sum(neuron["fired"]) / n) if n else Fraction(0)
        return layout_train(min(max(half_up(ratio * x), 0), window), window, options["layout"])
    if n == 0:
        return [0] * window
    first = spikes.index(1)
    literal = options["rounding"] == "literal"
    x = Fraction(first if literal else first + 1) if options["transform"] == "linear" else first + theta / neuron["fired"][0]
    time = min(half_up(ratio * x), window - 1) if literal else ceil(ratio * x) - 1
    return [1 if t == time else 0 for t in range(window)]


def encoded(values, window, encoding):
    """The input over a window: per step, one value a neuron."""
    if encoding == "direct":
        return [values] * window
    times = [floor((1 - min(max(v, 0), 1)) * window) for v in values]
    return [[1 if t == time else 0 for time in times] for t in range(window)]


def run_immediate(layer, trains, once):
    """trains: per source, [step][source neuron]. Returns one dict a neuron."""
    result = []
    for j, theta in enumerate(layer["threshold"]):
        v, spikes, fired = layer["v0"] * theta, [], []
        for t in range(layer["window"]):
            v = layer["leak"] * v + layer["bias"][j]
            for source, weights in layer["inputs"]:
                v += sum(w * s for w, s in zip(weights[j], trains[source][t], strict=True))
            spike = 1 if v >= theta and not (once and sum(spikes)) else 0
            spikes.append(spike)
            if spike:
                fired.append(v)
                v = v - layer.get("reset_by", 1) * theta if layer["reset"] == "subtract" else Fraction(0)
        result.append({"spikes": spikes, "fired": fired, "residual": v, "threshold": theta})
    return result


def run_two_phase(layer, trains):
    """First all the source steps, each spike's current scaled by T'/T; then at most one spike a step. trains keep their own windows."""
    result = []
    for j, theta in enumerate(layer["threshold"]):
        v = layer["v0"] * theta + layer["window"] * layer["bias"][j]
        for source, weights in layer["inputs"]:
            steps = trains[source]
            for now in steps:
                v += Fraction(layer["window"], len(steps)) * sum(w * s for w, s in zip(weights[j], now, strict=True))
        spikes, fired = [], []
        for _ in range(layer["window"]):
            spikes.append(1 if v >= theta else 0)
            if spikes[-1]:
                fired.append(v)
                v -= theta
        result.append({"spikes": spikes, "fired": fired, "residual": v, "threshold": theta})
    return result


def run_radix(layer, trains):
    """Two phases in binary digits: potentials double before each step's input, and the threshold halves after each step of firing.

    A train of S steps says up to 2^S - 1, so its current is scaled by (2^T' - 1)/(2^S - 1); analog input and bias come at each of the T' steps.
    """
    result = []
    for j, theta in enumerate(layer["threshold"]):
        v = Fraction(0)
        for _ in range(layer["window"]):
            v = 2 * v + layer["bias"][j]
        v += layer["v0"] * theta
        for source, weights in layer["inputs"]:
            arrived = Fraction(0)
            for now in trains[source]:
                arrived = 2 * arrived + sum(w * s for w, s in zip(weights[j], now, strict=True))
            v += Fraction(2 ** layer["window"] - 1, 2 ** len(trains[source]) - 1) * arrived
        reached, spikes, fired = theta * 2 ** (layer["window"] - 1), [], []
        for _ in range(layer["window"]):
            spikes.append(1 if v >= reached else 0)
            if spikes[-1]:
                fired.append(v)
                v -= reached
            reached /= 2
        result.append({"spikes": spikes, "fired": fired, "residual": v, "threshold": theta})
    return result


def said(spikes, code):
    """What a train says, and the most that it could say."""
    if code == "radix":
        return sum(s * 2 ** (len(spikes) - 1 - t) for t, s in enumerate(spikes)), 2 ** len(spikes) - 1
    return sum(spikes), len(spikes)


def run(layers, sample, options):
    """Every layer's neurons for one sample, and the logits of the last layer."""
    done = {}
    for layer in layers:
        trains = {}
        for source, _ in layer["inputs"]:
            if source == "input":
                window = layer["window"]
                trains[source] = encoded(sample, window, options["encoding"])
            elif options["firing"] == "two_phase":
                trains[source] = list(zip(*[neuron["spikes"] for neuron in done[source]], strict=True))
            else:
                trains[source] = list(zip(*[retimed_train(neuron, layer["window"], options) for neuron in done[source]], strict=True))
        if options["firing"] == "two_phase":
            done[layer["name"]] = (run_radix if options["code"] == "radix" else run_two_phase)(layer, trains)
        else:
            done[layer["name"]] = run_immediate(layer, trains, options["code"] == "first_spike")
    last = done[layers[-1]["name"]]
    if options["code"] in ("rate", "radix"):
        return done, [Fraction(*said(neuron["spikes"], options["code"])) for neuron in last]
    return done, [-(neuron["spikes"].index(1) if 1 in neuron["spikes"] else len(neuron["spikes"])) for neuron in last]
