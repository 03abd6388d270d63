"""``{% load run_abort %}``: a button that aborts a run, for a project's own pages."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from django import template
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpRequest
from django.middleware.csrf import get_token
from django.template import Context
from django.urls import NoReverseMatch, get_script_prefix, resolve, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _

from run_abort._core.ids import clean_id
from run_abort.exceptions import visible
from run_abort.views.abort import AbortForm
from run_abort.views.guarded import GuardedView

__all__ = ["abort_button", "abort_button_media", "register"]

register = template.Library()


@register.inclusion_tag("run_abort/abort_button.html", takes_context=True)
def abort_button(
    context: Context,
    run: object,
    *,
    name: str = "",
    label: str = "",
    reason: str = "",
    next: str = "",  # noqa: A002  name of the form's field
    view: str = "run_abort:abort",
    progress: str = "run_abort:progress",
) -> dict[str, Any]:
    """Render the abort button. Shown only to users who may abort this run.

    The template must be rendered with the request, or have it in its context. With ``DEBUG`` a
    comment in the page says why there is no button.

    :param run: the run's ID or model instance, as for ``abort_run``.
    :param name: what people call the run; by default the text of the instance, or the ID.
    :param label: text of the button; by default “Abort”.
    :param reason: initial value of the field for the reason.
    :param next: URL to redirect to without JavaScript; by default that of the current page.
    :param view: URL name of the abort view, if the project has its own; that view is asked for the
        permission. Its only argument is the run ID or, if no URL matches that, the primary key of
        the instance.
    :param progress: URL name of its progress view, with the same argument; if empty, the button
        shows only that the run was asked to abort.
    :raises TypeError: and ``ValueError``, as ``abort_run``: a bare primary key names no run.
    :raises django.urls.NoReverseMatch: if there is no URL of that name.
    :raises ImproperlyConfigured: if the URL name does not belong to an abort view.
    """
    request = _request(context)
    if request is None:
        return _nothing("the context of the template has no “request”")
    if getattr(request, "user", None) is None:
        return _nothing("the request has no user; is AuthenticationMiddleware missing?")
    if run == "":
        raise ValueError("a run ID must not be empty: is the variable in the context?")
    run_id = _plain(clean_id(run))
    action = _url(request, view, run, run_id)
    if not _may(request, action):
        return _nothing(
            f"“{request.user}” may not abort the run “{visible(run_id)}”: see MAY_ABORT in "
            "RUN_ABORT"
        )
    return {
        "action": action,
        "progress": _url(request, progress, run, run_id) if progress else "",
        "run_name": visible(name or (str(run) if hasattr(run, "pk") else run_id)),
        "label": label or _("Abort"),
        "next": _plain(next or request.get_full_path()),
        "form": AbortForm(initial={"reason": _plain(reason)}, auto_id=False),
        "csrf_token": get_token(request),
    }


@register.inclusion_tag("run_abort/abort_button_media.html", takes_context=True)
def abort_button_media(context: Context) -> dict[str, Any]:
    """Link the style sheet and the script of the buttons, for the ``<head>``.

    Under a content security policy with nonces they have the nonce of the request.
    """
    nonce = _nonce(context)
    return {"csp_nonce": nonce} if nonce else {}


@register.simple_tag(takes_context=True)
def nonce_attribute(context: Context) -> str:
    """The nonce of the request as an attribute; for the templates of this app."""
    nonce = _nonce(context)
    return format_html(' nonce="{}"', nonce) if nonce else ""


def _nonce(context: Context) -> str:
    """The nonce of the request; empty if there is none.

    Only for what has the nonce then: Django adds a nonce to the policy once it is made a text.
    """
    nonce = context.get("csp_nonce")
    request = _request(context)
    for name in ("_csp_nonce", "csp_nonce"):  # of Django 6 and of django-csp
        nonce = nonce if nonce is not None else getattr(request, name, None)
    return "" if nonce is None else str(nonce)


def _request(context: Context) -> Any:
    """The request; None if there is none. A loop or ``include … only`` hides only the variable."""
    return getattr(context, "request", None) or context.get("request")


def _nothing(why: str) -> dict[str, Any]:
    return {"why": why} if settings.DEBUG else {}


def _plain(text: object) -> str:
    """Return a plain ``str``, so that it is escaped; string literals in templates count as safe."""
    return str.__str__(str(text))


def _url(request: HttpRequest, view: str, run: Any, run_id: str) -> str:
    match = getattr(request, "resolver_match", None)
    app = getattr(request, "current_app", getattr(match, "namespace", None))
    try:
        return reverse(view, args=[run_id], current_app=app)
    except NoReverseMatch as error:
        if view.partition(":")[0] == "run_abort" and "namespace" in str(error):
            raise NoReverseMatch(
                f"{error}: add path('runs/', include('run_abort.urls')) to the project's URLs"
            ) from error
        if not hasattr(run, "pk"):
            raise
        return reverse(view, args=[run.pk], current_app=app)


def _may(request: HttpRequest, url: str) -> bool:
    """Whether the view behind ``url`` allows the visitor to abort."""
    path = "/" + unquote(url).removeprefix(get_script_prefix())
    match = resolve(path)
    view_class = getattr(match.func, "view_class", None)
    if view_class is None or not issubclass(view_class, GuardedView):
        raise ImproperlyConfigured(f"{path} is not served by a subclass of AbortView")
    view = view_class(**match.func.view_initkwargs)  # type: ignore[attr-defined]
    try:
        view.setup(request, *match.args, **match.kwargs)
        return bool(view.is_permitted())
    except (Http404, PermissionDenied):
        return False
