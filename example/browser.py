"""A browser without a screen and without JavaScript: pages, forms, cookies."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from http.client import HTTPResponse
from http.cookiejar import CookieJar
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import HTTPCookieProcessor, ProxyHandler, Request, build_opener

TIMEOUT = 15.0  # seconds


class Form(NamedTuple):
    """A form of a page, with what is filled in."""

    action: str
    fields: dict[str, str]


class Page(NamedTuple):
    """An answer, after all redirects."""

    url: str
    status: int
    html: str

    def json(self) -> Any:
        """What it says, for programs."""
        return json.loads(self.html)

    @property
    def forms(self) -> list[Form]:
        finder = _FormFinder(self.url)
        finder.feed(self.html)
        return finder.forms

    @property
    def text(self) -> str:
        """What a person reads, in one line."""
        reader = _TextReader()
        reader.feed(self.html)
        return " ".join(" ".join(reader.texts).split())


class Browser:
    """Visits the pages of one site."""

    def __init__(self, site: str) -> None:
        self._site = site
        # A proxy that the environment names is not for addresses of this machine.
        self._opener = build_opener(ProxyHandler({}), HTTPCookieProcessor(CookieJar()))

    def visit(self, path: str) -> Page:
        """Follow a link."""
        return self._open(Request(urljoin(self._site, path)))

    def stream(self, path: str) -> HTTPResponse:
        """Follow a link to a page that comes bit by bit; to be closed by the caller."""
        response: HTTPResponse = self._opener.open(urljoin(self._site, path), timeout=TIMEOUT)
        return response

    def submit(self, page: Page, path: str, **fields: str) -> Page:
        """Fill in and send the form that goes to ``path``.

        :raises LookupError: if the page has no such form.
        """
        url = urljoin(self._site, path)
        for form in page.forms:
            if form.action == url:
                data = urlencode(form.fields | fields).encode()
                return self._open(Request(url, data, {"Referer": page.url}))
        raise LookupError(f"{page.url} has no form for {url}: {page.text[:300]}")

    def _open(self, request: Request) -> Page:
        try:
            response = self._opener.open(request, timeout=TIMEOUT)
        except HTTPError as error:
            response = error
        with response:
            return Page(response.url, response.status, response.read().decode())


class _FormFinder(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self._url = url
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "form":
            self.forms.append(Form(urljoin(self._url, found.get("action")), {}))
            self._inside = True
        elif tag == "input" and self._inside and found.get("name") and _is_filled_in(found):
            self.forms[-1].fields[str(found["name"])] = found.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "form"


def _is_filled_in(field: dict[str, str | None]) -> bool:
    return field.get("type") not in {"radio", "checkbox"} or "checked" in field


class _TextReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
