"""Weights as integers times a power of two, and the integer kernels (oneDNN, through torch) that turn counts into counts exactly."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from teas.engine.fold import fold_amplitudes
from teas.engine.plan import Compiler, Kernel, Step
from teas.errors import TeasError
from teas.spiking.network import SpikingNetwork
from teas.spiking.trace import INPUT, Operation

MAX_BYTE, MAX_WEIGHT = 255, 127
EXACT = 2**24  # float32 holds every integer below
logger = logging.getLogger(__name__)
_FINEST = 10  # bits of a threshold, and of the step of weights below it, that `quantise` keeps beside weights of 8 bits


@torch.no_grad()
def quantise(network: SpikingNetwork, bits: int = 8) -> SpikingNetwork:
    """A copy whose convolutions and linear maps of counts have weights `w = s·k`, `k` a signed integer of `bits` bits, `s` a power of two per channel.

    Biases become multiples of `s/2`, thresholds keep two bits more than weights, so that counts are ratios of integers that every engine computes alike.
    Symmetric, per output channel, rounded to the nearest, no data needed. Layers that read the analog input, and the readout, stay as they are.
    Amplitudes of converted layers go into the weights first (`fold_amplitudes`), so that these read bare counts.
    It costs accuracy: measure it. Windows up to 255 then run on integer kernels at 8 bits, at the same weights whatever the windows are. Up to 16
    bits float32 holds the sums of immediate firing too, as long as these stay below 16 thresholds: engines that add in another order
    count the same.

    Raises `TeasError` for other than 2 to 16 bits.
    """
    if not 2 <= bits <= 16:
        raise TeasError(f"weights of {bits} bits were asked for; the integers have 2 to 16, sign included")
    network, left = fold_amplitudes(network)
    for source, reason in left.items():
        logger.warning("the amplitude of layer %r stays, so its readers stay in float32: %s", source, reason)
    done, finest = set(), _FINEST - 8 + bits
    for layer in network.layers:
        if layer.neurons is None:
            continue
        theta = network.neurons(layer.name).threshold
        fraction, exponent = torch.frexp(theta)
        theta.copy_(torch.ldexp((fraction * 2**finest).round(), exponent - finest))
        for operation in layer.synapses:
            child = operation.child(network.module)
            if isinstance(child, (nn.Conv2d, nn.Linear)) and INPUT not in operation.inputs and child not in done:
                done.add(child)
                lowest = theta if theta.numel() == len(child.weight) else theta.min()
                step = torch.maximum(_step(child.weight, 2 ** (bits - 1) - 1), torch.exp2((lowest.log2() - finest).floor()))
                shaped = step.view(-1, *[1] * (child.weight.dim() - 1))
                child.weight.copy_((child.weight / shaped).round() * shaped)
                if child.bias is not None:
                    child.bias.copy_((2 * child.bias / step).round() * step / 2)
    return network


def _step(weight: Tensor, most: int = MAX_WEIGHT) -> Tensor:
    """The smallest power of two per output channel whose multiples up to `most` reach the largest weight."""
    largest = weight.detach().flatten(1).abs().amax(1)
    return torch.where(largest > 0, torch.exp2((largest / most).log2().ceil()), 1.0)


def exact_kernels() -> bool:
    """Whether 8-bit kernels exist here and accumulate without saturation: some CPUs add pairs of products in 16 bits."""
    x = torch.full((1, 64, 3, 3), MAX_BYTE, dtype=torch.uint8)
    weight = torch.full((16, 64, 3, 3), MAX_WEIGHT, dtype=torch.int8)
    one = torch.ones(16)
    try:
        convolved = _convolution(nn.Conv2d(64, 16, 3), weight)(x, one, None, torch.float32)
        mapped = _linear(weight.flatten(1))(x.flatten(1), one, None, torch.float32)
    except (AttributeError, RuntimeError):
        return False
    return bool((convolved == 576 * MAX_BYTE * MAX_WEIGHT).all() and (mapped == 576 * MAX_BYTE * MAX_WEIGHT).all())


def as_bytes(count: Tensor, window: int) -> Tensor:
    """Numbers from 0 to a window of at most 255 cut to whole ones, in 8 bits: torch has vector instructions for signed integers alone."""
    return count.to(torch.int8).view(torch.uint8) if window <= MAX_WEIGHT else count.to(torch.int16).to(torch.uint8)


ByteKernel = Callable[..., Tensor]


def _convolution(conv: nn.Conv2d, weight: Tensor) -> ByteKernel:
    """`x, scale, bias, dtype -> scale·conv(x, weight) + bias`, rounded half to even and clipped to [0, 255] where dtype is uint8.

    `added` is added before the rounding, times its scale; its memory is overwritten.
    """
    padding = [0, 0] if conv.padding == "valid" else list(conv.padding)
    geometry = list(conv.stride), padding, list(conv.dilation), conv.groups
    packed = torch.ops.onednn.qconv_prepack(weight, torch.ones(len(weight)), 1.0, 0, *geometry, None)
    zero = torch.zeros(len(weight), dtype=torch.int32)

    def kernel(x: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, added: Tensor | None = None, added_scale: float = 1.0) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        head = x, 1.0, 0, packed, scale, zero
        result: Tensor
        if added is None:
            result = torch.ops.onednn.qconv2d_pointwise(*head, bias, *geometry, 1.0, 0, dtype, "none", [], "")
        else:
            added = added.contiguous(memory_format=torch.channels_last)
            result = torch.ops.onednn.qconv2d_pointwise.binary(*head, added, bias, *geometry, 1.0, 0, dtype, added_scale, 0, "sum", 1.0, "none", [], "")
        return result

    return kernel


def _linear(weight: Tensor) -> ByteKernel:
    """`x, scale, bias, dtype -> scale·(x @ weight.T) + bias`, as `_convolution`."""
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zero = torch.zeros(len(weight), dtype=torch.int32)

    def kernel(x: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        result: Tensor = torch.ops.onednn.qlinear_pointwise(x.contiguous(), 1.0, 0, packed, scale, zero, bias, 1.0, 0, dtype, "none", [], "")
        return result

    return kernel


@dataclass
class Packed:
    """A convolution or linear map on an integer kernel: `charge = step·acc + bias`, `acc` an integer."""

    kernel: ByteKernel
    source: str
    step: Tensor  # float64 per channel, T'/T included
    bias: Tensor | None  # float32 per channel


@dataclass
class Int8Compiler(Compiler):
    """Compiles maps of counts to integer kernels where it can; `refused` says why not elsewhere."""

    on_int8: dict[str, Packed] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def weighted(self, operation: Operation, source: str) -> Kernel:
        weight, bias = self.weight_and_bias(operation)
        child = self.child(operation)
        reason = self._why_not(child, weight, source)
        if reason:
            self.refused[operation.name] = reason
            return super().weighted(operation, source)
        step = _step(weight)
        integers = (weight / step.view(-1, *[1] * (weight.dim() - 1))).to(torch.int8)
        kernel = self.pack(child, integers)
        step = step.double() * self.levels / self.counts[source]
        self.on_int8[operation.name] = Packed(kernel, source, step, bias)
        scale = step.float()
        return lambda values: kernel(values[source], scale, bias, torch.float32)

    def may_absorb(self, name: str, threshold: Tensor) -> bool:
        """Integer kernels add in whole units, in any order alike."""
        operation = self.operations[name]
        on_counts = not self._why_not(self.child(operation), self.weight_and_bias(operation)[0], operation.inputs[0])
        return (self.reorder or on_counts) and not (threshold.dim() and isinstance(self.child(operation), nn.Linear))

    def pack(self, child: nn.Module | None, integers: Tensor) -> ByteKernel:
        return _convolution(child, integers) if isinstance(child, nn.Conv2d) else _linear(integers)

    def _why_not(self, child: nn.Module | None, weight: Tensor, source: str) -> str:
        if not isinstance(child, (nn.Conv2d, nn.Linear)):
            return f"no 8-bit kernel for {type(child).__name__}"
        if isinstance(child, nn.Conv2d) and (child.padding_mode != "zeros" or child.padding == "same"):
            return f"no 8-bit kernel for padding {child.padding_mode if child.padding_mode != 'zeros' else child.padding!r}"
        if source not in self.counts:
            return "it does not read spike counts"
        if self.counts[source] > MAX_BYTE:
            return f"counts up to {self.counts[source]} exceed 8 bits"
        scaled = weight / _step(weight).view(-1, *[1] * (weight.dim() - 1))
        if not torch.equal(scaled, scaled.round()):
            return "its weights are not 8-bit integers times a power of two; quantise(network) makes a copy whose weights are"
        largest = self.counts[source] * max(scaled.clamp_min(0).flatten(1).sum(1).max().item(), -scaled.clamp_max(0).flatten(1).sum(1).min().item())
        return "" if largest < EXACT else f"sums up to {largest:.0f} exceed the integers that float32 holds"

    def rounding(self, bias: Tensor, unit: Tensor, theta: Tensor) -> Tensor:
        """What turns the kernel's rounding into a floor."""
        return ((bias + unit / 2) / theta - 0.5).float()

    def fuse(self, steps: list[Step], threshold: Tensor, spare: tuple[str, ...]) -> Callable[[dict[str, Tensor]], Tensor] | None:
        """Counts of the sources to the counts of this layer with the neurons inside the kernel, where that is exact; else None.

        `floor(P/θ) = round((P + g/2)/θ - 1/2)` for P and θ that are integers in some unit g: no value is nearer than `g/(2θ)` to where the
        rounding jumps, and the errors of float32 (see `_rounded`) are smaller. spare: sources whose counts nobody needs after this layer.
        """
        name, added, ratio = self.absorbing(self.layer.current, False), None, 0.0
        operation = self.operations.get(self.layer.current)
        if name is None and operation is not None and self.is_addition(operation):
            for branch, other in itertools.permutations(operation.inputs):
                if other in self.counts and self.absorbing(branch, False):
                    name, added, ratio = self.absorbing(branch, False), other, self.levels / self.counts[other]
        if name is None or name not in self.on_int8 or name != self.absorber or self.levels > MAX_BYTE:
            return None
        if added is not None and (self.counts[added] > MAX_BYTE or not isinstance(self.child(self.operations[name]), nn.Conv2d)):
            return None
        packed, theta = self.on_int8[name], threshold.double().expand(len(self.on_int8[name].step))
        bias = torch.zeros_like(theta) if packed.bias is None else packed.bias.double()
        whole, own = (packed.step, theta, bias, torch.full_like(theta, ratio)), packed.step * self.counts[packed.source] / self.levels
        unit = _unit(packed.step, *whole)
        unit = _unit(own, *whole) if unit is None else unit
        if unit is None:
            return None
        error = _rounded(self.levels + 1, bias.abs() / theta + 0.5, ratio * self.counts[added] / theta if added else torch.zeros_like(theta))
        if bool((error >= unit / (2 * theta)).any()):
            return None
        scale, shift = (packed.step / theta).float(), self.rounding(bias, unit, theta)
        rest = [step for step in steps if step.name not in (name, self.layer.current)]
        may_overwrite = added in spare and added != packed.source and not rest
        amplitude, upward = (ratio / theta).float(), shift + 0.5  # what is cut to a byte and not rounded
        several = bool((amplitude != amplitude[0]).any())
        extra = {} if added is None else {"added_scale": amplitude[0].item()}

        def run(counts: dict[str, Tensor]) -> Tensor:
            values: dict[str, Any] = dict(counts)
            for step in rest:
                values[step.name] = step.run(values)
            if added is not None and several:  # one scale per channel is more than the kernel can add
                level = packed.kernel(values[packed.source], scale, upward, torch.float32)
                level.addcmul_(values[added].float(), amplitude.view(-1, 1, 1)).clamp_(0, self.levels)
                return as_bytes(level, self.levels)
            branch = {} if added is None else {"added": values[added] if may_overwrite else values[added].clone()}
            count = packed.kernel(values[packed.source], scale, shift, torch.uint8, **branch, **extra)
            return count if self.levels == MAX_BYTE else count.clamp_(max=self.levels)

        return run


def _rounded(most: int, shift: Tensor, added: Tensor) -> Tensor:
    """How far `scale·acc + shift + amplitude·count` may be off in float32, where it is at most `most`: half a unit in the last place for each rounding.

    The scale, its product with acc, the shift (in two parts), the first sum of two (in any order), the amplitude, its product, the last sum; a thousandth
    more for the errors of errors. shift, added: the largest of these two terms.
    """
    scaled, first = most + shift + added, most + torch.maximum(shift, added)
    return 1.001 * (2 * scaled + 2 * shift + first + 2 * added + most) / EXACT


def _unit(step: Tensor, *values: Tensor) -> Tensor | None:
    """The largest `step/2^j` per channel in which all values are whole; None where there is none."""
    unit, found = step.clone(), torch.zeros_like(step, dtype=torch.bool)
    for _ in range(2 * _FINEST):
        found = torch.stack([(value / unit).frac() == 0 for value in values]).all(0)
        if found.all():
            return unit
        unit = torch.where(found, unit, unit / 2)
    return None
