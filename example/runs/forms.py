"""The form that starts a run."""

from __future__ import annotations

from itertools import cycle, islice

from django import forms
from django.utils.translation import gettext_lazy as _

from .models import Part

MIXED = "mixed"


class RunForm(forms.Form):
    """What to do, and in how many parts."""

    kind = forms.ChoiceField(
        label=_("What to do"),
        widget=forms.RadioSelect,
        initial=Part.Kind.IMPORT,
        choices=(
            (Part.Kind.IMPORT, _("Import rows: the code checks its signal")),
            (Part.Kind.ANSWER, _("Write an answer: an asyncio task is cancelled")),
            (Part.Kind.CONVERT, _("Convert a video: a program is ended, with its child process")),
            (
                Part.Kind.TRAIN,
                _("Train a model: the code never checks, so its thread is interrupted"),
            ),
            (MIXED, _("One part of each, in turn")),
        ),
    )
    parts = forms.IntegerField(label=_("Parts"), min_value=1, max_value=24, initial=6)

    def kinds(self) -> list[Part.Kind]:
        """The kind of each part."""
        kind, count = self.cleaned_data["kind"], self.cleaned_data["parts"]
        kinds = list(Part.Kind) if kind == MIXED else [Part.Kind(kind)]
        return list(islice(cycle(kinds), count))
