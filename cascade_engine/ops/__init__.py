"""The only door to native code: one function per operation, one implementation per backend."""

from cascade_engine._C import CacheLayer, NgramTable, Sampler
from cascade_engine.ops.cpu import CpuBackend, LinearWeight, Recorder, activation_dtype
from cascade_engine.ops.reference import ReferenceOps

__all__ = [
    "CacheLayer",
    "CpuBackend",
    "LinearWeight",
    "NgramTable",
    "Recorder",
    "ReferenceOps",
    "Sampler",
    "activation_dtype",
]
