"""Cascade speculative decoding for LLaMA and T5 models: faster, and not one token changes."""

from cascade_engine.build_info import build_info, require_native

require_native()

from cascade_engine.engine import Engine, Generation, Piece, StepOutput
from cascade_engine.levels import Drafter, DraftRequest, DraftTree, RecurrentDrafter
from cascade_engine.params import SamplingParams
from cascade_engine.policy import AutoCascade, FixedCascade, PlainDecoding
from cascade_engine.serve import AsyncEngine, AsyncStream

__version__ = "0.1.0"

__all__ = [
    "AsyncEngine",
    "AsyncStream",
    "AutoCascade",
    "DraftRequest",
    "DraftTree",
    "Drafter",
    "Engine",
    "FixedCascade",
    "Generation",
    "Piece",
    "PlainDecoding",
    "RecurrentDrafter",
    "SamplingParams",
    "StepOutput",
    "build_info",
]
