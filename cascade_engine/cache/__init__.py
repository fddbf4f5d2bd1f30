"""The paged key/value cache."""

from cascade_engine.cache.leading import LeadingPages
from cascade_engine.cache.pages import PAGE_TOKENS, PageTable, pages_for
from cascade_engine.cache.prefixes import NO_TOKENS, extend_keys, prefix_key, tail_keys
from cascade_engine.cache.storage import KVStorage, bytes_per_token

__all__ = [
    "NO_TOKENS",
    "PAGE_TOKENS",
    "KVStorage",
    "LeadingPages",
    "PageTable",
    "bytes_per_token",
    "extend_keys",
    "pages_for",
    "prefix_key",
    "tail_keys",
]
