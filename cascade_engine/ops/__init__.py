"""The only door to native code: one function per operation, one implementation per backend."""

from cascade_engine._C import (
    MAX_TREE_NODES,
    CacheLayer,
    DraftDistributions,
    Drafter,
    NgramTable,
    Sampler,
)
from cascade_engine.ops.bias import RelativeBias
from cascade_engine.ops.cpu import CpuBackend
from cascade_engine.ops.cpu_recorder import Recorder
from cascade_engine.ops.cuda import CudaBackend
from cascade_engine.ops.cuda_rejection import DeviceDistributions, RowRejection
from cascade_engine.ops.cuda_speculation import Ask, CudaSpeculation, Reviewed
from cascade_engine.ops.reference import ReferenceOps
from cascade_engine.ops.weights import LinearWeight, activation_dtype

__all__ = [
    "MAX_TREE_NODES",
    "Ask",
    "CacheLayer",
    "CpuBackend",
    "CudaBackend",
    "CudaSpeculation",
    "DeviceDistributions",
    "DraftDistributions",
    "Drafter",
    "LinearWeight",
    "NgramTable",
    "Recorder",
    "ReferenceOps",
    "RelativeBias",
    "Reviewed",
    "RowRejection",
    "Sampler",
    "activation_dtype",
]
