"""Tests keep no measured times, and go by none of earlier runs."""

import os

os.environ["CASCADE_CACHE"] = "none"
