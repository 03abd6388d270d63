"""The form that starts a run."""

from __future__ import annotations

from collections.abc import Sequence

from django import forms
from django.utils.translation import gettext_lazy as _

from .models import Run, Shard

MIXED = "mixed"


class RunForm(forms.ModelForm):  # type: ignore[type-arg]
    """A new run; ``cleaned_data["style"]`` are the styles that its shards have in turn."""

    style = forms.ChoiceField(
        label=_("Worked on by"),
        widget=forms.RadioSelect,
        initial=MIXED,
        choices=(
            (MIXED, _("one of each, in turn")),
            (Shard.Style.THREAD, _("threads that look at their signal")),
            (Shard.Style.SUBPROCESS, _("subprocesses, which are ended")),
            (Shard.Style.ASYNCIO, _("tasks of asyncio, which are cancelled")),
            (Shard.Style.INTERRUPT, _("threads that never look, and are interrupted")),
        ),
    )

    class Meta:
        model = Run
        fields = ("shard_count",)

    def clean_style(self) -> Sequence[Shard.Style]:
        style = self.cleaned_data["style"]
        return list(Shard.Style) if style == MIXED else [Shard.Style(style)]
