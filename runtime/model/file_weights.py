"""The weights of a GGUF file as they stand in it: mapped, and neither converted nor copied.

Matrices stay in the file. A step multiplies with their blocks (`FileProduct`), prefill has one matrix at a time as
plain numbers (`Matrix.widen`), of the embedding it is a row for each token (`Matrix.take`). What compiled loops cannot
read where it stands is held in the model's dtype, as a converted model holds it; norms and biases are held in fp32.

Everything is mapped or read when the model is loaded. A file that is put in the place of another later changes nothing.

Shapes  x [B, K]   weight [N, K]   ->  [B, N]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gguf.constants import GGMLQuantizationType as Gguf
from torch import Tensor, nn

from ...kernels.compiled import record as r
from ...kernels.compiled.widening import widen
from ..process import compiled
from ..process.apart import fp32
from .decoder import Decoder
from .gguf.directory import ModelFile
from .gguf.plan import TensorRows, Weight
from .gguf.weights_file import pieces, rows_of
from .model_files import read_generation
from .products import Linear, Product, Strip, strip_of
from .strip_rows import fill_products, operations_of, widening

_KINDS = {
    Gguf.F32: r.F32, Gguf.BF16: r.BF16, Gguf.Q8_0: r.Q8_0, Gguf.Q4_0: r.Q4_0, Gguf.Q4_1: r.Q4_1, Gguf.Q5_0: r.Q5_0,
    Gguf.Q5_1: r.Q5_1, Gguf.Q4_K: r.Q4_K, Gguf.Q5_K: r.Q5_K, Gguf.Q6_K: r.Q6_K,
    Gguf.MXFP4: r.MXFP4,
}  # fmt: skip
"""Types of numbers that compiled loops read where they stand."""
_ALIGNMENT = 4
"""Bytes from a file's beginning, which is mapped to that of a page: they take four at a time."""
_FEW = 16
"""The most vectors that are multiplied with blocks; for more the numbers are made first."""
_NUMBERS = 1 << 22
"""Numbers that are made at a time then."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight `[N, K]` whose strips lie one below the other."""

    strips: tuple[Strip, ...]

    def widen(self, out: Tensor) -> None:
        """Write it to fp32 `[N, K]`, rows of heads in halves."""
        first = 0
        for strip in self.strips:
            _run(widening(strip, out[first : first + strip.rows]))
            first += strip.rows

    def cut(self, rows: slice) -> Matrix:
        """Some rows of a matrix of one strip."""
        (strip,) = self.strips
        first, end, _ = rows.indices(strip.rows)
        some = replace(strip, address=strip.address + first * strip.row_bytes, rows=end - first)
        return Matrix((some,))

    def take(self, ids: Tensor) -> Tensor:
        """Rows of a matrix of one strip, fp32 `[n, K]`."""
        (strip,) = self.strips
        rows = ids.cpu().numpy().astype(np.int64)
        assert ((rows >= 0) & (rows < strip.rows)).all(), "no such row"
        out = fp32(len(rows), strip.columns)
        if len(rows):
            _run(widening(strip, out, rows))
        return out


class FileProduct(Product):
    """Computes `x @ weight.T + bias` in fp32 with matrices one below the other.

    Args:
        weight: of their shape together, without memory.
    """

    def __init__(self, weight: Tensor, parts: list[tuple[Matrix, Tensor | None]]) -> None:
        super().__init__(weight, None)
        self._strips: list[Strip] = []
        for matrix, bias in parts:
            first = 0
            for strip in matrix.strips:
                own = None if bias is None else bias[first : first + strip.rows]
                self._strips.append(replace(strip, bias=_in_pairs(own, strip.pairs)))
                first += strip.rows

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def strips(self) -> list[Strip]:
        return self._strips

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        out = fp32(len(x), sum(strip.rows for strip in self._strips))
        if 0 < len(x) <= _FEW:
            table = np.zeros((len(self._strips), r.WIDTH), dtype=np.int64)
            kept = fill_products(table, self._strips, len(x), out)
            table[0, [r.P_INPUT, r.P_A]] = r.PLAIN, x.data_ptr()
            _run(table)
            del kept
        first = 0
        for strip in self._strips:
            some = out[:, first : first + strip.rows]
            if len(x) > _FEW:
                _multiply(x, strip, some)
            if strip.pairs:
                some.copy_(some.reshape(len(x), -1, strip.pairs // 2, 2).transpose(2, 3).reshape(some.shape).clone())
            first += strip.rows
        return out


class FileWeights:
    """The matrices of a model in its mapped file, by the parameters of the decoder that stand for them.

    Raises ModelFileError, and OSError if a file cannot be mapped.
    """

    def __init__(self, found: ModelFile, dtype: torch.dtype) -> None:
        self._found, self._dtype = found, dtype
        self._mapped: dict[Path, np.ndarray] = {}
        self._rounds = dtype is not torch.float32
        """Steps multiply with x rounded to 16 bits: a hundred times finer than keys and values of such a dtype."""
        self._matrices: dict[int, Matrix] = {}
        self.held_bytes = 0
        """Bytes of matrices that are no longer in the file."""

    def decoder(self, config: Any, directory: Path) -> Decoder:
        """Make the decoder, with a directory's settings of generation. Its matrices have a shape, the model's dtype,
        and no memory."""
        decoder = Decoder(config).to(self._dtype)
        small = {weight.name: weight for weight in self._found.weights if len(weight.shape) == 1}
        numbers = {
            name: torch.cat([piece.flatten() for piece in pieces(weight, torch.float32)])
            for name, weight in small.items()
        }
        decoder.load_state_dict(numbers, assign=True, strict=False)
        parameters = dict(decoder.named_parameters())
        for weight in self._found.weights:
            if weight.name not in small:
                self._matrices[id(parameters[weight.name])] = self._matrix(weight)
        if config.tie_word_embeddings:
            decoder.lm_head.weight = decoder.model.embed_tokens.weight
        read_generation(directory, decoder)
        kinds = {strip.kind for matrix in self._matrices.values() for strip in matrix.strips}
        compiled.ahead([*map(widen, sorted(kinds)), *operations_of(kinds, rounded=self._rounds)])
        return decoder.eval().requires_grad_(False)

    def of(self, parameter: Tensor) -> Matrix | None:
        """The matrix that a parameter of the decoder stands for; None if it has its numbers itself."""
        return self._matrices.get(id(parameter))

    def product(self, layers: list[Any]) -> Product:
        """The product with the weights of linear layers over the same input, one below the other."""
        parts = []
        for layer in layers:
            matrix = self.of(layer.weight)
            assert matrix is not None
            parts.append((matrix, layer.bias))
        if len(layers) == 1:
            return FileProduct(layers[0].weight, parts)
        rows = sum(layer.weight.shape[0] for layer in layers)
        return FileProduct(layers[0].weight.new_empty(rows, layers[0].weight.shape[1]), parts)

    def multiply(self, layer: Linear, x: Tensor, some: slice = slice(None)) -> Tensor:
        """The product of `[.., K]` with a linear layer of its own, in the dtype of x.

        Args:
            some: rows of the weight, of which the others are left out; of a matrix of one strip without bias.
        """
        matrix = self.of(layer.weight)
        assert matrix is not None
        if some != slice(None):
            matrix = matrix.cut(some)
        out = FileProduct(layer.weight, [(matrix, layer.bias)])(x.flatten(0, -2))
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    def rows(self, parameter: Tensor, ids: Tensor) -> Tensor:
        """The rows of a matrix that ids of any shape name, fp32 `[.., K]`."""
        matrix = self.of(parameter)
        assert matrix is not None
        return matrix.take(ids.flatten()).view(*ids.shape, -1)

    def embedded(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        """What an embedding makes of ids of any shape: fp32, of the rows that they name alone."""
        matrix = self.of(embedding.weight)
        assert matrix is not None
        rows = nn.Parameter(matrix.take(ids.flatten()), requires_grad=False)
        hidden: Tensor = torch.func.functional_call(
            embedding, {"weight": rows}, (torch.arange(ids.numel()).view(ids.shape),)
        )
        return hidden

    def _matrix(self, weight: Weight) -> Matrix:
        width = weight.shape[0] // weight.pairs if weight.pairs else 0
        return Matrix(tuple(self._strip(part, weight, width) for part in weight.parts))

    def _strip(self, part: TensorRows, weight: Weight, pairs: int) -> Strip:
        tensor, columns = part.tensor, weight.shape[1]
        row_bytes = tensor.num_bytes // tensor.shape[0]
        if not _is_readable(part):
            held = torch.cat(list(rows_of(part, weight.offset, self._dtype)))
            self.held_bytes += held.nbytes
            return replace(strip_of(held), pairs=pairs)
        mapped, kind = self._map(tensor.file), _KINDS[Gguf(tensor.kind)]
        address = mapped.ctypes.data + tensor.start + part.first * row_bytes
        return Strip(
            kind=kind, address=address, rows=part.rows, columns=columns, owner=mapped, pairs=pairs, rounds=self._rounds
        )

    def _map(self, file: Path) -> np.ndarray:
        if file not in self._mapped:
            self._mapped[file] = np.memmap(file, dtype=np.uint8, mode="r")
        return self._mapped[file]


def can_stay(weights: list[Weight], dtype: torch.dtype) -> bool:
    """True if matrices are best read where they stand: compiled loops can read all of them, and together they are no
    wider than in `dtype`. A mixture's router is often in fp32, among experts of a few bits."""
    parts = [part for weight in weights for part in weight.parts]
    there = sum(part.rows * (part.tensor.num_bytes // part.tensor.shape[0]) for part in parts)
    return all(map(_is_readable, parts)) and there <= sum(weight.elements for weight in weights) * dtype.itemsize


def _is_readable(part: TensorRows) -> bool:
    start = part.tensor.start + part.first * (part.tensor.num_bytes // part.tensor.shape[0])
    return Gguf(part.tensor.kind) in _KINDS and part.scale is None and start % _ALIGNMENT == 0


def _run(table: np.ndarray) -> None:
    compiled.team().run(table, torch.get_num_threads())


def _in_pairs(bias: Tensor | None, pairs: int) -> Tensor | None:
    """A bias whose heads are in halves, in the order of rows in pairs."""
    if bias is None or not pairs:
        return bias
    return bias.view(-1, 2, pairs // 2).transpose(1, 2).reshape(-1)


def _multiply(x: Tensor, strip: Strip, out: Tensor) -> None:
    """Write to `out` `[B, N]` the product with a strip, some rows of which are plain numbers at a time."""
    step = max(1, _NUMBERS // strip.columns)
    for begin in range(0, strip.rows, step):
        count = min(step, strip.rows - begin)
        some = replace(strip, address=strip.address + begin * strip.row_bytes, rows=count, pairs=0)
        wide = fp32(count, strip.columns)
        _run(widening(some, wide))
        bias = None if strip.bias is None else strip.bias[begin : begin + count].float()
        out[:, begin : begin + count] = F.linear(x, wide, bias)
