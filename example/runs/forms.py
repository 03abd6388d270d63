"""The form that starts a run."""

from __future__ import annotations

from django import forms

from .models import Run


class RunForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Run
        fields = ("shard_count",)
