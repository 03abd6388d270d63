"""One Python source file, read in all the ways that the measures need."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self, TypeVar

LOOK_EVERY = 500  # items

T = TypeVar("T")
Look = Callable[[], object]


class Source(NamedTuple):
    """A file.

    :ivar look: to be called every few milliseconds; what it raises ends the measuring.
    """

    data: bytes
    tree: ast.Module
    tokens: list[tokenize.TokenInfo]
    look: Look

    @classmethod
    def of(cls, data: bytes, look: Look) -> Self:
        """Parse and tokenise a file.

        :raises SyntaxError: or ValueError, RecursionError, if this Python cannot.
        """
        tree = ast.parse(data)
        look()
        tokens = looking(tokenize.tokenize(io.BytesIO(data).readline), look)
        return cls(data, tree, list(tokens), look)


def looking(items: Iterable[T], look: Look, *, every: int = LOOK_EVERY) -> Iterator[T]:
    """The items, with a look before every so many of them."""
    for index, item in enumerate(items):
        if not index % every:
            look()
        yield item
