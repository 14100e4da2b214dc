"""The error of thresholds from a histogram, against the error of every single activation."""

import pytest
import torch

from teas.ann.histogram import Histogram
from teas.ann.thresholds import Samples, fit, quantised


def heavy_tailed(channels=5, n=20_000):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(channels, n, generator=generator).relu() * torch.rand(channels, n, generator=generator).pow(-0.4)
    return values * torch.tensor([1e-3, 0.2, 1.0, 30.0, 400.0])[:channels, None]


@pytest.mark.parametrize("window", [1, 2, 4, 15, 255, 4095])
@pytest.mark.parametrize("v0", [0.0, 0.3, 0.5])
def test_squared_errors_are_those_of_all_activations(window, v0):
    values, histogram = heavy_tailed(), Histogram()
    for part in values.split(7000, 1):
        histogram.add(part)
    for fraction in (0.05, 0.3, 0.9, 1.2):
        threshold = fraction * values.amax(1)
        wanted = (quantised(values.double(), threshold.double()[:, None], window, v0) - values.double()).square().sum(1)
        torch.testing.assert_close(histogram.squared_error(threshold, window, v0), wanted, rtol=0.1, atol=0)
        shared = threshold.amax()[None]
        whole = (quantised(values.double(), shared.double(), window, v0) - values.double()).square().sum()
        torch.testing.assert_close(histogram.squared_error(shared, window, v0)[0], whole, rtol=0.1, atol=0)


def test_rare_large_activations_count_where_a_sample_misses_them():
    values = torch.rand(1, 400_000)
    values[0, 1234] = 60.0
    sampled, counted = Samples(), Samples(histogram=Histogram())
    for samples in (sampled, counted):
        samples.add(values.T.reshape(400_000, 1))
    assert 60.0 not in sampled.values()
    missed, found = (float(fit(samples, 255, "mse", 0.5, float("inf"), True)) for samples in (sampled, counted))

    def error(threshold):
        return float((quantised(values, torch.tensor(threshold), 255, 0.5) - values).square().sum())

    assert error(found) < 0.5 * error(missed)
    assert error(found) <= 1.05 * min(error(fraction * 60.0) for fraction in torch.linspace(0.01, 1, 200).tolist())
