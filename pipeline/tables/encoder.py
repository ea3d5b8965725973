"""The encoder of trained codebooks without torch: a vector becomes the point that the levels' codes add up to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..index.latents import Float32, Float64

_ROWS = 512  # whose numbers stay in a processor's cache from one sum to the next


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer: weight float32 [outputs, inputs], bias float32 [outputs]."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, slots=True)
class Encoder:
    """Linear layers with ReLU between them, of (vector - shift) * scale; shift, scale: float32 [d]."""

    shift: Float32
    scale: Float32
    layers: tuple[Layer, ...]

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return len(self.shift)

    @property
    def code_dim(self) -> int:
        """The length of a point."""
        return len(self.layers[-1].bias)

    def points(self, vectors: Float32) -> Float64:
        """Return the points of vectors [n, d], float64 [n, code_dim], each the same bits whatever rows are beside it.

        Every sum is added up input by input, one rounding a step: no matrix product, whose last digits depend on the
        shapes and on the processor.
        """
        points = np.empty((len(vectors), self.code_dim))
        for start in range(0, len(vectors), _ROWS):
            held = (vectors[start : start + _ROWS].astype(np.float64) - self.shift) * self.scale.astype(np.float64)
            columns = np.ascontiguousarray(held.T)
            for number, layer in enumerate(self.layers):
                columns = _sums(np.maximum(columns, 0.0) if number else columns, layer)
            points[start : start + _ROWS] = columns.T
        return points


def _sums(columns: Float64, layer: Layer) -> Float64:
    """Return what a layer makes of columns [inputs, n], float64 [outputs, n]."""
    weight = layer.weight.astype(np.float64)
    sums = np.repeat(layer.bias.astype(np.float64)[:, None], columns.shape[1], axis=1)
    product = np.empty_like(sums)
    for number in range(len(columns)):
        sums += np.multiply(weight[:, number, None], columns[number], out=product)
    return sums
