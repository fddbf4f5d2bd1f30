"""Drafts trained on a target's own answers: `python -m cascade_engine.distill`."""
