"""Clipped sums by book-keeping: one backward pass without weight gradients, then one weighted product for each layer.

The backward pass leaves, for every layer, what went in and what came back; from these follow each patient's norm, the
factor that clips it, and the sum of all patients' gradients times their factors. No second backward pass is needed, and
a gradient of one patient is formed only where that is cheaper.
Source: Bu et al. 2022, "Differentially Private Optimization on Large Model at Small Cost" (arXiv:2210.00038), with the
patient in place of the record and with norms that a hostile model cannot shrink (`client.training.per_patient`).

What a patient contributes. Records go through the network in chunks of one fixed number of rows, so that the same
kernels see a patient whoever else is there. What the two passes recorded for a patient is taken as exact; norms and
sums follow from it in float64. A contribution is therefore at most C(1 - 1e-4), but for the rounding of sums of n
patients in products over K positions, which in norm is at most n·K·2⁻⁵³·f·S with the symbols of `per_patient`: f is a
patient's factor and f·S ≤ C·S/norm ≤ 1e4 C. S/norm says how far a layer's gradient cancels between positions, and is 1
where a record has one position. Between two data sets that differ by a patient the result moves by that patient and by
twice this rounding. With K = 4,096 the margin of 1e-4 C covers 11,000 patients whose gradients all cancel as far as
factors allow, and more than a million where they cancel to a hundredth.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from client.device import DeviceName, choose_device, keep_full_precision
from client.memory import keep_freed_memory
from client.training.batch import PatientBatch
from client.training.chunks import Chunk, chunks_of_patients, patients_beyond
from client.training.engine import Precision, clipping_factors, gives_zeros
from client.training.lane import Lane, Located, twins
from client.training.layer_rules import RULES, refuse_unknown_options
from client.training.module_check import refuse_unfit_module, trainable_layers
from client.training.per_patient import Instantiated
from client.training.self_check import (
    CHECKED_RECORDS,
    TOLERANCE,
    TOLERANCE_BFLOAT16,
    RecordLoss,
    autograd_gradients,
    check_gradients,
    cross_entropy,
    made_up_records,
    made_up_weights,
    refuse_unfit_loss,
)
from client.training.threads import Workers
from common.errors import ConfigurationError

LARGEST_CHUNK = 256
USUAL_CHUNK = 64
CHUNK_OVERHEAD = 32  # what a chunk costs besides its rows, in rows of a small network
SMALLEST_CHUNK = 16  # unless the memory below does not suffice
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}  # of activations and gradients per record, of all lanes together
CACHED_BYTES = 32 << 20  # a chunk of more records than the smallest is not larger than this: it would be no faster
MOST_LANES = 4  # with more, a layer's sum is read and written too often
LANE_BYTES = 1 << 20  # a chunk of less is not worth a thread of its own

Weighted = tuple[Located, torch.Tensor]  # with the patients' factors


class BookkeepingEngine:
    """A `ClippedSumEngine` for modules of Linear, Conv1d, Conv2d, GroupNorm, LayerNorm and Embedding.

    Attributes:
        device: Where it computes.
        lanes: How many chunks go side by side, each in a thread; on a GPU one.
        chunk_records: Rows of a chunk, a power of two.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        inputs: tuple[int, ...],
        classes: int,
        device: DeviceName = "auto",
        precision: Precision = "float32",
        loss: RecordLoss = cross_entropy,
        expected_records: int | None = None,
        chunk_records: int | None = None,
    ) -> None:
        """Take over a module: its parameters are overwritten at every call and point into the caller's vector.

        Args:
            module: Maps (n, *inputs) to logits (n, classes). Its trainable parameters, in the order of
                `named_parameters`, make up the flat vector. It is put in eval mode, with all that is frozen in it.
            inputs: Shape of one record.
            classes: Number of classes.
            device: `auto` is the GPU where there is one.
            precision: Of the two passes: `bfloat16` rounds the forward pass, and what it costs the backward one, under
                torch's autocast. Norms and sums are float64 in any case.
            loss: From logits (n, classes) and labels (n,) to the loss of each record, (n,).
            expected_records: Public guess at the records of a call; chunks are sized for it. Never the true number.
            chunk_records: Rows of a chunk, a power of two, instead of what fits in memory and wastes little.

        Raises:
            ConfigurationError: If a record's gradient in this module depends on other records, or this engine does
                not know it; the module is left as it was.
            ValueError: If `chunk_records` is not a power of two.
        """
        if chunk_records is not None and (chunk_records < 1 or chunk_records & (chunk_records - 1)):
            raise ValueError(f"chunk_records is a power of two, not {chunk_records}")
        refuse_unfit_module(module, supported=frozenset(RULES))
        for name, layer in trainable_layers(module).items():
            refuse_unknown_options(name, layer)
        refuse_unfit_loss(loss, classes=classes)
        keep_full_precision()
        self.device = choose_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._inputs = inputs
        self._classes = classes
        self._precision = precision
        self._type = torch.float64 if precision == "float64" else torch.float32
        module = module.to(self.device, self._type).eval()
        most = min(MOST_LANES, torch.get_num_threads()) if self.device.type == "cpu" else 1
        others = twins(module, most - 1)

        def lane(own: nn.Module) -> Lane:
            return Lane(own, inputs=inputs, device=self.device, precision=precision, loss=loss)

        self._lanes = [lane(module)]
        self._parameters = self._lanes[0].parameters
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._dimension = sum(self._sizes)
        own = torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters]).float().cpu().numpy()
        try:
            self._load(made_up_weights([tuple(parameter.shape) for parameter in self._parameters]))
            each = self._bytes_of_a_record()
            self.lanes, self.chunk_records = _layout(
                each, expected_records, chunk_records, 1 + len(others), self.device.type
            )
            self._lanes += [lane(other) for other in others[: self.lanes - 1]]
            for made in self._lanes:
                made.resize(self.chunk_records)
            self._check_against_autograd(own)
            self._load(own)
        except BaseException:
            self._lanes[0].release()
            self._load(own)
            raise
        self._workers = Workers(self.lanes)

    def clipped_sum(
        self, parameters: NDArray[np.float32], batch: PatientBatch, *, clipping_norm: float
    ) -> NDArray[np.float64]:
        """See `ClippedSumEngine.clipped_sum`."""
        if gives_zeros(
            parameters,
            batch,
            dimension=self._dimension,
            inputs=self._inputs,
            classes=self._classes,
            clipping_norm=clipping_norm,
        ):
            return np.zeros(self._dimension)
        self._load(parameters)
        flat, total = self._zeros()
        self._add(chunks_of_patients(batch, capacity=self.chunk_records), total, clipping_norm=clipping_norm)
        for pieces in patients_beyond(batch, capacity=self.chunk_records):
            alone, parts = self._zeros()
            self._add(pieces, parts, clipping_norm=None)
            norm = torch.linalg.vector_norm(alone).cpu().numpy()
            factor = float(clipping_factors(norm, clipping_norm=clipping_norm))
            if factor:
                flat.add_(alone, alpha=factor)
        return np.asarray(flat.cpu().numpy())

    def _add(self, chunks: Iterable[Chunk], total: Sequence[torch.Tensor], *, clipping_norm: float | None) -> None:
        """Add the sum over all patients of chunks, each clipped, or as they are without a clipping norm."""

        def weighted(lane: Lane, chunk: Chunk) -> tuple[list[Located], torch.Tensor]:
            if clipping_norm is None:
                return lane.gradients(chunk), torch.ones(chunk.patients, dtype=torch.float64, device=self.device)
            found, norms = lane.measured(chunk)
            return found, torch.from_numpy(clipping_factors(norms, clipping_norm=clipping_norm)).to(self.device)

        for wave in _waves(chunks, len(self._lanes)):
            layers = _by_layer(self._workers.map(weighted, self._lanes, wave))
            layers.sort(key=lambda parts: -sum(self._sizes[place] for some, _ in parts for place in some.places))
            self._workers.map(lambda parts: _add_parts(parts, total), layers)

    def _load(self, parameters: NDArray[np.float32]) -> None:
        vector = torch.from_numpy(parameters) if parameters.flags.writeable else torch.tensor(parameters)
        pieces = vector.to(self.device, self._type).split_with_sizes(self._sizes)
        for lane in self._lanes:
            lane.load(pieces)

    def _zeros(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """A flat float64 vector of zeros, and views of it in the shapes of the parameters, rows first."""
        flat = torch.from_numpy(np.zeros(self._dimension)).to(self.device)  # numpy's zeros are not written before use
        pieces = zip(self._parameters, flat.split_with_sizes(self._sizes), strict=True)
        return flat, [piece if own.dim() == 1 else piece.view(len(own), -1) for own, piece in pieces]

    def _made_up_chunk(self, records: int) -> Chunk:
        features, labels = made_up_records(inputs=self._inputs, classes=self._classes)
        features, labels = features[:records], labels[:records]
        return Chunk(features=features, labels=labels, shares=np.ones(len(labels)), patients=records)

    def _bytes_of_a_record(self) -> int:
        """Activations and gradients that a pass keeps for one record."""
        lane = self._lanes[0]
        lane.resize(CHECKED_RECORDS)
        sizes: dict[int, int] = {}
        with saved_tensors_hooks(lambda kept: sizes.update({kept.data_ptr(): kept.nbytes}) or kept, lambda kept: kept):
            found = lane.gradients(self._made_up_chunk(CHECKED_RECORDS))
        for parameter in lane.module.parameters():
            sizes.pop(parameter.data_ptr(), None)
        instantiated = sum(some.part.size_bytes for some in found if isinstance(some.part, Instantiated))
        return max(1, (sum(sizes.values()) + instantiated) // CHECKED_RECORDS)

    def _check_against_autograd(self, own: NDArray[np.float32]) -> None:
        """Compare norms and sums with one record at a time, at made-up weights or, where these overflow, at its own."""
        made_up = made_up_weights([tuple(parameter.shape) for parameter in self._parameters])
        chunk = self._made_up_chunk(self.chunk_records)
        for weights in (made_up, own):
            self._load(weights)
            alone = [self._alone(chunk, record) for record in range(len(chunk.labels))]
            if all(_usable(gradients) for gradients in alone):
                for lane in self._lanes:
                    found, norms = lane.measured(chunk)
                    for record, gradients in enumerate(alone):
                        self._compare(found, record, gradients, norm=float(norms[record]))
                return
        raise ConfigurationError(
            "neither made-up weights nor the module's own give finite gradients that are not all zero",
            hint="check the module's outputs, or load the weights that training starts from",
        )

    def _alone(self, chunk: Chunk, record: int) -> list[torch.Tensor]:
        features = torch.tensor(chunk.features[record : record + 1], device=self.device, dtype=self._type)
        labels = torch.tensor(chunk.labels[record : record + 1], device=self.device)
        return autograd_gradients(lambda: self._lanes[0].losses(features, labels), self._parameters)

    def _compare(self, found: Sequence[Located], record: int, alone: Sequence[torch.Tensor], *, norm: float) -> None:
        tolerance = TOLERANCE_BFLOAT16 if self._precision == "bfloat16" else TOLERANCE
        one = torch.zeros(self.chunk_records, dtype=torch.float64, device=self.device)
        one[record] = 1.0
        flat, total = self._zeros()
        _add_parts([(some, one) for some in found], total)
        check_gradients(total, alone, tolerance=tolerance)
        summed = float(torch.linalg.vector_norm(flat))
        if not summed * (1 - 1e-6) <= norm <= summed * (1 + TOLERANCE):
            raise ConfigurationError(
                f"a record's norm is taken for {norm:.6g} and differs by {abs(norm - summed):.2g} from its gradient's",
                hint="this is a fault of the engine: choose engine='opacus', and report the module",
            )


def _layout(
    each: int, expected_records: int | None, chunk_records: int | None, most_lanes: int, device: str
) -> tuple[int, int]:
    """How many lanes, and how many rows a chunk, for records of so many bytes: the most lanes if they pay, else one."""
    for lanes in (most_lanes, 1):
        rows = chunk_records or _chunk_size(_records_that_fit(each, lanes, device), expected_records, lanes)
        idle = expected_records is not None and expected_records <= rows
        if lanes == 1 or (rows * each >= LANE_BYTES and not idle):
            break
    return lanes, rows


def _records_that_fit(each: int, lanes: int, device: str) -> int:
    """The largest power of two whose activations and gradients per record stay below `CHUNK_BYTES`."""
    fitting = max(1, CHUNK_BYTES[device] // each // lanes)
    fast = max(SMALLEST_CHUNK, CACHED_BYTES // each) if device == "cpu" else fitting
    return 1 << (min(LARGEST_CHUNK, fitting, fast).bit_length() - 1)


def _chunk_size(fitting: int, expected_records: int | None, lanes: int) -> int:
    """The power of two, at most `fitting`, with the least work for the expected records; without them a middle one."""
    sizes = [1 << bits for bits in range(fitting.bit_length())]
    if expected_records is None:
        return min(fitting, USUAL_CHUNK)
    return min(
        sizes, key=lambda size: (-(-max(1, expected_records) // (size * lanes)) * (size + CHUNK_OVERHEAD), -size)
    )


def _by_layer(found: Sequence[tuple[list[Located], torch.Tensor]]) -> list[list[Weighted]]:
    """What all chunks gave, layer by layer: what two threads add at once never belongs to the same parameter."""
    layers: dict[int, list[Weighted]] = {}
    for located, factors in found:
        for some in located:
            layers.setdefault(some.layer, []).append((some, factors))
    return list(layers.values())


def _waves(chunks: Iterable[Chunk], size: int) -> Iterator[list[Chunk]]:
    remaining = iter(chunks)
    while wave := list(islice(remaining, size)):
        yield wave


def _usable(gradients: Sequence[torch.Tensor]) -> bool:
    finite = all(bool(part.isfinite().all()) for part in gradients)
    return finite and any(bool(part.any()) for part in gradients)


def _add_parts(parts: list[Weighted], total: Sequence[torch.Tensor]) -> None:
    """Add parts in order; the list is used up, so that each part's memory is free after its turn."""
    parts.reverse()
    while parts:
        some, factors = parts.pop()
        some.part.add_weighted_sum(factors, [total[place] for place in some.places])
