"""Triton kernels, one operation a file; installed as cascade_engine.kernels."""
