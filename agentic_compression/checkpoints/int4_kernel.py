"""ATen's 4-bit CPU matrix product: whether it can be used here and how it lays its codes out.

``torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, group, scales_and_zeros)`` computes ``x @ w.T`` for
``w = (q - 8) * scale + zero`` with ``q`` in 0..15 (checked by experiment, and again by :func:`kernel_block_rows` in
every process), for groups of 32, 64, 128 or 256 and ``out_features`` divisible by 16. Only its bfloat16 form is
vectorised: in float32 and float16 it is a scalar loop, some twenty times slower than a dense product, so activations
are rounded to bfloat16 for it.

Its codes are in blocks of 64 rows (AVX-512) or 32 (AVX2): block ``b`` holds for each input feature ``k`` half as many
bytes as rows, the low nibble of byte ``j`` being row ``j`` and the high nibble row ``j + rows/2``. In that same layout
the codes can be dequantized with plain tensor operations on any device, so they are kept once.
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["DEFAULT_BLOCK_ROWS", "KERNEL_GROUPS", "kernel_block_rows", "kernel_group", "pack_nibbles", "unpack_nibbles"]

KERNEL_GROUPS = (256, 128, 64, 32)
DEFAULT_BLOCK_ROWS = 64


def kernel_group(length: int) -> int:
    """The longest group the kernel supports that divides ``length``, which must be a multiple of 32."""
    return next(group for group in KERNEL_GROUPS if length % group == 0)


def pack_nibbles(codes: torch.Tensor, block_rows: int) -> torch.Tensor:
    """Lay 4-bit codes out in blocks of rows.

    Args:
        codes: uint8 in 0..15, ``(rows, columns)`` with rows divisible by ``block_rows``.
        block_rows: rows of a block, even.

    Returns:
        uint8 ``(rows / block_rows, columns, block_rows / 2)``.
    """
    rows, columns = codes.shape
    blocks = codes.view(rows // block_rows, block_rows, columns).transpose(1, 2)
    half = block_rows // 2
    return (blocks[..., :half] | (blocks[..., half:] << 4)).contiguous()


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`pack_nibbles`: uint8 codes ``(rows, columns)``."""
    blocks, columns, half = packed.shape
    codes = torch.cat((packed & 15, packed >> 4), dim=-1)
    return codes.transpose(1, 2).reshape(blocks * half * 2, columns)


@cache
def kernel_block_rows() -> int | None:
    """Rows of a block in this build's kernel, or None when the kernel is missing or lays codes out in another way.

    Both the layout and the convention are checked by running the kernel once on a small random case.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (128, 64), generator=generator, dtype=torch.uint8)
    scale = torch.rand(2, 128, generator=generator).to(torch.bfloat16)
    zero = torch.randn(2, 128, generator=generator).to(torch.bfloat16)
    x = torch.randn(2, 64, generator=generator).to(torch.bfloat16)
    weight = (codes.double() - 8) * scale.double().T.repeat_interleave(32, dim=1)
    weight += zero.double().T.repeat_interleave(32, dim=1)
    expected = x.double() @ weight.T
    try:
        reference = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1).view(-1)
        for block_rows in (64, 32):
            packed = pack_nibbles(codes, block_rows)
            if not torch.equal(packed.view(-1), reference):
                continue
            scales_and_zeros = torch.stack((scale, zero), dim=-1).contiguous()
            got = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed.view(128, 32), 32, scales_and_zeros)
            close = (got.double() - expected).abs().max() < 0.01 * expected.abs().max()
            return block_rows if bool(close) else None
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return None
