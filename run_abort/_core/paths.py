"""How the ID of a run is written in the path of a URL."""

from __future__ import annotations

from urllib.parse import quote, unquote

from .ids import clean_id


class RunIdConverter:
    """Any run ID in a path; a converter of Django's.

    It is quoted once more than a path is, because browsers and proxies rewrite what looks like
    ``..`` or ``//``, and would so make one run's address another's.
    """

    regex = ".+"

    def to_python(self, value: str) -> str:
        """The ID.

        :raises ValueError: if it is not valid, so that the path does not match.
        """
        return clean_id(unquote(value, errors="strict"))

    def to_url(self, value: object) -> str:
        """The ID in a path.

        :param value: what names a run, as for ``abort_run``.
        :raises TypeError: and ``ValueError``, if it names none.
        """
        quoted = quote(clean_id(value), safe=":")
        return quoted.replace(".", "%2E") if quoted in {".", ".."} else quoted
