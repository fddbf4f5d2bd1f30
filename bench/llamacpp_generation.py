"""Whole answers by llama.cpp, on the checkpoint's very tensors written as GGUF (see llamacpp.py).

Plain generation runs a whole group as one batch through the C interface: one `llama_decode` a step,
the most likely token of each sequence. Drafting goes through llama-cpp-python's own interface
(`Llama(draft_model=...)`), which takes one sequence; a group is answered one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from bench.generation import Answers, Prompts
from bench.llamacpp import GGUF_TYPES, PeerUnavailable, log_errors_only
from bench.peers import PREFILL

DRAFT_TOKENS = 8
LOOKUP_TOKENS = 10


class Batched:
    """Greedy generation of up to `rows` sequences of `context` tokens."""

    def __init__(
        self, path: Path, dtype: str, threads: int, rows: int, context: int, limit: int,
        stops: Sequence[int],
    ) -> None:  # fmt: skip
        log_errors_only()
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise PeerUnavailable(f"llama.cpp does not load {path}: see its messages above")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = rows * context, rows
        params.n_batch = params.n_ubatch = PREFILL
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = gguf.GGMLQuantizationType[GGUF_TYPES[dtype][1]].value
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise PeerUnavailable("llama.cpp makes no context: see its messages above")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(PREFILL, 0, 1)
        self.limit, self._stops = limit, set(stops)

    def __call__(self, prompts: Prompts) -> Answers:
        answers: list[list[int]] = []
        for sequence, prompt in enumerate(prompts):
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            answers.append([self._prefill(sequence, prompt)])
        running = self._running(answers)
        while running:
            fed = [
                (i, len(prompts[i]) + len(answers[i]) - 1, answers[i][-1], True) for i in running
            ]
            for i, token in zip(running, self._decode(fed), strict=True):
                answers[i].append(token)
            running = self._running(answers)
        return Answers(answers, sum(map(len, answers)))

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _running(self, answers: Sequence[list[int]]) -> list[int]:
        return [
            i
            for i, answer in enumerate(answers)
            if answer[-1] not in self._stops and len(answer) < self.limit
        ]

    def _prefill(self, sequence: int, prompt: list[int]) -> int:
        """The first token behind a prompt."""
        last = len(prompt) - 1
        found: list[int] = []
        for start in range(0, len(prompt), PREFILL):
            part = enumerate(prompt[start : start + PREFILL], start)
            found = self._decode([(sequence, i, token, i == last) for i, token in part])
        return found[0]

    def _decode(self, fed: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """One pass over (sequence, position, token, wanted); the likeliest token behind each wanted
        one."""
        batch = self._batch
        batch.n_tokens = len(fed)
        for i, (sequence, position, token, wanted) in enumerate(fed):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        code = llama_cpp.llama_decode(self._context, batch)
        if code != 0:
            raise PeerUnavailable(f"llama_decode of {len(fed)} tokens returns {code}")
        count = sum(wanted for *_, wanted in fed)
        address = ctypes.cast(llama_cpp.llama_get_logits(self._context), ctypes.c_void_p).value
        memory = (ctypes.c_float * (count * self._vocab)).from_address(address)
        logits = torch.frombuffer(memory, dtype=torch.float32).view(count, self._vocab)
        return [int(token) for token in logits.argmax(-1)]


class DraftModel(LlamaDraftModel):
    """A second model that drafts greedily for llama-cpp-python's `Llama`."""

    def __init__(self, model: llama_cpp.Llama, tokens: int) -> None:
        self._model, self._tokens = model, tokens

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        model = self._model
        known = min(model.n_tokens, len(input_ids) - 1)
        differing = np.nonzero(model.input_ids[:known] != input_ids[:known])[0]
        model.n_tokens = int(differing[0]) if len(differing) else known
        model.eval(input_ids[model.n_tokens :].tolist())
        drafted: list[int] = []
        room = min(self._tokens, model.n_ctx() - model.n_tokens)
        while len(drafted) < room:
            if drafted:
                model.eval(drafted[-1:])
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            drafted.append(int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax()))
        return np.array(drafted, dtype=np.intc)


class Drafting:
    """Greedy generation by llama-cpp-python with a draft model, or prompt lookup without one."""

    def __init__(
        self, path: Path, draft: Path | None, dtype: str, threads: int, context: int, limit: int,
        stops: Sequence[int],
    ) -> None:  # fmt: skip
        cache = gguf.GGMLQuantizationType[GGUF_TYPES[dtype][1]].value
        options: dict[str, Any] = {
            "n_ctx": context,
            "n_batch": PREFILL,
            "n_threads": threads,
            "n_threads_batch": threads,
            "type_k": cache,
            "type_v": cache,
            "no_perf": True,
            "verbose": False,
        }
        if draft is None:
            drafter: LlamaDraftModel = LlamaPromptLookupDecoding(num_pred_tokens=LOOKUP_TOKENS)
        else:
            second = llama_cpp.Llama(model_path=str(draft), **options)
            drafter = DraftModel(second, DRAFT_TOKENS)
        self._model = llama_cpp.Llama(model_path=str(path), draft_model=drafter, **options)
        self._eval, self._passes = self._model.eval, 0
        self._model.eval = self._counted
        self.limit, self._stops = limit, set(stops)

    def __call__(self, prompts: Prompts) -> Answers:
        before = self._passes
        return Answers([self._answer(prompt) for prompt in prompts], self._passes - before)

    def _counted(self, tokens: Sequence[int]) -> None:
        self._passes += 1
        self._eval(tokens)

    def _answer(self, prompt: list[int]) -> list[int]:
        self._model.reset()  # no prompt is cached from an earlier answer, as in the other cases
        answer: list[int] = []
        for token in self._model.generate(prompt, top_k=1, temp=0.0):
            answer.append(token)
            if token in self._stops or len(answer) >= self.limit:
                break
        return answer
