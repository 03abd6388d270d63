"""Functions that may be copies of each other."""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter, deque
from collections.abc import Iterator

from .source import Look, Source, looking

ALIKE = 0.8  # from 0 to 1: from where on two functions count as copies
COMPARED = 1500  # functions, with which each one is compared
WORDS = range(20, 500)  # of a function that is compared

_WORD = re.compile(r"\w+|\S")


class Clones:
    """A measure: functions that are much like one of the last :data:`COMPARED` before them."""

    def __init__(self) -> None:
        self._recent: deque[list[str]] = deque(maxlen=COMPARED)

    def __call__(self, source: Source) -> Counter[str]:
        totals: Counter[str] = Counter()
        for words in _functions(source):
            totals["compared"] += 1
            totals["clones"] += self._is_among_recent(words, source.look)
            self._recent.append(words)
        return totals

    def _is_among_recent(self, words: list[str], look: Look) -> bool:
        matcher = difflib.SequenceMatcher(None, "", words, autojunk=False)
        for other in looking(self._recent, look, every=10):
            matcher.set_seq1(other)
            if (
                matcher.real_quick_ratio() > ALIKE
                and matcher.quick_ratio() > ALIKE
                and matcher.ratio() > ALIKE
            ):
                return True
        return False


def _functions(source: Source) -> Iterator[list[str]]:
    text = source.data.decode(errors="replace").split("\n")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = _WORD.findall("\n".join(text[node.lineno - 1 : node.end_lineno]))
            if len(words) in WORDS:
                yield words
