"""Imports of packages that are optional."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(package: str, extra: str) -> Iterator[None]:
    """Say what to install if an import in this block fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"run_abort.contrib.{extra} needs {package}: pip install 'django-run-abort[{extra}]'"
        ) from error
