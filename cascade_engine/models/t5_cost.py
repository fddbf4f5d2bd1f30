"""What a T5 costs, counted from its configuration."""

from __future__ import annotations

import math

import torch

from cascade_engine.models.cost import PackedBytes, PassCost
from cascade_engine.models.t5_config import T5Config
from cascade_engine.ops import RelativeBias, activation_dtype


class T5Cost:
    """Counts for one model whose matrices are of one dtype, as ModelCost has them; `decode` is the
    decoder's pass."""

    def __init__(self, config: T5Config, dtype: torch.dtype, packed_bytes: PackedBytes) -> None:
        self.config = config
        self.dtype = dtype
        self.parameters = sum(math.prod(shape) for shape in config.tensor_shapes().values())
        """Trained numbers, a tied head counted once."""
        hidden, width = config.hidden_size, config.attention_width
        inner = config.intermediate_size * (2 if config.gated else 1)
        attention = [(3 * width, hidden), (hidden, width)]
        feed_forward = [(inner, hidden), (hidden, config.intermediate_size)]
        encoder = [*attention, *feed_forward] * config.num_encoder_layers
        cross = [(2 * width, hidden)] * config.num_layers
        decoder = [*attention, (width, hidden), (hidden, width), *feed_forward] * config.num_layers
        head = (config.vocab_size, hidden)
        self._decoder = [*decoder, head]
        self._encoder = [*encoder, *cross]
        bias = config.num_heads * (2 * (config.max_distance + RelativeBias.MARGIN) + 1)
        norms = hidden * (3 * config.num_layers + 1), hidden * (2 * config.num_encoder_layers + 1)
        streams = [
            sum(packed_bytes(n, k, dtype) for n, k in matrices) + 4 * (norm + bias)
            for matrices, norm in zip((self._decoder, self._encoder), norms, strict=True)
        ]
        self._decoder_bytes, self._encoder_bytes = streams
        activation = activation_dtype(dtype)
        table_dtype = dtype if config.tie_word_embeddings else activation
        self._table_row = hidden * table_dtype.itemsize
        table = 0 if config.tie_word_embeddings else config.vocab_size * self._table_row
        self.weight_bytes = sum(streams) + table
        """As loaded: matrices packed, vectors and biases in float32."""
        self.cache_bytes_per_token = 2 * config.num_layers * width * activation.itemsize

    def decode(self, tokens: int, cached: int) -> PassCost:
        """A pass of the decoder over `tokens` new tokens of one row, each with logits, behind
        `cached` others, encoder input among them: a token sees each of these in one of the two
        attentions of a layer."""
        positions = sum(cached + i + 1 for i in range(tokens))
        attention = 2 * self.config.num_layers * self.config.attention_width * positions
        cache = (cached + tokens) * self.cache_bytes_per_token
        read = self._decoder_bytes + cache + tokens * self._table_row
        return PassCost(tokens * sum(n * k for n, k in self._decoder) + attention, read)

    def encode(self, tokens: int) -> PassCost:
        """The encoder's pass over an input of `tokens` tokens, the decoder's cross-attention keys
        and values included."""
        config = self.config
        attention = 2 * config.num_encoder_layers * config.attention_width * tokens**2
        written = tokens * (self.cache_bytes_per_token + self._table_row)
        linear = tokens * sum(n * k for n, k in self._encoder)
        return PassCost(linear + attention, self._encoder_bytes + written)
