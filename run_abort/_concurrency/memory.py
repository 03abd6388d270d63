"""A bounded memory: what was there lately is recognised when it comes again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Final

REMEMBERED: Final = 50_000  # keys


class Memory:
    """The last keys that were added. Needs no lock: each step is one call of C code."""

    def __init__(self, keys: Iterable[Hashable] = ()) -> None:
        self._keys: OrderedDict[Hashable, object] = OrderedDict.fromkeys(keys)

    def add(self, key: Hashable) -> bool:
        """Remember the key; return whether it is new."""
        mine = object()
        if self._keys.setdefault(key, mine) is not mine:
            return False
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        return True

    def discard(self, key: Hashable) -> None:
        """Forget the key."""
        self._keys.pop(key, None)

    def copy(self) -> Memory:
        return Memory(self._keys.copy())
