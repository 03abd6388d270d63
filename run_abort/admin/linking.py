"""Links from a run ID to the project's own page of that run in the admin."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.utils import quote
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.safestring import SafeString

from run_abort._concurrency.throttle import Throttle
from run_abort.exceptions import visible
from run_abort.views.links import link

from .asking import Link

logger = logging.getLogger("run_abort")

_failed: Final = Throttle()


def run_links(site: AdminSite, request: HttpRequest) -> Link:
    """A function that makes the ID of a run a link to its page, for users who may view that.

    It asks ``get_run_url`` of each ``AbortRunsMixin`` of the site, or else finds the model that the
    ID names. The page of a proxy counts if no other model has one. Without a page it returns the ID
    alone.
    """
    # The ID of an instance names the concrete model, also if the instance is that of a proxy.
    admins = sorted(site._registry.values(), key=lambda each: each.opts.proxy)
    urls_of = [
        getattr(model_admin, "get_run_url", None) or partial(row_url, model_admin)
        for model_admin in admins
        if model_admin.has_view_or_change_permission(request)
    ]

    def link_to(run_id: str) -> SafeString:
        return link(run_id, next(filter(None, (_asked(url_of, run_id) for url_of in urls_of)), ""))

    return link_to


def _asked(url_of: Callable[[str], str], run_id: str) -> str:
    """The URL; empty if the project's method raises, which must not cost the page."""
    try:
        return url_of(run_id)
    except Exception as error:
        if _failed.admit() is not None:  # the page asks for each run, every two seconds
            logger.error("get_run_url failed for the run %s", visible(run_id), exc_info=error)
        return ""


def row_url(model_admin: ModelAdmin[Any], run_id: str) -> str:
    """URL of the change page that the ID ``"<app>.<model>:<pk>"`` names.

    For a proxy, the ID names its concrete model. Empty for another ID, and without such a page.
    """
    label, _colon, pk = run_id.partition(":")
    model = model_admin.opts.concrete_model
    if not pk or model is None or label != model._meta.label_lower:
        return ""
    try:
        return object_url(model_admin, pk)
    except NoReverseMatch:  # an admin can have URLs of its own, as that of the page "Running now"
        return ""


def object_url(model_admin: ModelAdmin[Any], pk: Any, view: str = "change") -> str:
    """URL of a page of a model instance: ``"change"``, or another one of its admin."""
    opts = model_admin.opts
    name = f"admin:{opts.app_label}_{opts.model_name}_{view}"
    return reverse(name, args=[quote(pk)], current_app=model_admin.admin_site.name)
