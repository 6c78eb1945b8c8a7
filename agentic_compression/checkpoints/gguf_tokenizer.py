"""A Hugging Face tokenizer as GGUF metadata, and proof that llama.cpp reads it the same way.

llama.cpp has code of its own for every kind of tokenizer and picks it by a name in the file. No rule tells which name
fits a ``tokenizer.json``, so the names are tried: a file with the vocabulary alone is written for each and llama.cpp's
token ids are compared with the tokenizer's on many texts. A tokenizer that no name reproduces is refused, because a
model that is fed other tokens answers worse without a word.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentic_compression.checkpoints.gguf_probes import ProbeResult, compare_tokens
from agentic_compression.errors import CompressionError

__all__ = ["TokenizerForm", "fitting_form", "write_tokenizer"]

_PRE_TOKENIZERS = (
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "smollm",
    "tekken",
    "qwen35",
    "smaug-bpe",
    "gpt-4o",
    "llama4",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "chatglm-bpe",
    "seed-coder",
    "superbpe",
    "minicpm5",
    "bloom",
    "viking",
)
"""Values of ``tokenizer.ggml.pre``, one for each behaviour that llama.cpp has for models of these architectures."""
_TAKE_WHOLE_WORDS = ("llama-bpe", "tekken", "chatglm-bpe")
"""Those with which a word of the vocabulary is one token whether or not merges lead there."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # llama_token_type in llama.h
_NO_MERGE_SCORE = -1e6
_OWN_TOKENIZER = "use rtn or gptq, which keep the tokenizer as it is"


@dataclass(frozen=True)
class TokenizerForm:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        kind: ``gpt2`` is byte-level BPE, ``llama`` is SentencePiece's BPE with bytes for what it does not know.
        tokens: by id; ids that the tokenizer does not use have names of their own.
        token_types: ``llama_token_type`` by id.
        scores: by id, the higher the earlier a pair is merged; SentencePiece only.
        merges: ``left right`` in order; byte-level only.
        special: ids by their name in ``tokenizer.ggml.<name>_token_id``.
        adds: whether a text gets BOS in front and EOS behind.
        template: of chats; None when the tokenizer has none.
        variant: ``pre`` of a byte-level tokenizer, or whether SentencePiece puts a space in front of a text.
    """

    kind: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    special: dict[str, int]
    adds: tuple[bool, bool]
    template: str | None
    variant: str | bool


def fitting_form(tokenizer: Any, vocabulary: int, stops: Sequence[int], probes: Sequence[str]) -> TokenizerForm:
    """The form in which llama.cpp's tokenizer agrees with this one on every probe text.

    Args:
        tokenizer: a transformers tokenizer backed by ``tokenizer.json``.
        vocabulary: rows of the model's token embedding.
        stops: tokens that end a text, the generation config's; empty takes the tokenizer's EOS.
        probes: texts besides the built-in ones, see :func:`compare_tokens`.

    Raises:
        CompressionError: when it is of another kind, or every form disagrees somewhere; says the first text and ids.
    """
    nearest: ProbeResult | None = None
    written: TokenizerForm | None = None
    with tempfile.TemporaryDirectory(prefix="acf-gguf-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        for form in _forms(tokenizer, vocabulary, stops):
            if written is None or form.kind != "gpt2":
                _write_vocabulary(path, form)
            else:
                _change_variant(path, written, form)
            written = form
            result = compare_tokens(path, tokenizer, probes)
            if not result.disagreements:
                return form
            if nearest is None or len(result.disagreements) < len(nearest.disagreements):
                nearest = result
    assert nearest is not None
    raise CompressionError(f"no tokenizer of llama.cpp gives this tokenizer's ids; {nearest.problem}; {_OWN_TOKENIZER}")


def write_tokenizer(writer: Any, form: TokenizerForm) -> None:
    """Add the form's metadata to a ``GGUFWriter``."""
    writer.add_tokenizer_model(form.kind)
    writer.add_token_list(list(form.tokens))
    writer.add_token_types(list(form.token_types))
    if form.kind == "gpt2":
        writer.add_token_merges(list(form.merges) or [_impossible_merge(form.tokens)])
    else:
        writer.add_token_scores(list(form.scores))
        writer.add_add_space_prefix(bool(form.variant))
    for name, token in form.special.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.add_add_bos_token(form.adds[0])
    writer.add_add_eos_token(form.adds[1])
    if form.template is not None:
        writer.add_chat_template(form.template)
    writer.add_tokenizer_pre(_pre_tokenizer(form))  # the last, so that _change_variant finds it


def _pre_tokenizer(form: TokenizerForm) -> str:
    return form.variant if isinstance(form.variant, str) else "default"


def _impossible_merge(tokens: Sequence[str]) -> str:
    """A merge that never applies, for a tokenizer without merges: llama.cpp wants the list, GGUF no empty ones."""
    return f"{tokens[0]} {tokens[0]}"


def _write_vocabulary(path: Path, form: TokenizerForm) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    write_tokenizer(writer, form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _change_variant(path: Path, written: TokenizerForm, form: TokenizerForm) -> None:
    """Write another pre-tokenizer's name at the end of a vocabulary file: all else, megabytes of it, stays."""
    old, new = (_pre_tokenizer(each).encode() for each in (written, form))
    with path.open("r+b") as file:
        file.seek(-len(old) - 8, os.SEEK_END)  # a string is its length in 64 bits and its bytes
        file.truncate()
        file.write(struct.pack("<Q", len(new)) + new)


def _forms(tokenizer: Any, vocabulary: int, stops: Sequence[int]) -> Iterator[TokenizerForm]:
    """The forms to try, the likelier first; they differ in their variant alone."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompressionError(
            f"gguf needs a tokenizer with a tokenizer.json, got {type(tokenizer).__name__}; {_OWN_TOKENIZER}"
        )
    described = json.loads(backend.to_str())
    model = described["model"]
    byte_level = "ByteLevel" in json.dumps(described["pre_tokenizer"])
    bytes_known = all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256)) if model["type"] == "BPE" else False
    if model["type"] != "BPE" or not (byte_level or bytes_known):
        raise CompressionError(
            f"gguf writes byte-level BPE and SentencePiece BPE with bytes, got {model['type']} without either; "
            f"{_OWN_TOKENIZER}"
        )
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    tokens, token_types = _tokens(tokenizer, vocabulary, described["added_tokens"], byte_level)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    whole_words = bool(model.get("ignore_merges"))
    names = sorted(_PRE_TOKENIZERS, key=lambda name: (name in _TAKE_WHOLE_WORDS) != whole_words)
    variants: Sequence[str | bool] = names if byte_level else (True, False)
    form = TokenizerForm(
        kind="gpt2" if byte_level else "llama",
        tokens=tokens,
        token_types=token_types,
        scores=() if byte_level else tuple(-float(ranks[t]) if t in ranks else _NO_MERGE_SCORE for t in tokens),
        merges=tuple(" ".join(merge) for merge in merges) if byte_level else (),
        special=_special(tokenizer, stops),
        adds=_adds(tokenizer),
        template=_template(tokenizer),
        variant=variants[0],
    )
    yield from (replace(form, variant=variant) for variant in variants)


def _tokens(
    tokenizer: Any, vocabulary: int, added: Sequence[dict[str, Any]], byte_level: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type by id, as many as the model's embedding has rows."""
    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    if max(by_id) >= vocabulary:
        raise CompressionError(
            f"the model has {vocabulary} token embeddings, the tokenizer uses id {max(by_id)}; give the model's own one"
        )
    special = {token["id"]: bool(token["special"]) for token in added}
    tokens, types = [], []
    for index in range(vocabulary):
        text = by_id.get(index)
        tokens.append(f"[PAD{index}]" if text is None else text)
        if text is None:
            types.append(_UNUSED)
        elif index in special:
            unknown = text == tokenizer.unk_token and not byte_level
            types.append(_UNKNOWN if unknown else _CONTROL if special[index] else _USER_DEFINED)
        elif not byte_level and len(text) == 6 and text.startswith("<0x"):
            types.append(_BYTE)
        else:
            types.append(_NORMAL)
    return tuple(tokens), tuple(types)


def _special(tokenizer: Any, stops: Sequence[int]) -> dict[str, int]:
    """Ids of special tokens. Without them llama.cpp would take ordinary tokens for the end of a text."""
    ends = list(dict.fromkeys([*([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []), *stops]))
    if not ends:
        raise CompressionError("llama.cpp needs an end-of-text token, the tokenizer has none; set eos_token")
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else ends[0]
    found = {
        "bos": begin,
        "eos": ends[0],
        "eot": ends[1] if len(ends) > 1 else None,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {name: int(token) for name, token in found.items() if token is not None}


def _adds(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text gets BOS in front and EOS behind; anything else has no form in GGUF."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next((place for place in range(len(full)) if full[place : place + len(plain)] == plain), 0)
    before, after = full[:start], full[start + len(plain) :]
    if before not in ([], [tokenizer.bos_token_id]) or after not in ([], [tokenizer.eos_token_id]):
        raise CompressionError(
            f"gguf can put BOS before and EOS behind a text, the tokenizer puts {before} and {after}; {_OWN_TOKENIZER}"
        )
    return bool(before), bool(after)


def _template(tokenizer: Any) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None
