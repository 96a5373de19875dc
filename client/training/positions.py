"""The positions at which a layer's weight meets its inputs, laid out for fast products.

A copy is fast where the numbers that stay side by side are many. For a convolution over small pictures these are the
channels of a pixel or the records of a chunk, not the pixels of a row: at 2 x 2 pixels that is five times faster.
"""

import torch
from torch import nn
from torch.nn import functional


class SequenceLayout:
    """A `PositionLayout` of `nn.Linear`: inputs of shape (n, …, in), one group."""

    taps = 1  # of the vectors a_t that one number of the inputs is in

    def __init__(self, patients: int) -> None:
        """Take P, which divides n."""
        self._patients = patients

    def rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """See `PositionLayout.rows`."""
        return inputs.reshape(self._patients, 1, -1, inputs.shape[-1])

    def columns(self, inputs: torch.Tensor) -> torch.Tensor:
        """A view of shape (P, …): for each patient the numbers of an array (1, in, T) in order."""
        return self.rows(inputs)[:, 0].mT

    def matrices(self, inputs: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PositionLayout.matrices`."""
        return inputs.reshape(1, -1, inputs.shape[-1]).mT, gradients.reshape(1, -1, gradients.shape[-1]).mT


class KernelLayout:
    """A `PositionLayout` of a convolution over one or two dimensions, padded by zeros."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, patients: int) -> None:
        """Take P, which divides n."""
        flat = isinstance(layer, nn.Conv1d)
        sizes = (layer.kernel_size, layer.stride, layer.dilation)
        self._patients = patients
        self._groups = layer.groups
        self._padding = [int(size) for size in layer._reversed_padding_repeated_twice]
        self._kernel, self._stride, self._dilation = ((1, *size) if flat else size for size in sizes)
        self.taps = self._kernel[0] * self._kernel[1]

    def rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """See `PositionLayout.rows`; the last dimension in the order of kernel, then channels."""
        windows = self._windows(self._padded(inputs).contiguous(memory_format=torch.channels_last))
        by_place = windows.permute(0, 4, 5, 2, 3, 1)  # record, place, kernel, channel
        width = inputs.shape[1] // self._groups
        by_group = by_place.reshape(self._patients, -1, self.taps, self._groups, width).permute(0, 3, 1, 2, 4)
        return by_group.reshape(self._patients, self._groups, -1, self.taps * width)

    def columns(self, inputs: torch.Tensor) -> torch.Tensor:
        """A view of shape (P, …): for each patient the numbers of an array (groups, in, T) in order.

        `in` is in the order of the weight, channels before kernel, and T in that of records, then places.
        """
        windows = self._windows(self._padded(inputs).contiguous())
        by_patient = windows.view(self._patients, -1, *windows.shape[1:])  # patient, record, channel, kernel, place
        return by_patient.permute(0, 2, 3, 4, 1, 5, 6)

    def matrices(self, inputs: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PositionLayout.matrices`; positions by place, then patient, then record."""
        records_inside = self._padded(inputs).permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        windows = self._windows(records_inside)
        by_channel = windows.permute(1, 2, 3, 4, 5, 0)  # channel, kernel, place, record
        width = windows[0, :, :, :, 0, 0].numel() // self._groups
        patients, groups, _, height = gradients.shape
        by_record = gradients.reshape(patients, groups, len(inputs) // patients, -1, height)
        outputs = by_record.permute(1, 4, 3, 0, 2).reshape(groups, height, -1)  # channel, place, patient, record
        return by_channel.reshape(self._groups, width, -1), outputs

    def _padded(self, inputs: torch.Tensor) -> torch.Tensor:
        """Shape (n, channels, height, width) with the padding; of height 1 for one dimension."""
        padded = functional.pad(inputs, self._padding) if any(self._padding) else inputs
        return padded.unsqueeze(2) if padded.dim() == 3 else padded

    def _windows(self, pictures: torch.Tensor) -> torch.Tensor:
        """A view of what the kernel sees: record, channel, kernel row and column, place row and column."""
        records, channels, height, width = pictures.shape
        per_record, per_channel, per_row, per_column = pictures.stride()
        places = [
            (size - reach * (taps - 1) - 1) // step + 1
            for size, taps, step, reach in zip((height, width), self._kernel, self._stride, self._dilation, strict=True)
        ]
        return pictures.as_strided(
            (records, channels, *self._kernel, *places),
            (
                per_record,
                per_channel,
                per_row * self._dilation[0],
                per_column * self._dilation[1],
                per_row * self._stride[0],
                per_column * self._stride[1],
            ),
        )
