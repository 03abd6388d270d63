"""The form of the abort view and of the admin."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from run_abort._transport.codec import MAX_REASON_LENGTH

__all__ = ["AbortForm"]


class AbortForm(forms.Form):
    """The optional reason."""

    reason = forms.CharField(
        label=_("Reason (optional)"), max_length=MAX_REASON_LENGTH, required=False
    )
