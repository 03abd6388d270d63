"""What is measured in a source file: numbers that add up over files."""

from __future__ import annotations

import ast
import bz2
import difflib
import dis
import lzma
import tokenize
import zlib
from collections import Counter
from pathlib import Path
from types import CodeType

from .clones import Clones
from .source import Look, Source, looking

FINGERPRINT = 25  # tokens that have to be the same to count as repeated
CLOSE = 0.85  # from 0 to 1: from where on two names count as near misses

_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.IfExp, ast.ExceptHandler, ast.match_case)
_SILENT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines(source: Source) -> Counter[str]:
    """Lines, by what is on them."""
    kinds: dict[int, set[int]] = {}
    for token in source.tokens:
        kinds.setdefault(token.start[0], set()).add(token.type)
    comments = sum(tokenize.COMMENT in found for found in kinds.values())
    blank = sum(found <= _SILENT for found in kinds.values())
    return Counter(
        lines=source.data.count(b"\n"), comments=comments, blank=blank, tokens=len(source.tokens)
    )


def structure(source: Source) -> Counter[str]:
    """Functions, classes, branches, and how much is documented and annotated."""
    totals: Counter[str] = Counter()
    for node in looking(ast.walk(source.tree), source.look):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            totals["classes" if isinstance(node, ast.ClassDef) else "functions"] += 1
            totals["documented"] += ast.get_docstring(node, clean=False) is not None
        elif isinstance(node, ast.arg):
            totals["arguments"] += 1
            totals["annotated"] += node.annotation is not None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            totals["imports"] += len(node.names)
        elif isinstance(node, ast.BoolOp):
            totals["branches"] += len(node.values) - 1
        else:
            totals["branches"] += isinstance(node, _BRANCHES)
    return totals


def bytecode(source: Source) -> Counter[str]:
    """Instructions, and how many of them are calls and jumps."""
    totals: Counter[str] = Counter()
    codes: list[CodeType] = [compile(source.tree, "<measured>", "exec", dont_inherit=True)]
    while codes:
        code = codes.pop()
        codes.extend(const for const in code.co_consts if isinstance(const, CodeType))
        for instruction in looking(dis.get_instructions(code), source.look):
            totals["instructions"] += 1
            totals["calls"] += "CALL" in instruction.opname
            totals["jumps"] += "JUMP" in instruction.opname
    return totals


def round_trip(source: Source) -> Counter[str]:
    """Whether the source means the same after ``ast.unparse``."""
    text = ast.unparse(source.tree)
    source.look()
    tree = ast.parse(text)
    pairs = zip(source.tree.body, tree.body, strict=False)
    same = len(source.tree.body) == len(tree.body) and all(
        ast.dump(one) == ast.dump(other) for one, other in looking(pairs, source.look, every=1)
    )
    return Counter(unparsed=len(text), faithful=int(same))


def compression(source: Source) -> Counter[str]:
    """How small the file gets: what it says anew."""
    totals: Counter[str] = Counter()
    for name, compress in (("zlib", zlib.compress), ("bz2", bz2.compress), ("lzma", lzma.compress)):
        totals[name] = len(compress(source.data))
        source.look()
    return totals


def repetition(source: Source) -> Counter[str]:
    """How much of the file occurs in it more than once, whatever the names and numbers are."""
    shape = [
        token.type
        if token.type in {tokenize.NAME, tokenize.NUMBER, tokenize.STRING}
        else token.string
        for token in source.tokens
        if token.type not in _SILENT and token.type != tokenize.COMMENT
    ]
    windows = range(len(shape) - FINGERPRINT + 1)
    seen = Counter(
        hash(tuple(shape[start : start + FINGERPRINT])) for start in looking(windows, source.look)
    )
    repeated = sum(count for count in seen.values() if count > 1)
    return Counter(windows=len(windows), repeated=repeated)


def near_misses(source: Source) -> Counter[str]:
    """Names that are so alike that one may be a typing error of another."""
    names = sorted({node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)})
    found = 0
    for index, name in enumerate(looking(names, source.look, every=1)):
        others = names[index + 1 :]
        found += len(difflib.get_close_matches(name, others, n=3, cutoff=CLOSE))
    return Counter(names=len(names), near_misses=found)


_PARTS = (lines, structure, bytecode, round_trip, compression, repetition, near_misses)


class Measures:
    """Measures one file after the other, and compares each with those before it."""

    def __init__(self) -> None:
        self._clones = Clones()

    def of_file(self, path: Path, look: Look) -> Counter[str]:
        """Every measure of the file; none if it is not there any more."""
        try:
            data = path.read_bytes()
        except OSError:
            return Counter()
        return self.of(data, look)

    def of(self, data: bytes, look: Look) -> Counter[str]:
        """Every measure of a file."""
        totals = Counter(files=1, bytes=len(data))
        try:
            source = Source.of(data, look)
            for part in (*_PARTS, self._clones):
                look()
                totals.update(part(source))
        except (SyntaxError, ValueError, RecursionError):
            totals["unparsable"] += 1  # test data of other parsers, or older Python
        return totals
