"""The pages: all runs, one run and its progress, and an answer that is streamed."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin, PermissionRequiredMixin
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.generic import DetailView, FormView, ListView, TemplateView

from run_abort import AbortSignal, RunAborted
from run_abort.http import abortable_stream

from .forms import RunForm
from .jobs import words
from .models import Run
from .progress import progress_of

WORDS = 600  # of a streamed answer


class RunList(LoginRequiredMixin, ListView):  # type: ignore[type-arg]
    """All runs, and the form that starts another."""

    queryset = Run.objects.select_related("owner").prefetch_related("parts")
    paginate_by = 25
    extra_context = {"form": RunForm()}  # noqa: RUF012  as Django's own views have it


class RunCreate(PermissionRequiredMixin, FormView):  # type: ignore[type-arg]
    """Starts a run and shows it."""

    form_class = RunForm
    template_name = "runs/run_list.html"
    permission_required = "runs.add_run"
    http_method_names = ("post",)

    def form_valid(self, form: RunForm) -> HttpResponse:
        run = Run.start(form.kinds(), owner_id=self.request.user.pk)
        return HttpResponseRedirect(run.get_absolute_url())


@method_decorator(never_cache, name="dispatch")
class RunDetail(LoginRequiredMixin, DetailView):  # type: ignore[type-arg]
    """One run, with its progress and the button that stops it."""

    queryset = Run.objects.select_related("owner").prefetch_related("parts")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(progress=progress_of(self.object), **kwargs)


class RunProgress(RunDetail):
    """The same facts, for the page's script."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return JsonResponse(progress_of(self.get_object()))


class Answer(LoginRequiredMixin, TemplateView):
    """The page on which an answer appears word by word, with a button that stops it."""

    template_name = "runs/answer.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        answer = uuid4()
        return super().get_context_data(answer=answer, run_id=f"answer-{answer}", **kwargs)


@login_required
async def stream_answer(request: HttpRequest, answer: UUID) -> StreamingHttpResponse:
    """The answer itself. The stream is a run: an abort ends it, and so does closing the page."""

    async def make(signal: AbortSignal) -> Any:
        async for word in words(WORDS):
            yield word

    def on_abort(aborted: RunAborted) -> str:
        return _("[stopped by %(actor)s]") % {"actor": aborted.actor}

    stream = abortable_stream(f"answer-{answer}", make, label="answer", on_abort=on_abort)
    return StreamingHttpResponse(stream, content_type="text/plain; charset=utf-8")
