"""What is shipped in other languages: all of it, as it is now, and nothing broken by it."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import django
import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from django.utils import translation
from django.utils.translation.template import templatize

from tests.support import ROOT

APP: Final = ROOT / "run_abort"
DJANGO: Final = Path(django.__file__).parent
LANGUAGES: Final = ("de", "zh_Hans")
KEYWORDS: Final = {
    "_": None,
    "gettext": None,
    "gettext_lazy": None,
    "gettext_noop": None,
    "ngettext": (1, 2),
    "ngettext_lazy": (1, 2),
    "pgettext": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
}
PLACEHOLDER: Final = re.compile(r"%\((\w+)\)[a-z]|%[sd]|\{(\w*)\}")

MessageKey = tuple[str, ...]


def key_of(message_id: object) -> MessageKey:
    return tuple(message_id) if isinstance(message_id, (list, tuple)) else (str(message_id),)


def sources() -> Iterator[tuple[Path, str]]:
    """Every file with texts, as the Python that gettext's tools are given."""
    for path in APP.rglob("*.py"):
        yield path, path.read_text()
    for path in APP.rglob("templates/**/*.html"):
        # Django says where in the template each text stands by an XXX that is no Python.
        yield path, templatize(path.read_text(), origin=str(path))


def texts() -> set[MessageKey]:
    """All that is marked for translation."""
    found = set()
    for _path, source in sources():
        for _line, text, _comments, _context in extract(
            "python", io.BytesIO(source.encode()), KEYWORDS
        ):
            found.add(key_of(text))
    # One entry serves a text that is also the singular of another.
    singulars = {key[:1] for key in found if len(key) > 1}
    return found - singulars


def path_of(language: str, suffix: str) -> Path:
    return APP / "locale" / language / "LC_MESSAGES" / f"django.{suffix}"


def messages_of(catalog: Catalog) -> Iterator[Message]:
    return (message for message in catalog if message.id)


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def catalog(language: str) -> Catalog:
    with path_of(language, "po").open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def test_it_has_every_text_and_no_other(catalog: Catalog) -> None:
    assert {key_of(message.id) for message in messages_of(catalog)} == texts()
    assert not catalog.obsolete


def test_everything_is_translated(catalog: Catalog) -> None:
    for message in messages_of(catalog):
        strings = key_of(message.string)
        assert not message.fuzzy, message.id
        assert all(strings), message.id
        if message.pluralizable:
            assert len(strings) == catalog.num_plurals, message.id


def test_nothing_but_words_was_changed(catalog: Catalog) -> None:
    """A placeholder that is lost hides a fact; one that is misspelt is an error on the page."""
    for message in messages_of(catalog):
        # In the language's own plural, a number may be said by a word, or not at all.
        for original, string in zip(
            reversed(key_of(message.id)), reversed(key_of(message.string)), strict=False
        ):
            assert placeholders(original) == placeholders(string), message.id
        for string in key_of(message.string):
            assert (string[:1] == "\n") == (key_of(message.id)[0][:1] == "\n"), message.id
            assert string.strip() == string, message.id


def placeholders(text: str) -> Counter[str]:
    return Counter(match.group() for match in PLACEHOLDER.finditer(text))


def test_no_text_of_ours_gets_the_words_of_djangos_apps(language: str, catalog: Catalog) -> None:
    """Which of two apps is heard depends on their order in INSTALLED_APPS."""
    ours = {
        key_of(message.id)[0]: key_of(message.string)[0]
        for message in messages_of(catalog)
        if message.context is None
    }
    for source in DJANGO.glob("**/locale/en/LC_MESSAGES/django.po"):
        # Each text that Django marks, also an untranslated one: ours would be shown there.
        theirs = {key_of(message.id)[0]: "" for message in plain_messages(source, read_po)}
        path = source.parents[2] / language / "LC_MESSAGES" / "django.mo"
        for message in plain_messages(path, read_mo):
            theirs[key_of(message.id)[0]] = key_of(message.string)[0]
        for text in ours.keys() & theirs.keys():
            assert ours[text] == theirs[text], text


def plain_messages(path: Path, read: Callable[..., Catalog]) -> list[Message]:
    """Those of a catalog without a context."""
    with path.open("rb") as file:
        return [message for message in messages_of(read(file)) if message.context is None]


def test_it_is_compiled_as_it_is(language: str, catalog: Catalog) -> None:
    with path_of(language, "mo").open("rb") as file:
        compiled = {key_of(m.id): key_of(m.string) for m in messages_of(read_mo(file))}
    assert compiled == {key_of(m.id): key_of(m.string) for m in messages_of(catalog)}


@pytest.mark.parametrize(
    ("code", "expected"), [("de", "Abbruch"), ("de-at", "Abbruch"), ("zh-hans", "中止")]
)
def test_django_finds_it(code: str, expected: str) -> None:
    from run_abort.models import AbortRequest

    with translation.override(code):
        assert expected in str(AbortRequest._meta.verbose_name)
