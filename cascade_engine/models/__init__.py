"""Models: configurations, checkpoints and forward passes. No globals, no cache ownership."""
