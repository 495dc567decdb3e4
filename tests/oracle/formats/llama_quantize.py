"""Quantises GGUF files with llama.cpp's own quantiser, and scores them with its own engine.

One job: the calls of llama.cpp's C interface. The library is that of npm's package
`@node-llama-cpp/linux-x64` (built for an old C library); its declarations are those of
PyPI's `llama-cpp-py-sync`. LLAMA_CPP_LIBS names the folder that holds the library.
"""

import os
from pathlib import Path

import cffi
import numpy as np
from llama_cpp_py_sync import _cffi_bindings

FOLDER = Path(os.environ.get("LLAMA_CPP_LIBS") or Path(__file__).parents[3] / ".cache/oracle/llama-cpp")

ffi = _cffi_bindings.ffi
_library = None


def library():
    """Returns the loaded library, which then says nothing on its own."""
    global _library
    if _library is None:
        backends = cffi.FFI()
        backends.cdef("void ggml_backend_load_all_from_path(const char *);")
        backends.dlopen(str(next(FOLDER.glob("libggml.*so*")))).ggml_backend_load_all_from_path(str(FOLDER).encode())
        _library = ffi.dlopen(str(next(FOLDER.glob("libllama.*so*"))))
        _library.llama_log_set(_quiet, ffi.NULL)
        _library.llama_backend_init()
    return _library


@ffi.callback("void(enum ggml_log_level, const char *, void *)")
def _quiet(_level, _text, _data):
    """Takes a line of llama.cpp's log and drops it."""


def quantise(source, target, kind, pure=False):
    """Quantises a file; `kind` is a name such as Q4_K_M. Mixes are llama.cpp's own unless `pure`."""
    lib = library()
    parameters = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    parameters.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.nthread = 1
    parameters.allow_requantize = True
    parameters.pure = pure
    failed = lib.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)
    if failed:
        raise RuntimeError(f"llama.cpp cannot make {target} of {source}: {failed}")


def logits(path, ids):
    """Returns llama.cpp's own logits [len(ids), vocabulary] of a file."""
    lib = library()
    settings = lib.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), settings)
    assert model != ffi.NULL, path
    options = lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = max(len(ids), 64)
    options.n_threads = options.n_threads_batch = 1
    context = lib.llama_init_from_model(model, options)
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert lib.llama_decode(context, batch) == 0
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rows = [np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context, i), 4 * width), np.float32) for i in range(len(ids))]
    rows = np.stack(rows).copy()
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(model)
    return rows


def tokens(path, text, special=True):
    """Returns llama.cpp's own tokens of a text, with a first token where the file asks for one."""
    lib = library()
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), settings)
    room = ffi.new("llama_token[]", len(text.encode()) + 8)
    raw = text.encode()
    count = lib.llama_tokenize(lib.llama_model_get_vocab(model), raw, len(raw), room, len(room), True, special)
    lib.llama_model_free(model)
    return [room[i] for i in range(count)]
