"""The embedded demo family: its corpus, training and export scripts, and the models."""
