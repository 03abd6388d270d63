"""The addresses of the runs."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "runs"

urlpatterns = [
    path("", views.RunList.as_view(), name="list"),
    path("runs/new/", views.RunCreate.as_view(), name="create"),
    path("runs/<int:pk>/", views.RunDetail.as_view(), name="detail"),
    path("runs/<int:pk>/progress/", views.RunProgress.as_view(), name="progress"),
    path("answer/", views.Answer.as_view(), name="answer"),
    path("answer/<uuid:answer>/", views.stream_answer, name="stream_answer"),
]
