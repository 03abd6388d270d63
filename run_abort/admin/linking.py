"""Links from a run ID to the project's own page of that run in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite, ModelAdmin
from django.contrib.admin.utils import quote
from django.http import HttpRequest
from django.urls import reverse
from django.utils.safestring import SafeString

from run_abort.views.links import link

__all__ = ["change_url", "run_link", "run_url"]


def run_url(site: AdminSite, request: HttpRequest, run_id: str) -> str:
    """URL of the page of a run, for users who may view it; empty if there is none.

    Asks ``get_run_url`` of each ``AbortRunsMixin`` of the site, or else finds the model that the ID
    names.
    """
    label, _colon, pk = run_id.partition(":")
    for model, model_admin in site._registry.items():
        if not model_admin.has_view_or_change_permission(request):
            continue
        get_run_url = getattr(model_admin, "get_run_url", None)
        if get_run_url is not None:
            url: str = get_run_url(run_id)
        else:
            url = change_url(model_admin, pk) if label == model._meta.label_lower else ""
        if url:
            return url
    return ""


def change_url(model_admin: ModelAdmin[Any], pk: str) -> str:
    """URL of the change page of a model instance; empty without a key."""
    if not pk:
        return ""
    opts = model_admin.opts
    name = f"admin:{opts.app_label}_{opts.model_name}_change"
    return reverse(name, args=[quote(pk)], current_app=model_admin.admin_site.name)


def run_link(site: AdminSite, request: HttpRequest, run_id: str) -> SafeString:
    """The ID of a run, as a link to its page if it has one."""
    return link(run_id, run_url(site, request, run_id))
