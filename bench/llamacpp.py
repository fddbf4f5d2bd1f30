"""llama.cpp as a peer: the checkpoint's very tensors written as GGUF, run through its C interface.

Needs the `bench` extra (llama-cpp-python, gguf). Keys and values are kept in the dtype of the
weights (float16 beside Q8_0 weights, llama.cpp's own choice). Flash attention is off, because on
CPUs llama.cpp is faster without (bfloat16, 110M shape: by a tenth at 1 token, by 1.6 at 16 tokens).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.peers import MAX_STEP, PREFILL
from cascade_engine.errors import CascadeError, ConfigError
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import LlamaConfig, load_config

# Weights and cache as llama.cpp calls them. Its eight-bit weights are blocks of 32 with a scale.
GGUF_TYPES = {"bf16": ("BF16", "BF16"), "f32": ("F32", "F32"), "int8": ("Q8_0", "F16")}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR


class PeerUnavailable(CascadeError):
    """A peer that was asked for cannot run here."""


def require_extra() -> None:
    """Raises PeerUnavailable with the way out where the extra is not installed."""
    for name in ("llama_cpp", "gguf"):
        if importlib.util.find_spec(name) is None:
            raise PeerUnavailable(
                f"the llama.cpp peer needs the module {name}: pip install 'cascade_engine[bench]', "
                "or leave llamacpp out of --peers"
            )


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of a Hugging Face LLaMA checkpoint."""
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def interleave_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head as llama.cpp rotates them: pairs (2i, 2i + 1) where the checkpoint has
    (i, i + head_dim / 2)."""
    rows, cols = weight.shape
    return weight.view(heads, 2, rows // heads // 2, cols).transpose(1, 2).reshape(rows, cols)


def check_writable(config: LlamaConfig) -> None:
    """Raises ConfigError for what `write_gguf` does not write."""
    refused = {
        "rope type": config.rope.type if config.rope.type != "default" else None,
        "attention_bias": config.attention_bias or None,
        "mlp_bias": config.mlp_bias or None,
    }
    for what, value in refused.items():
        if value is not None:
            raise ConfigError(
                f"the llama.cpp peer is not written for {what} {value}: leave llamacpp out of "
                "--peers"
            )


def write_gguf(source: Path, path: Path, dtype: str) -> None:
    """Writes the checkpoint in `source` as a GGUF file without a vocabulary. Matrices get the type
    of `dtype` (bf16, f32, int8), norms float32. Raises ConfigError, CheckpointError."""
    import gguf

    config = load_config(source)
    check_writable(config)
    checkpoint = Checkpoint.open(source)
    checkpoint.expect(config.tensor_shapes(), config.tied_tensors())
    matrix_type = gguf.GGMLQuantizationType[GGUF_TYPES[dtype][0]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    for name in config.tensor_shapes():
        tensor = checkpoint.tensor(name).float()
        part = name.split(".")[-2]
        if part in heads:
            tensor = interleave_halves(tensor, heads[part])
        kind = matrix_type if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.contiguous().numpy(), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """One sequence of `context` random tokens in llama.cpp."""

    def __init__(self, path: Path, dtype: str, threads: int, context: int) -> None:
        import gguf
        import llama_cpp

        self._lib = llama_cpp
        log_errors_only()
        llama_cpp.llama_backend_init()
        weights, cache = GGUF_TYPES[dtype]
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise PeerUnavailable(f"llama.cpp does not load {path}: see its messages above")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(context + MAX_STEP, PREFILL)
        params.n_batch = params.n_ubatch = PREFILL
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = gguf.GGMLQuantizationType[cache].value
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise PeerUnavailable("llama.cpp makes no context: see its messages above")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batches: dict[tuple[int, int], Any] = {}
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.facts = {
            "version": llama_cpp.__version__,
            "weights": weights,
            "cache": cache,
            "flash_attention": False,
            "system": llama_cpp.llama_print_system_info().decode().strip(),
        }
        self.context = context
        self._tokens = torch.randint(0, self.vocab, (max(context + MAX_STEP, PREFILL),)).tolist()
        self._restore()

    def step(self, tokens: int) -> None:
        self._forget(self.context)
        self._run(self._own_batch(tokens, self.context, tokens))

    def prefill(self) -> None:
        self._forget(0)
        self._run(self._own_batch(PREFILL, 0, 1))
        self._forget(0)

    def logits(self, tokens: Sequence[int], wanted: int) -> torch.Tensor:
        self._forget(0)
        fed = len(tokens) - wanted
        self._feed(tokens[:fed])
        self._decode(tokens[fed:], fed, wanted)
        address = ctypes.cast(self._lib.llama_get_logits(self._context), ctypes.c_void_p).value
        memory = (ctypes.c_float * (wanted * self.vocab)).from_address(address)
        found = torch.frombuffer(memory, dtype=torch.float32).view(wanted, self.vocab).clone()
        self._restore()
        return found

    def close(self) -> None:
        for batch in self._batches.values():
            self._lib.llama_batch_free(batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _restore(self) -> None:
        self._forget(0)
        self._feed(self._tokens[: self.context])

    def _feed(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), PREFILL):
            self._decode(tokens[start : start + PREFILL], start, 1)

    def _forget(self, tokens: int) -> None:
        """Drops the cache behind the first `tokens` tokens."""
        self._lib.llama_memory_seq_rm(self._memory, 0, tokens, -1)

    def _decode(self, tokens: Sequence[int], position: int, wanted: int) -> None:
        """One pass over at most PREFILL tokens, with logits for the last `wanted`."""
        batch = self._new_batch(tokens, position, wanted)
        try:
            self._run(batch)
        finally:
            self._lib.llama_batch_free(batch)

    def _own_batch(self, tokens: int, position: int, wanted: int) -> Any:
        """A batch of this peer's own tokens, made once: filling it is not what is timed."""
        key = (tokens, position)
        if key not in self._batches:
            self._batches[key] = self._new_batch(self._tokens[:tokens], position, wanted)
        return self._batches[key]

    def _new_batch(self, tokens: Sequence[int], position: int, wanted: int) -> Any:
        batch = self._lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= len(tokens) - wanted
        return batch

    def _run(self, batch: Any) -> None:
        code = self._lib.llama_decode(self._context, batch)
        if code != 0:
            raise PeerUnavailable(f"llama_decode of {batch.n_tokens} tokens returns {code}")
        self._lib.llama_synchronize(self._context)


@functools.cache
def log_errors_only() -> Any:
    """The library's messages, errors alone. Cached to stay alive: the library holds its address."""
    import llama_cpp

    callback = llama_cpp.llama_log_callback(_print_errors)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def _print_errors(level: int, text: bytes, _: Any) -> None:
    if level == ERROR_LEVEL:
        print(text.decode(errors="replace"), end="")
