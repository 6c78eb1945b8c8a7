"""bitsandbytes' 4-bit CPU kernel, called in its shared library without importing the package.

The library is optional: where it is, on processors with AVX-512 BF16, a product with NF4 weights is quicker than a
dense one; without it, weights are dequantized for each product. Importing the package instead would take a second and
50 MB, print a line about kernels to download, and look for them.

The kernel reads bfloat16 activations and block maxima. Its codes are in blocks of 32 rows: block ``b`` holds for each
pair of input features 32 bytes; byte ``2 r + k`` has feature ``k`` of the pair, of row ``r`` in the low nibble and of
row ``r + 16`` in the high one. The layout and the arguments are those of bitsandbytes 0.50, and :func:`nf4_kernel`
checks them by running a small random case once.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

__all__ = ["BLOCK_ROWS", "NF4_LEVELS", "Nf4Product", "nf4_kernel", "pack_rows", "unpack_rows"]

BLOCK_ROWS = 32
_KNOWN_RELEASE = "0.50."

# The quantiles of QLoRA's appendix E, rounded to float32.
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

Nf4Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def pack_rows(codes: torch.Tensor) -> torch.Tensor:
    """Lay 4-bit codes out in blocks of rows.

    Args:
        codes: uint8 in 0..15, ``(rows, columns)`` with rows divisible by 32 and an even number of columns.

    Returns:
        uint8 ``(rows / 32, columns / 2, 32)``.
    """
    rows, columns = codes.shape
    pairs = codes.view(rows // BLOCK_ROWS, BLOCK_ROWS, columns // 2, 2).transpose(1, 2)
    flat = pairs.reshape(rows // BLOCK_ROWS, columns // 2, 2 * BLOCK_ROWS)
    return (flat[..., :BLOCK_ROWS] | (flat[..., BLOCK_ROWS:] << 4)).contiguous()


def unpack_rows(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`pack_rows`: uint8 codes ``(rows, columns)``."""
    blocks, pairs, _ = packed.shape
    flat = torch.cat((packed & 15, packed >> 4), dim=-1).view(blocks, pairs, BLOCK_ROWS, 2)
    return flat.transpose(1, 2).reshape(blocks * BLOCK_ROWS, 2 * pairs)


@cache
def nf4_kernel() -> Nf4Product | None:
    """``product(x, packed, absmax, block)``, or None where it cannot run.

    ``x`` is bfloat16 ``(rows, columns)``, ``packed`` as :func:`pack_rows` lays it out, ``absmax`` bfloat16
    ``(columns / block, padded rows of the weight)``; the result is bfloat16 ``(rows, padded rows of the weight)``.
    """
    try:
        spec = importlib.util.find_spec("bitsandbytes")
        if spec is None or not spec.submodule_search_locations:
            return None
        if not importlib.metadata.version("bitsandbytes").startswith(_KNOWN_RELEASE):
            return None
        library = ctypes.CDLL(str(Path(next(iter(spec.submodule_search_locations))) / "libbitsandbytes_cpu.so"))
        if not library.has_avx512bf16_cpu():
            return None
        function = library.gemv_4bit_inference_cpu_nf4_bf16
    except (OSError, AttributeError, importlib.metadata.PackageNotFoundError):
        return None
    count, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [count, count, count, pointer, pointer, pointer, pointer, count, count, count]
    function.restype = None

    def product(x: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor, block: int) -> torch.Tensor:
        rows, columns = x.shape
        outputs = absmax.shape[1]
        y = torch.empty((rows, outputs), dtype=torch.bfloat16)
        function(
            rows,
            outputs,
            columns,
            x.data_ptr(),
            packed.data_ptr(),
            absmax.data_ptr(),
            y.data_ptr(),
            block,
            columns,
            outputs,
        )
        return y

    return product if _is_right(product) else None


def _is_right(product: Nf4Product) -> bool:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (64, 128), generator=generator, dtype=torch.uint8)
    absmax = torch.rand(2, 64, generator=generator).to(torch.bfloat16)
    x = torch.randn(3, 128, generator=generator).to(torch.bfloat16)
    levels = torch.tensor(NF4_LEVELS, dtype=torch.float64)
    expected = x.double() @ (levels[codes.long()] * absmax.double().T.repeat_interleave(64, dim=1)).T
    got = product(x, pack_rows(codes), absmax, 64).double()
    return bool((got - expected).abs().max() < 0.02 * expected.abs().max())
