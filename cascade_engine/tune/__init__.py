"""Settings found for a task: `python -m cascade_engine.tune`."""
