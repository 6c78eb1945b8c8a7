"""llama.cpp's C interface as of build b11549: structures, their defaults, and the functions this package calls.

The structures change between builds and the library does not say which layout it has. It does return its own default
parameters, so these are compared field by field with the values of this build before anything is called with them.
Field names and order: ``include/llama.h`` of llama.cpp (https://github.com/ggml-org/llama.cpp).
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import os
from collections import deque
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from agentic_compression.errors import UnavailableError

__all__ = [
    "FLASH_ATTENTION_OFF",
    "LOAD_MODES",
    "POOLING_MEAN",
    "TYPE_F32",
    "Batch",
    "ContextParams",
    "ModelParams",
    "clear_errors",
    "error_log",
    "load_library",
]

SUPPORTED = "xllamacpp 2026.10.11549 (llama.cpp b11549)"
LOAD_MODES = {"read": 0, "mmap": 1}
"""``llama_load_mode``: read the file into memory, or map it and let pages come as they are touched."""
TYPE_F32 = 0
POOLING_MEAN = 1
FLASH_ATTENTION_OFF = 0
_ERROR_LEVEL = 4
_MESSAGES: deque[str] = deque(maxlen=8)
LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class ModelParams(ctypes.Structure):
    """``llama_model_params``."""

    _fields_: ClassVar[Any] = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("_beyond", ctypes.c_uint8 * 64),
    ]


class ContextParams(ctypes.Structure):
    """``llama_context_params``."""

    _fields_: ClassVar[Any] = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
        ("_beyond", ctypes.c_uint8 * 64),
    ]


class Batch(ctypes.Structure):
    """``llama_batch``: one entry a token in every array."""

    _fields_: ClassVar[Any] = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


# ``_beyond`` is no field of llama.cpp's: it gives a longer structure of another build room to be returned into, so
# that reading the defaults is safe before they have been compared.
_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "use_extra_bufts": True,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
}

_TOKENS = POINTER(c_int32)
_MODEL, _CONTEXT, _VOCAB, _MEMORY = c_void_p, c_void_p, c_void_p, c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_version": (c_char_p, ()),
    "llama_backend_init": (None, ()),
    "llama_supports_gpu_offload": (c_bool, ()),
    "llama_log_set": (None, (LogCallback, c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (_MODEL, (c_char_p, ModelParams)),
    "llama_model_free": (None, (_MODEL,)),
    "llama_model_get_vocab": (_VOCAB, (_MODEL,)),
    "llama_model_n_ctx_train": (c_int32, (_MODEL,)),
    "llama_model_n_embd_out": (c_int32, (_MODEL,)),
    "llama_model_n_params": (ctypes.c_uint64, (_MODEL,)),
    "llama_model_size": (ctypes.c_uint64, (_MODEL,)),
    "llama_model_desc": (c_int32, (_MODEL, c_char_p, c_size_t)),
    "llama_model_meta_val_str": (c_int32, (_MODEL, c_char_p, c_char_p, c_size_t)),
    "llama_model_has_encoder": (c_bool, (_MODEL,)),
    "llama_vocab_n_tokens": (c_int32, (_VOCAB,)),
    "llama_vocab_bos": (c_int32, (_VOCAB,)),
    "llama_vocab_eos": (c_int32, (_VOCAB,)),
    "llama_vocab_is_eog": (c_bool, (_VOCAB, c_int32)),
    "llama_vocab_get_add_bos": (c_bool, (_VOCAB,)),
    "llama_tokenize": (c_int32, (_VOCAB, c_char_p, c_int32, _TOKENS, c_int32, c_bool, c_bool)),
    "llama_detokenize": (c_int32, (_VOCAB, _TOKENS, c_int32, c_char_p, c_int32, c_bool, c_bool)),
    "llama_init_from_model": (_CONTEXT, (_MODEL, ContextParams)),
    "llama_free": (None, (_CONTEXT,)),
    "llama_n_ctx": (c_uint32, (_CONTEXT,)),
    "llama_n_batch": (c_uint32, (_CONTEXT,)),
    "llama_decode": (c_int32, (_CONTEXT, Batch)),
    "llama_get_logits": (POINTER(c_float), (_CONTEXT,)),
    "llama_get_embeddings_seq": (POINTER(c_float), (_CONTEXT, c_int32)),
    "llama_get_memory": (_MEMORY, (_CONTEXT,)),
    "llama_memory_clear": (None, (_MEMORY, c_bool)),
    "llama_memory_seq_cp": (None, (_MEMORY, c_int32, c_int32, c_int32, c_int32)),
    "llama_memory_seq_rm": (c_bool, (_MEMORY, c_int32, c_int32, c_int32)),
}


def _declare(library: ctypes.CDLL) -> None:
    """Give every function its argument and result types.

    Raises:
        UnavailableError: when the library does not export one of them.
    """
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise UnavailableError(
                f"the llama.cpp library must export {name}, got none; install {SUPPORTED}"
            ) from error
        function.restype, function.argtypes = result, list(arguments)


def _verify_layout(library: ctypes.CDLL) -> None:
    """Compare the library's default parameters with those of the supported build.

    Raises:
        UnavailableError: at the first field that differs.
    """
    for params, expected in (
        (library.llama_model_default_params(), _MODEL_DEFAULTS),
        (library.llama_context_default_params(), _CONTEXT_DEFAULTS),
    ):
        for field in type(params)._fields_:
            name = field[0]
            if name == "_beyond":
                continue
            got, wanted = getattr(params, name) or 0, expected.get(name, 0)
            if got != wanted:
                raise UnavailableError(
                    f"llama.cpp's {type(params).__name__}.{name} must be {wanted} by default, got {got}: "
                    f"this build has another layout; install {SUPPORTED}"
                )


def error_log() -> str:
    """What llama.cpp logged as errors since :func:`clear_errors`."""
    return "; ".join(dict.fromkeys(_MESSAGES)) or "no reason"


def clear_errors() -> None:
    """Forget the errors logged so far."""
    _MESSAGES.clear()


@LogCallback
def _keep_errors(level: int, text: bytes, _: Any) -> None:
    """Receives llama.cpp's log instead of the terminal and keeps the errors for exceptions."""
    if level == _ERROR_LEVEL and (line := text.decode(errors="replace").strip()):
        _MESSAGES.append(line)


@cache
def load_library() -> Any:
    """The compiled library, loaded by its path (the package's own import is not needed), checked and quiet.

    Raises:
        UnavailableError: when it is not installed or is another build.
    """
    spec = importlib.util.find_spec("xllamacpp")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*.so"))]
    if not files:
        raise UnavailableError(f"llama.cpp is not installed; install {SUPPORTED}")
    try:
        library = ctypes.CDLL(str(files[0]))
    except OSError as error:
        raise UnavailableError(f"{files[0]} must load as a library, got {error}; install {SUPPORTED}") from error
    _declare(library)
    _verify_layout(library)
    # A failed assertion ends the process; llama.cpp would first start a debugger to print where, for some seconds.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    library.llama_log_set(_keep_errors, None)
    library.llama_backend_init()
    # The callback is gone once the interpreter's modules are; what is logged after that must not call it.
    atexit.register(library.llama_log_set, LogCallback(), None)
    return library
