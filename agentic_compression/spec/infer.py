"""Infer a model's specification from the best source that answers, and say where each count came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentic_compression.errors import ModelError
from agentic_compression.records import MethodDescription, ModelSpec, SizeClass, SpecSource
from agentic_compression.settings import Settings
from agentic_compression.spec.hub import HubUnreachableError, ask_hub
from agentic_compression.spec.local import inspect_folder, require_folder
from agentic_compression.spec.memory import bytes_by_dtype, memory_requirements
from agentic_compression.spec.model_name import size_in_name
from agentic_compression.spec.shape import ModelShape
from agentic_compression.spec.size_table import lookup, nearest_ids

__all__ = ["infer_spec", "preferred_methods", "size_class"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_DISAGREEMENT = 0.05
_ASSUMED_BYTES = 2.0  # bfloat16, when no checkpoint and no config was seen
_SIZE_LIMITS: tuple[tuple[float, SizeClass], ...] = ((100e6, "tiny"), (3e9, "small"), (15e9, "medium"), (80e9, "large"))

# Kinds of method, most promising first: (category, calibrated or None for either). Small models lose most
# from plain rounding and are cheap to calibrate and to heal; very large ones do best with what needs least memory.
_CHEAP_TO_TUNE = (
    ("quantization", True),
    ("healing", None),
    ("pruning", None),
    ("low_rank", None),
    ("quantization", False),
)
_MIDDLE = (("quantization", True), ("quantization", False), ("pruning", None), ("healing", None), ("low_rank", None))
_LEAST_MEMORY = (
    ("quantization", False),
    ("quantization", True),
    ("pruning", None),
    ("low_rank", None),
    ("healing", None),
)
_PREFERENCE = {
    "tiny": _CHEAP_TO_TUNE, "small": _CHEAP_TO_TUNE, "medium": _MIDDLE, "large": _LEAST_MEMORY, "huge": _LEAST_MEMORY,
}  # fmt: skip


@dataclass(frozen=True)
class _Facts:
    """The best source's answer."""

    shape: ModelShape
    dtype: str
    weight_bytes: int
    architecture: str = "unknown"
    path: str | None = None
    digest: str | None = None
    gated: bool | None = None


def infer_spec(
    model: str,
    *,
    settings: Settings,
    trust_remote_code: bool = False,
    methods: Sequence[MethodDescription] = (),
) -> ModelSpec:
    """Infer the specification of a causal language model.

    Sources, in order of trust: a local checkpoint (counted), Hub metadata (counted by the Hub), the offline size table,
    the name. The first that answers gives the count; the others are recorded, and a difference of more than 5 % is a
    warning.

    Args:
        model: ``demo``, a local folder, or a Hub id.
        settings: gives ``HF_TOKEN`` and ``HF_ENDPOINT``.
        trust_remote_code: whether a model may need Python code from its repository.
        methods: methods to state memory requirements for and to order by preference.

    Raises:
        ModelError: missing, gated, corrupt, pickle-only, not causal, without tokenizer, or of unknown size.
    """
    name = model.strip()
    warnings: list[str] = []
    if name == "demo":
        from agentic_compression import demo

        facts, first = _from_folder(demo.model_path(), trust_remote_code)
    elif _is_path(name):
        facts, first = _from_folder(require_folder(name), trust_remote_code)
    else:
        facts, first = _from_elsewhere(name, settings, trust_remote_code, warnings)
    sources = _with_others(name, first)
    warnings += _disagreements(sources)
    if facts.path is None and first.source in {"size_table", "name"}:
        warnings.append("no checkpoint and no config was seen: bfloat16 weights are assumed")
    return _assemble(model, facts, tuple(sources), tuple(warnings), methods)


def size_class(parameters: int) -> SizeClass:
    """``tiny`` below 100e6, ``small`` below 3e9, ``medium`` below 15e9, ``large`` below 80e9, else ``huge``."""
    return next((name for limit, name in _SIZE_LIMITS if parameters < limit), "huge")


def preferred_methods(size: SizeClass, methods: Sequence[MethodDescription]) -> tuple[str, ...]:
    """Names of the available methods, most promising first for a model of this size."""
    order = _PREFERENCE[size]

    def rank(method: MethodDescription) -> int:
        fits = [i for i, (category, calibrated) in enumerate(order)
                if category == method.category and calibrated in {None, method.needs_calibration}]  # fmt: skip
        return fits[0] if fits else len(order)

    return tuple(method.name for method in sorted(methods, key=rank) if method.available)


def _is_path(name: str) -> bool:
    if not name:
        raise ModelError("a model is needed, got nothing; give 'demo', a Hub id or a local folder")
    explicit = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
    if explicit or Path(name).exists():
        return True
    if _HUB_ID.fullmatch(name):
        return False
    raise ModelError(f"{name!r} is no Hub id and no local folder; write ORGANISATION/NAME, a folder, or 'demo'")


def _from_folder(folder: Path, trust_remote_code: bool) -> tuple[_Facts, SpecSource]:
    found = inspect_folder(require_folder(str(folder)), trust_remote_code=trust_remote_code)
    count = found.count
    facts = _Facts(
        shape=found.shape,
        dtype=count.dtype,
        weight_bytes=count.stored_bytes,
        architecture=_architecture(found.config),
        path=str(found.folder),
        digest=found.digest,
    )
    return facts, SpecSource(source="local_checkpoint", parameters=count.parameters, exact=True, detail=count.detail)


def _from_elsewhere(
    name: str, settings: Settings, trust_remote_code: bool, warnings: list[str]
) -> tuple[_Facts, SpecSource]:
    try:
        answer = ask_hub(name, settings, trust_remote_code=trust_remote_code)
    except HubUnreachableError as error:
        warnings.append(f"{settings.hf_endpoint} could not be reached ({error}): offline sources were used")
    else:
        count = answer.count
        facts = _Facts(
            shape=answer.shape,
            dtype=count.dtype,
            weight_bytes=count.stored_bytes,
            architecture=_architecture(answer.config),
            gated=answer.gated,
        )
        return facts, SpecSource(source="hub_metadata", parameters=count.parameters, exact=True, detail=count.detail)
    if row := lookup(name):
        source = _table_source(name)
        assert source is not None
        weight_bytes = round(_ASSUMED_BYTES * row.parameters)
        return _Facts(shape=row.shape, dtype="bfloat16", weight_bytes=weight_bytes, gated=row.gated), source
    if (source := _name_source(name)) is not None:
        return _Facts(ModelShape(), dtype="bfloat16", weight_bytes=round(_ASSUMED_BYTES * source.parameters)), source
    near = nearest_ids(name)
    hint = f"did you mean {', '.join(near)}?" if near else "give a local folder, or connect to the Hub"
    raise ModelError(f"nothing is known of model {name}: {warnings[-1]}, no table row, no size in its name; {hint}")


def _with_others(name: str, first: SpecSource) -> list[SpecSource]:
    others = [_table_source(name) if first.source != "local_checkpoint" else None, _name_source(name)]
    return [first, *(source for source in others if source is not None and source.source != first.source)]


def _table_source(name: str) -> SpecSource | None:
    row = lookup(name)
    if row is None:
        return None
    return SpecSource(source="size_table", parameters=row.parameters, exact=False, detail=f"row {row.model}")


def _name_source(name: str) -> SpecSource | None:
    named = size_in_name(name)
    if named is None:
        return None
    return SpecSource(source="name", parameters=named.parameters, exact=False, detail=named.detail)


def _disagreements(sources: Sequence[SpecSource]) -> list[str]:
    first = sources[0]
    return [
        f"{first.source} says {first.parameters:,} parameters and {other.source} says {other.parameters:,} "
        f"({abs(other.parameters / first.parameters - 1):.0%} apart): {first.source} is used"
        for other in sources[1:]
        if abs(other.parameters - first.parameters) > _DISAGREEMENT * first.parameters
    ]


def _architecture(config: object) -> str:
    named = config.get("architectures") if isinstance(config, dict) else None
    return str(named[0]) if isinstance(named, list) and named else "unknown"


def _assemble(
    model: str,
    facts: _Facts,
    sources: tuple[SpecSource, ...],
    warnings: tuple[str, ...],
    methods: Sequence[MethodDescription],
) -> ModelSpec:
    parameters, shape = sources[0].parameters, facts.shape
    size = size_class(parameters)
    return ModelSpec(
        model=model,
        path=facts.path,
        digest=facts.digest,
        parameters=parameters,
        bytes_per_parameter=facts.weight_bytes / parameters,
        bytes_by_dtype=bytes_by_dtype(parameters, shape),
        dtype=facts.dtype,
        family=shape.family,
        architecture=facts.architecture,
        layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocabulary=shape.vocabulary,
        context_length=shape.context,
        tied_embeddings=shape.tied,
        experts=shape.experts,
        gated=facts.gated,
        size_class=size,
        preferred_methods=preferred_methods(size, methods),
        memory=memory_requirements(parameters, facts.weight_bytes, shape, methods),
        sources=sources,
        warnings=warnings,
    )
