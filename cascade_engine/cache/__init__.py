"""The paged key/value cache."""

from cascade_engine.cache.pages import PAGE_TOKENS, PageTable, pages_for
from cascade_engine.cache.storage import KVStorage, bytes_per_token

__all__ = ["PAGE_TOKENS", "KVStorage", "PageTable", "bytes_per_token", "pages_for"]
