"""AutoRound against its authors' library and against rounding to nearest."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import pytest
import torch

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.errors import CompressionError
from agentic_compression.methods.autoround import AutoRoundConfig, apply
from agentic_compression.methods.block_tuning import Rounding, TunedRounding
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.rtn import METHOD as RTN
from agentic_compression.methods.rtn import RtnConfig, quantize
from tests.unit.methods.tiny_models import logits, tiny_model, tiny_tokenizer


def calibration(windows: int = 16, tokens: int = 32, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 250, (1, tokens), generator=generator) for _ in range(windows)]


def changed(model: Any, original: Any, windows: list[torch.Tensor] | None = None) -> float:
    """Mean squared change of the logits, on these windows or on other random tokens."""
    if windows is None:
        return float((logits(model) - logits(original)).square().mean())
    with torch.no_grad():
        changes = [(model(input_ids=ids).logits - original(input_ids=ids).logits).square() for ids in windows]
    return float(torch.cat([change.flatten() for change in changes]).mean())


@contextmanager
def library_quiet() -> Iterator[None]:
    """The library warns on import and on use, draws bars, seeds everything, and collects garbage all the time."""
    deterministic, state = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    gc.freeze()
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            import auto_round.logger  # noqa: F401

            logging.getLogger("autoround").setLevel(logging.CRITICAL)
            yield
    finally:
        gc.unfreeze()
        torch.set_rng_state(state)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_printoptions(profile="default")


@pytest.mark.parametrize("symmetric", [False, True])
def test_untuned_rounding_is_rounding_to_nearest(symmetric: bool) -> None:
    weight = torch.randn(8, 172, generator=torch.Generator().manual_seed(0))
    ours = TunedRounding(weight, Rounding(3, 32, symmetric)).quantized()
    plain = quantize(weight, RtnConfig(bits=3, group_size=32, symmetric=symmetric))
    assert torch.equal(ours.dequantize(), TunedRounding(weight, Rounding(3, 32, symmetric)).weight().detach())
    assert float((ours.dequantize() - plain.dequantize()).abs().mean()) < 0.01 * float(plain.scale.float().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_offsets_and_ranges_round_as_in_the_authors_library(bits: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(16, 96, generator=generator)
    tuned = TunedRounding(weight, Rounding(bits, 32))
    offset = torch.rand(16, 3, 32, generator=generator) - 0.5
    low, high = (1 - 0.4 * torch.rand(16, 3, generator=generator) for _ in range(2))
    tuned.restore((offset, low, high))
    with library_quiet():
        from auto_round.data_type.int import quant_tensor_asym

        theirs, scale, zero = quant_tensor_asym(
            weight,
            bits=bits,
            group_size=32,
            v=offset.view(-1, 32),
            min_scale=low.flatten(),
            max_scale=high.flatten(),
            scale_dtype=torch.bfloat16,
        )
    ours = tuned.quantized()
    assert torch.equal(ours.scale.flatten(), scale.flatten())
    assert ours.zero_point is not None
    assert torch.equal(ours.zero_point.flatten() + 2 ** (bits - 1), zero.flatten().to(torch.int8))
    # The library divides by the bfloat16 scale in another order: one weight in a thousand may fall to the other side.
    assert float((ours.dequantize() == theirs).float().mean()) > 0.998


def test_pruned_weights_stay_zero() -> None:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.data[:, ::3] = 0
    context = CompressionContext(calibration=calibration())
    made = apply(model, AutoRoundConfig(bits=3, group_size=32, iters=20), context).model
    for module in made.modules():
        if isinstance(module, PackedLinear):
            assert bool((module.quantized().dequantize()[:, ::3] == 0).all())


@pytest.mark.parametrize("kind", ["llama", "biases", "odd", "tied"])
def test_tuning_beats_rounding_to_nearest(kind: str) -> None:
    original = tiny_model(kind)
    told: list[tuple[int, int]] = []
    windows = [window[:, : 33 + number] for number, window in enumerate(calibration(64, 96))]  # of many lengths
    context = CompressionContext(
        calibration=windows,
        progress=lambda what, done, total: told.append((done, total)),
    )
    tuned = apply(tiny_model(kind), AutoRoundConfig(bits=3, group_size=32), context)
    nearest = RTN.apply(tiny_model(kind), RtnConfig(bits=3, group_size=32), CompressionContext()).model
    assert changed(tuned.model, original, windows) < 0.85 * changed(nearest, original, windows)
    assert changed(tuned.model, original) < changed(nearest, original)
    assert sum(isinstance(module, PackedLinear) for module in tuned.model.modules()) == 14
    assert told[-1] == (100, 100)
    assert any("does not divide 172" in note for note in tuned.notes) == (kind == "odd")


def test_padding_does_not_matter() -> None:
    windows = calibration(8)
    config = AutoRoundConfig(bits=4, group_size=32, iters=20)
    first = apply(tiny_model(), config, CompressionContext(calibration=windows)).model
    for batch in (3, 8):  # 8 windows in batches of 3: the last has a row that is all padding
        other = apply(tiny_model(), config, CompressionContext(calibration=windows, batch_size=batch)).model
        assert changed(other, tiny_model()) == pytest.approx(changed(first, tiny_model()), rel=0.4)


def test_bfloat16_models_stay_bfloat16() -> None:
    model = tiny_model("llama", torch.bfloat16)
    context = CompressionContext(calibration=calibration(8))
    made = apply(model, AutoRoundConfig(bits=8, group_size=64, iters=20), context).model
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    assert float((logits(made) - logits(tiny_model("llama", torch.bfloat16))).norm() / logits(made).norm()) < 0.1


def test_linears_that_no_token_reaches_are_rounded_to_nearest_and_noted() -> None:
    class Routed(torch.nn.Module):
        """An expert that is never chosen beside one that always is."""

        def __init__(self, inner: torch.nn.Module, spare: torch.nn.Linear) -> None:
            super().__init__()
            self.inner, self.spare = inner, spare

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.spare(x) if float(x.detach().abs().max()) > 1e9 else self.inner(x)  # type: ignore[no-any-return]

    class Skipped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return x * 1.5

    model = tiny_model()
    spare = torch.nn.Linear(64, 64, bias=False)
    expected = quantize(spare.weight.detach(), RtnConfig(bits=4, group_size=32))
    model.model.layers[0].mlp = Routed(model.model.layers[0].mlp, spare)
    model.model.layers[1] = Skipped(model.model.layers[1])  # a block of which nothing is called
    config = AutoRoundConfig(bits=4, group_size=32, iters=20)
    made = apply(model, config, CompressionContext(calibration=calibration(4)))
    unreached = [note.partition(":")[0] for note in made.notes if "no calibration token reached it" in note]
    assert unreached[0] == "model.layers.0.mlp.spare"
    assert len(unreached) == 1 + 7
    packed = made.model.model.layers[0].mlp.spare.quantized()
    assert float((packed.dequantize() - expected.dequantize()).abs().mean()) < 0.01 * float(
        expected.scale.float().mean()
    )


def test_infinite_activations_are_refused_by_block() -> None:
    model = tiny_model()
    model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(CompressionError, match=r"NaN or infinite activations at the output of model\.layers\.1"):
        apply(model, AutoRoundConfig(iters=20), CompressionContext(calibration=calibration()))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
def test_quality_is_that_of_the_authors_library(bits: int) -> None:
    """On widths and windows that the library takes: same steps, groups, windows and scale type."""
    windows = calibration(32)
    original = tiny_model()
    config = AutoRoundConfig(bits=bits, group_size=32, iters=50)
    ours = apply(tiny_model(), config, CompressionContext(calibration=windows)).model
    with library_quiet():
        from auto_round import AutoRound
        from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig

        signround = SignRoundConfig(bits=bits, group_size=32, sym=False, iters=50)
        theirs, _ = AutoRound(
            copy.deepcopy(original),
            tiny_tokenizer(),
            scheme="W4A16",
            alg_configs=signround,
            dataset=windows,
            seqlen=32,
            nsamples=32,
            batch_size=8,
            device_map="cpu",
            enable_torch_compile=False,
            amp=False,
            scale_dtype="bf16",
            low_cpu_mem_usage=False,
        ).quantize()
    assert all(module.bits == bits for name, module in theirs.named_modules() if name.endswith("_proj"))
    assert changed(ours, original) < 1.1 * changed(theirs, original)
