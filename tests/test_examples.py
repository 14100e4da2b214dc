"""The documented scripts do what they say, in a short form."""

import importlib.util
import os
from pathlib import Path

import pytest

from teas.engine.int8 import exact_kernels

ROOT = Path(__file__).parents[1]


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("library", "script"), [("spikingjelly", "adapt_spikingjelly"), ("snntorch", "adapt_snntorch")])
def test_networks_are_imported_and_adapted_end_to_end(library, script):
    pytest.importorskip(library, reason=f"needs {library}: pip install 'teas[exchange]'")
    unlike, before, after = example(script).main(epochs=2, mean=5.0)
    assert unlike == 0
    assert before > 60
    assert after > 60


def test_resnet_20_counts_alike_in_onnx_runtime(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'teas[exchange]'")
    pytest.importorskip("onnx", reason="needs onnx: pip install 'teas[exchange]'")
    data = Path(os.path.relpath(ROOT / "data"))
    if not (data / "resnet20-12fca82f.th").is_file() or not (data / "cifar-10-batches-bin/test_batch.bin").is_file():
        pytest.skip("needs CIFAR-10 and resnet20-12fca82f.th in data/")
    if not exact_kernels():
        pytest.skip("no exact 8-bit kernels on this machine")
    found = example("onnx_resnet20").main(data, 8, 50, tmp_path / "resnet20.onnx", calibration=200, probe=20)
    assert found["unlike"] == 0
    assert found["unlike_logits"] == 0
    assert found["accuracy"] > 70
