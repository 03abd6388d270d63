"""The pages: all runs, one run, and how far it is."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.mixins import LoginRequiredMixin, PermissionRequiredMixin
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.generic import CreateView, DetailView, ListView

from .forms import RunForm
from .models import Run
from .progress import progress_of


class RunList(LoginRequiredMixin, ListView):  # type: ignore[type-arg]
    """All runs, and the form that starts another."""

    queryset = Run.objects.select_related("owner").prefetch_related("shards")
    paginate_by = 25
    extra_context = {"form": RunForm()}  # noqa: RUF012  as Django's own views have it


class RunCreate(PermissionRequiredMixin, CreateView):  # type: ignore[type-arg]
    """Starts a run and shows it."""

    form_class = RunForm
    template_name = "runs/run_list.html"
    permission_required = "runs.add_run"
    http_method_names = ("post",)

    def form_valid(self, form: ModelForm[Any]) -> HttpResponse:
        form.instance.owner = self.request.user
        form.instance.save_with_shards(form.cleaned_data["style"])
        return HttpResponseRedirect(form.instance.get_absolute_url())


@method_decorator(never_cache, name="dispatch")
class RunDetail(LoginRequiredMixin, DetailView):  # type: ignore[type-arg]
    """One run, with its progress and the button that aborts it."""

    queryset = Run.objects.select_related("owner").prefetch_related("shards")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(progress=progress_of(self.object), **kwargs)


class RunProgress(RunDetail):
    """The same facts, for the page's script."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return JsonResponse(progress_of(self.get_object()))
