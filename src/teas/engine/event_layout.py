"""A layer for the event kernels: its terms as flat arrays, its neurons as rows of 16 channels, its arithmetic exact where it can be."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from teas.engine.event_plan import Shape, Term
from teas.spiking.neuron import IF
from teas.spiking.trace import Layer

LANES = 16
_NEAR, _AT_ONCE = 98_304, 30  # bytes that the currents of several steps may take, to stay in a near cache; most steps at once
_SORTED_NEAR, _SORTED_AT_ONCE = 524_288, 128  # and where events are sorted: few change a step, and fewer parts are sorted and run through faster
_ALIAS = 4096  # bytes after which addresses look alike to a load that waits for stores
_SIXTEEN, _THIRTY = 2**15, 2**30
Floats = NDArray[np.float32] | NDArray[np.float64]


def padded(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """A copy that begins where a cache line does, so that no vector lies on two."""
    return torch.from_numpy(values).clone().numpy()  # torch aligns its memory to 64 bytes


@dataclass(frozen=True)
class Map:
    """Neurons as `[row, column, channel]`, channels padded."""

    shape: Shape  # as torch has it, without the batch
    rows: int
    columns: int
    channels: int

    @classmethod
    def of(cls, shape: Shape) -> Map:
        """Channels first, then what there is of positions; all but the last axis of these become rows."""
        channels, *place = shape
        columns = place[-1] if place else 1
        return cls(shape, int(np.prod(place[:-1])) if len(place) > 1 else 1, columns, channels)

    @functools.cached_property
    def neurons(self) -> int:
        """Neurons, padding left out."""
        return self.rows * self.columns * self.channels

    @functools.cached_property
    def vectors(self) -> int:
        """Vectors of 16 channels at a place."""
        return padded(self.channels) // LANES

    @functools.cached_property
    def line(self) -> int:
        """Words of 16 bits that a row takes at one step."""
        return self.columns * self.vectors

    @functools.cached_property
    def size(self) -> int:
        """Neurons, padding included."""
        return self.rows * self.line * LANES

    def spread(self, values: Tensor, fill: float) -> Floats:
        """Values `[*shape]`, or one per channel, as `[row, column, channel]`, of the same type."""
        channels = values.expand(self.channels) if values.dim() < 2 and values.shape != self.shape else values
        places = channels.reshape(self.channels, -1)
        places = places.expand(-1, self.rows * self.columns) if places.shape[1] == 1 else places
        return F.pad(places.T, (0, padded(self.channels) - self.channels), value=fill).contiguous().view(-1).numpy()

    def spread_all(self, values: Tensor) -> Floats:
        """Values `[image, *shape]` as `[image, neuron]`, 0 for padding. In numpy: torch's own threads would wait, busily, beside ours."""
        found = np.zeros((len(values), self.rows * self.columns, padded(self.channels)), values.numpy().dtype)
        found[..., : self.channels] = values.numpy().reshape(len(values), self.channels, -1).transpose(0, 2, 1)
        return found.reshape(len(values), -1)

    def gather(self, values: NDArray[np.generic]) -> Tensor:
        """The reverse: `[..., *shape]` of `[..., neuron]`, float64 where the values are, else float32."""
        before = values.shape[:-1]
        places = values[..., : self.size].reshape(*before, self.rows * self.columns, -1)[..., : self.channels].swapaxes(-1, -2)
        return torch.from_numpy(places.astype(np.float64 if values.dtype == np.float64 else np.float32, order="C").reshape(*before, *self.shape))


def _lowest_bit(values: Tensor) -> Tensor:
    """Exponent of the largest power of two that divides each value; a large one for 0."""
    mantissa, exponent = torch.frexp(values.double())
    whole = (mantissa.abs() * 2**53).long()
    return torch.where(whole == 0, 10_000, exponent - 53 + torch.log2((whole & -whole).double().clamp_min(1)).long())


@dataclass
class Numbers:
    """Weights, drive and thresholds in the numbers that a layer computes with: as they are, or integers where these hold every sum exactly.

    Currents are 16-bit integers in units of `2^fine`, potentials 32-bit ones in units of `2^coarse` (coarser by `shift` bits), per channel.
    narrow: in units of `2^fine` the drive is whole too, and 16 bits hold the charge of one step, current and drive.
    """

    integer: bool
    fine: Tensor  # exponents per channel of the weights' unit
    coarse: Tensor  # and of the potentials'
    narrow: bool = False

    @classmethod
    def choose(cls, terms: list[Term], bias: Tensor, theta: Tensor, v0: float, steps: int, allowed: bool, summed: bool) -> Numbers:
        """Integers where 16 bits hold the current of one step and 32 the potentials of all steps and, where it is asked for, their sum at spikes."""
        rows = torch.cat([term.weight.double().flatten(1) for term in terms], 1) if terms else torch.zeros(len(bias), 1).double()
        fine = _lowest_bit(rows).amin(1)
        fine = torch.where(fine == 10_000, 0, fine)
        others = torch.stack([bias, theta, v0 * theta.double()], 1)
        coarse = torch.minimum(fine, _lowest_bit(others).amin(1))
        current = torch.maximum(rows.clamp_min(0).sum(1), -rows.clamp_max(0).sum(1))
        reach = steps * (current + bias.abs()) + (1 + abs(v0)) * theta
        both = torch.minimum(fine, _lowest_bit(bias))
        narrow = bool((torch.ldexp(current + bias.abs().double(), -both) < _SIXTEEN).all())
        fine = both if narrow else fine
        small = torch.ldexp(current, -fine) < _SIXTEEN
        fits = torch.ldexp((steps + 1 if summed else 2) * reach.double(), -coarse) < 2 * _THIRTY
        integer = allowed and bool((small & fits & (fine - coarse < 15)).all())
        return cls(integer, fine, coarse, integer and narrow)


@dataclass
class Layout:
    """One layer's arrays; all of it is constant while a network runs."""

    layer: Layer
    neurons: IF
    map: Map
    steps: int
    terms: list[Term]
    numbers: Numbers
    drive: Tensor | None  # bias per channel; None where the analog input drives the layer
    sorted: tuple[bool, ...] = ()  # whether the events of each term will be those of a train that fires first, at any step
    rows: NDArray[np.int64] = field(init=False)  # one row of integers a term, see event_kernels
    weights: NDArray[np.generic] = field(init=False)
    tables: NDArray[np.generic] = field(init=False)  # of the terms that can be looked up
    halo: tuple[int, int] = field(init=False)
    bases: NDArray[np.uint32] = field(init=False)  # of each word of a row of each term: what its first event is,
    reads: NDArray[np.uint16] = field(init=False)  # and which of its events reach any neuron
    ring: int = field(init=False)  # rows that a row of a source reaches, at most
    row_vectors: int = field(init=False)  # that the currents of a row take at one step
    at_once: int = field(init=False)  # steps that are computed at once
    kind: torch.dtype = field(init=False)  # of potentials where they are no integers: float32 or float64,
    real: np.dtype[Any] = field(init=False)  # and the same for numpy

    def __post_init__(self) -> None:
        self.kind = self.neurons.threshold.dtype
        self.real = np.dtype(np.float64 if self.kind == torch.float64 else np.float32)
        tables, rows, at = [], [], 0
        sums = [torch.zeros(0)]
        for term, is_sorted in zip(self.terms, self.sorted, strict=True):
            table, row = self._diagonal(term) if term.is_diagonal() and not is_sorted else self._table(term)
            row[14] = at
            tables.append(table.flatten())
            row[19] = -1
            if self.numbers.integer and self._can_be_looked_up(term) and not row[18]:
                row[19] = sum(map(len, sums))
                sums.append(self._sums(term))
            rows.append(row)
            at += table.numel()
        self.rows = np.array(rows, np.int64).reshape(len(rows), 20)
        kind = torch.int16 if self.numbers.integer else self.kind
        self.weights = aligned(torch.cat([*tables, torch.zeros(LANES)]).to(kind).numpy())
        self.tables = aligned(torch.cat(sums).to(kind).numpy())
        run = max([1, *(row[12] for row in rows)])
        right = max([0, *((row[2] - 1 + row[10]) // row[8] - (self.map.columns - 1) for row in rows)])
        self.halo = (run - 1, right)
        self.ring = min(self.map.rows, max([1, *(row[11] for row in rows)]))
        self.row_vectors = (self.map.columns + sum(self.halo)) * self.map.vectors
        near, most = (_SORTED_NEAR, _SORTED_AT_ONCE) if self.sorted and all(self.sorted) else (_NEAR, _AT_ONCE)
        row_bytes = self.row_vectors * LANES * self.weights.itemsize
        self.at_once = max(1, min(self.steps, most, near // (self.ring * row_bytes)))
        # Where rows lie a multiple of 4,096 bytes apart, a load from one takes a store to another for its own, and waits.
        self.at_once += self.at_once * row_bytes % _ALIAS == 0
        self._describe_words()
        theta = self.neurons.threshold_for(torch.empty(1, *self.map.shape)).detach()
        theta = theta.reshape(-1)
        self.theta_real = self.map.spread(theta, 1.0)
        one_row = Map((self.map.channels, 1, self.map.columns), 1, self.map.columns, self.map.channels)
        unit = torch.exp2(self.numbers.coarse.to(self.kind)) if self.numbers.integer else torch.ones((), dtype=self.kind)
        self.unit = self.map.spread(unit, 1.0)  # of the numbers that potentials are computed in
        self.theta = self._potentials(one_row, theta, _THIRTY if self.numbers.integer else float("inf"))
        self.start = self._potentials(self.map, self.neurons.v0 * theta, 0.0)
        self.shift = one_row.spread((self.numbers.fine - self.numbers.coarse).float(), 0.0).astype(np.int32)
        if self.drive is not None:
            self.drive_row = self._potentials(one_row, self.drive, 0.0)

    def _describe_words(self) -> None:
        bases, reads = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint16)]
        for row in self.rows:
            _, _, columns, words, _, _, kernel, _, stride, _, padding, _, run, *_ = (int(value) for value in row)
            row[17] = sum(map(len, bases))
            column, phase = np.divmod(np.arange(columns) + padding, stride)
            first = (column - (run - 1) + self.halo[0]) * self.map.vectors * 2**16 + phase * words * LANES
            bases.append((first[:, None] + np.arange(words) * LANES).astype(np.uint32).flatten())
            reads.append(np.repeat(np.where(phase < kernel, 0xFFFF, 0), words).astype(np.uint16))
        self.bases, self.reads = np.concatenate(bases), np.concatenate(reads)

    def _potentials(self, place: Map, values: Tensor, fill: float) -> NDArray[np.generic]:
        values = values.double().expand(self.map.channels)
        if not self.numbers.integer:
            return place.spread(values.to(self.kind), fill)
        scaled = place.spread(torch.zeros(()), 0).astype(np.int32)
        wide = torch.ldexp(values, -self.numbers.coarse).long()
        channels = scaled.reshape(-1, padded(self.map.channels))
        channels[:, : self.map.channels] = wide.numpy()
        channels[:, self.map.channels :] = int(fill)
        return scaled

    def _weight(self, term: Term) -> Tensor:
        """A term's weights in the numbers of the layer."""
        if not self.numbers.integer:
            return term.weight
        return torch.ldexp(term.weight.double(), -self.numbers.fine.view(-1, 1, 1, 1)).round()

    def _diagonal(self, term: Term) -> tuple[Tensor, list[int]]:
        """Weights as `[channel]`, twice where they are 16, and the integers that describe the term."""
        channels, rows, columns = term.shape
        width = padded(channels)
        weight = F.pad(self._weight(term).view(channels, channels).diag(), (0, width - channels))
        return weight.repeat(2 if width == LANES else 1), [0, rows, columns, width // LANES, 0, 1, 1, 1, 1, 0, 0, 1, 1, width, 0, 0, 0, 0, 1, 0]

    def _can_be_looked_up(self, term: Term) -> bool:
        """Whether a term is a 3x3 convolution from at most 16 channels to at most 16, in place."""
        around = term.stride == (1, 1) and term.padding == (1, 1) and term.weight.shape[2:] == (3, 3)
        return around and not term.flat and term.shape[0] <= LANES and self.map.channels <= LANES

    def _sums(self, term: Term) -> Tensor:
        """Sums of weights for every value of each eight channels' spikes, flat, as `look_up` reads them."""
        weight = self._weight(term)
        outs, ins = weight.shape[:2]
        full = F.pad(weight.flip(2, 3), (0, 0, 0, 0, 0, LANES - ins, 0, LANES - outs)).permute(1, 3, 2, 0)  # [in, column, row, out]
        spikes = torch.tensor([[value >> bit & 1 for bit in range(8)] for value in range(256)], dtype=full.dtype)
        found = torch.einsum("vb,gb...->gv...", spikes, full.reshape(2, 8, 3, 3, LANES))  # [byte, value, column, row, out]
        return F.pad(found, (0, 0, 0, 1)).flatten()

    def _table(self, term: Term) -> tuple[Tensor, list[int]]:
        """A term's weights as `[row of the run, phase and channel, run]`, one row of zeros behind the others, and the integers that describe the term."""
        weight = self._weight(term)
        channels, rows, columns = term.shape
        outs, width = padded(len(weight)), padded(channels)
        if term.flat:  # a row of the source is one place with columns·channels channels
            lines = F.pad(weight.permute(2, 3, 1, 0), (0, outs - len(weight), 0, width - channels)).flatten(1, 2)
            table = lines.flip(0).unsqueeze(1)  # [row, 1, columns·channels, out]
            words, kernel, stride, padding, run = columns * width // LANES, (rows, 1), (1, 1), (0, 0), (rows, 1)
            columns = 1
        else:
            kernel, stride, padding = (weight.shape[2], weight.shape[3]), term.stride, term.padding
            run = tuple(-(-k // s) for k, s in zip(kernel, stride, strict=True))  # type: ignore[assignment]
            full = weight.new_zeros(outs, width, run[0] * stride[0], run[1] * stride[1])
            full[: len(weight), :channels, : kernel[0], : kernel[1]] = weight
            split = full.view(outs, width, run[0], stride[0], run[1], stride[1]).flip(2, 4)
            table = split.permute(2, 3, 5, 1, 4, 0).flatten(1, 2).flatten(3)
            words = width // LANES
        table = F.pad(table.flatten(1, 2), (0, 0, 0, 1))
        if table.shape[1] > 2**16:
            raise OverflowError(f"{table.shape[1]} rows of weights")
        described = [0, rows, columns, words, 0, *kernel, *stride, *padding, *run, table.shape[1] * table.shape[2], 0, 0, 0, 0, 0, 0]
        return table, described


def pooled_map(place: Map, pool: nn.MaxPool2d) -> Map:
    """The map after max pooling; one without positions has a single one."""
    rows, columns = pool(torch.zeros(1, 1, place.rows, place.columns)).shape[2:]
    return Map.of((place.channels, rows, columns))
