"""The public ResNet-20 for CIFAR-10, converted and at windows of its own, in ONNX Runtime: the same counts, and the speed beside the count engine.

    python examples/onnx_resnet20.py --data data [--mean 8] [--images 1000] [--out resnet20.onnx]

Needs pip install 'teas[exchange]', and in the data folder CIFAR-10 (its binary distribution) and resnet20-12fca82f.th. Windows are those of least
measured damage on training images, each rounded to the nearest power of two: then every sum is exact in float32 and nothing depends on its
order. For the same reason weights are rounded to 8 bits, those of the first layer too, and inputs to multiples of 1/128. Logits of ONNX are
computed in float64 and rounded once, and are compared to the reference run in float64.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import teas
from teas.adapt import allocation
from teas.ann.resnet import CifarResNet
from teas.engine import choose_engine, quantise
from teas.exchange.weights import load_weights

BATCH = 50


def images(path: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of a file of CIFAR-10, normalised and on a grid of 1/128, and their labels."""
    rows = torch.from_numpy(np.fromfile(path, np.uint8, count=count * 3073)).view(-1, 3073)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (rows[:, 1:].reshape(-1, 3, 32, 32) / 255 - mean) / std
    return (128 * x).round() / 128, rows[:, 0].long()


@torch.no_grad()
def round_first_layer(network: teas.SpikingNetwork) -> None:
    """8-bit weights for the convolution of the image too, which `quantise` leaves alone."""
    conv = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    step = torch.exp2((conv.weight.abs().flatten(1).amax(1) / 127).log2().ceil())
    conv.weight.copy_((conv.weight / step.view(-1, 1, 1, 1)).round() * step.view(-1, 1, 1, 1))
    conv.bias.copy_((2 * conv.bias / step).round() * step / 2)


def build(data: Path, mean: float, calibration: int, probe: int) -> teas.SpikingNetwork:
    """The converted network at windows that are powers of two, on 8-bit weights."""
    ann = CifarResNet(10)
    load_weights(ann, data / "resnet20-12fca82f.th")
    training, _ = images(data / "cifar-10-batches-bin/data_batch_1.bin", calibration + probe)
    conversion = teas.convert(ann.eval(), training[:calibration].split(100))

    def make(windows):
        network = conversion.at(windows)
        return choose_engine(network).prepare(network, keep="nothing")

    damage = teas.measure_damage(make, teas.TimeWindows.uniform(conversion.layers, 64), (2, 8, 32), training[calibration:].split(100))
    chosen = allocation.by_damage(damage, mean, 128)
    network = quantise(teas.fold_amplitudes(conversion.at({name: 2 ** round(np.log2(steps)) for name, steps in chosen.items()})))
    round_first_layer(network)
    return network.eval()


def main(data: Path, mean: float, count: int, out: Path, calibration: int = 1000, probe: int = 200) -> dict[str, float]:
    torch.set_num_threads(1)
    network = build(data, mean, calibration, probe)
    print(f"windows {list(network.windows.values())}, mean {network.windows.mean:.2f}, sum {network.windows.sum}")
    teas.to_onnx(network, out, (3, 32, 32), counts=True)
    teas.to_onnx(network, out.with_suffix(".logits.onnx"), (3, 32, 32))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session, quick = (onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in (out, out.with_suffix(".logits.onnx")))
    names = [output.name for output in session.get_outputs()]
    engine = choose_engine(network, name="count_int8")
    run, run_quick, exact = engine.prepare(network, keep="counts"), engine.prepare(network, keep="nothing"), copy.deepcopy(network).double()
    x, labels = images(data / "cifar-10-batches-bin/test_batch.bin", count)
    unlike = total = unlike_logits = right = 0
    farthest, times = 0.0, {"ONNX Runtime": [], "count_int8": []}
    for batch, answers in zip(x.split(BATCH), labels.split(BATCH), strict=True):
        found = dict(zip(names, session.run(None, {"input": batch.numpy()}), strict=True))
        logits, output = torch.from_numpy(found["logits"]), run(batch)
        for name, record in output.record.items():
            unlike += int((torch.from_numpy(found[name]) != record.count).sum())
            total += record.count.numel()
        with torch.no_grad():
            unlike_logits += int((exact(batch.double()).logits.float() != logits).sum())
        farthest = max(farthest, (logits - output.logits).abs().max().item())
        right += int((logits.argmax(1) == answers).sum())
        for name, call in (("ONNX Runtime", lambda: quick.run(None, {"input": batch.numpy()})), ("count_int8", lambda: run_quick(batch))):  # noqa: B023
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    rate = {name: BATCH / statistics.median(taken) for name, taken in times.items()}
    print(f"{len(x)} test images: {unlike} of {total} counts differ from those of the engine count_int8")
    print(f"{unlike_logits} of {labels.numel() * 10} logits differ from the reference in float64; at most {farthest:.1e} from the engine's in float32")
    print(f"accuracy in ONNX Runtime: {100 * right / len(x):.2f} %")
    print(", ".join(f"{name} {value:.0f} images/s" for name, value in rate.items()) + f", ratio {rate['ONNX Runtime'] / rate['count_int8']:.2f}")
    return {"unlike": unlike, "unlike_logits": unlike_logits, "accuracy": 100 * right / len(x), **rate}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--mean", type=float, default=8)
    parser.add_argument("--images", type=int, default=1000, dest="count")
    parser.add_argument("--out", type=Path, default=Path("resnet20.onnx"))
    main(**vars(parser.parse_args()))
