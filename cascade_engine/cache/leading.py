"""Pages of a level whose layers are the first ones of another level's."""

from __future__ import annotations

from collections.abc import Callable

from cascade_engine.cache.pages import PageTable


class LeadingLengths:
    """Tokens of each row that are cached in the leading layers: those that the level has fed, or
    that the owner of the pages has, whichever are more."""

    def __init__(self, owner: list[int], own: list[int]) -> None:
        self._owner, self._own = owner, own

    def __getitem__(self, row: int) -> int:
        return max(self._owner[row], self._own[row])

    def __setitem__(self, row: int, tokens: int) -> None:
        self._own[row] = tokens


class LeadingPages:
    """Another level's pages, with a length of each row that is never less than the owner's.

    What the owner has cached of a row is cached for this level too. What this level writes behind
    that, the owner writes again when it gets there, with the same bits. So all writes go behind the
    owner's length, and what holds for the owner's holds for them: shared pages are copied first,
    published ones leave the index. Sharing, publishing and evicting are the owner's alone.
    """

    def __init__(self, owner: PageTable) -> None:
        self._owner = owner
        self._own = owner.lead()
        self.length = LeadingLengths(owner.length, self._own)
        self.block_table = owner.block_table
        self.pages = owner.pages

    @property
    def free_pages(self) -> int:
        return self._owner.free_pages

    @property
    def available_pages(self) -> int:
        return self._owner.available_pages

    def missing(self, row: int, tokens: int) -> int:
        """As the owner's."""
        return self._owner.missing(row, tokens)

    def reserve(self, row: int, tokens: int, copy_page: Callable[[int, int], None]) -> None:
        """As the owner's."""
        self._owner.reserve(row, tokens, copy_page)

    def truncate(self, row: int, tokens: int) -> None:
        """At most `tokens` tokens stay cached here, as far as the owner has not cached more."""
        self._own[row] = min(self._own[row], tokens)
        self._owner.truncate(row, self._owner.length[row])

    def check_integrity(self) -> None:
        """As the owner's."""
        self._owner.check_integrity()
