"""Who may abort a run, see the progress of its abort, and clear it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from inspect import isawaitable, iscoroutine
from typing import Any, Final, Literal

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.apps import apps
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.db.models import Model
from django.http import Http404
from django.utils.module_loading import import_string

from run_abort import conf
from run_abort._core.ids import clean_id
from run_abort.exceptions import visible

logger = logging.getLogger("run_abort")

Action = Literal["abort", "see", "clear"]
Rule = Callable[[Any, str, Action], object]

PERMISSIONS: Final[Mapping[Action, str]] = {
    "abort": "run_abort.abort_run",
    "see": "run_abort.abort_run",
    "clear": "run_abort.clear_run_abort",
}

# Raised by a look-up of a key that is unknown, or that no row can have.
UNKNOWN: Final = (ObjectDoesNotExist, ValidationError, ValueError)


def may(user: object, run: object, action: Action) -> bool:
    """Whether the user may do this to the run: what ``RUN_ABORT["MAY_ABORT"]`` answers.

    The rule is called in the calling thread; the default one is :func:`has_run_permission`. An
    inactive user may do nothing. If the rule raises, or returns anything but a ``bool``, a
    coroutine included, the answer is False, and the mistake is logged. ``PermissionDenied`` and
    ``Http404`` are no mistakes.

    :param user: of the project; ``AnonymousUser()`` or None for an unknown one. The rule gets an
        ``AnonymousUser`` for None.
    :param run: what names the run, as for ``abort_run``.
    :param action: ``"abort"``; ``"see"``, the progress of an abort; ``"clear"``, to let the run
        start again.
    :raises TypeError: and ``ValueError``, as ``abort_run``, if ``run`` names no run.
    """
    run_id = clean_id(run)
    if _is_inactive(user):
        return False
    try:
        rule = _rule()
        return is_true(rule(_as_user(user), run_id, action), rule)
    except Exception as error:
        return _refuse(error)


async def amay(user: object, run: object, action: Action) -> bool:
    """:func:`may` for asyncio code. The rule may be async; a sync one is called in a thread."""
    run_id = clean_id(run)
    if _is_inactive(user):
        return False
    try:
        rule = _rule()
        call = partial(rule, _as_user(user), run_id, action)  # an object may have an async __call__
        answer = call() if iscoroutinefunction(rule) else await sync_to_async(call)()
        return is_true(await answer if isawaitable(answer) else answer, rule)
    except Exception as error:
        return _refuse(error)


def may_of_row(user: object, run_id: str, action: Action) -> bool:
    """:func:`may` for the ID in a row. False for an ID of another program that names no run."""
    try:
        return may(user, run_id, action)
    except ValueError:
        return False


def may_some(user: object, action: Action) -> bool:
    """Whether to offer the action at all; :func:`may` then decides for each run.

    True if ``MAY_ABORT`` is set, else whether the user has the permission for all runs. If a
    backend raises, the answer is False, and the mistake is logged.
    """
    try:
        return conf.settings().MAY_ABORT is not None or _has_perm(user, PERMISSIONS[action])
    except Exception as error:
        return _refuse(error)


def has_run_permission(user: object, run_id: str, action: Action) -> bool:
    """The default rule: whether the user has the permission for all runs, or for this one.

    The permission is ``run_abort.abort_run``, and ``run_abort.clear_run_abort`` to clear. For a run
    that is a model instance, the authentication backends are also asked about that object, and then
    for the permission of the same name of the object's own app, such as ``jobs.abort_run``.
    """
    permission = PERMISSIONS[action]
    if _has_perm(user, permission):
        return True
    obj = run_object(run_id)
    return obj is not None and _has_object_perm(user, permission, obj)


def run_object(run_id: str) -> Model | None:
    """The model instance that the ID ``"<app>.<model>:<primary key>"`` names.

    Uses one query; none for an ID of another form.

    :return: None if it names none: there is no such model or row, the model has a
        ``CompositePrimaryKey``, or the key is one that the field cannot take, or is written in
        another way than ``abort_run`` writes it, such as ``"05"``.
    :raises django.db.DatabaseError: if the database fails, or the model has no table.
    """
    model = _model_of(run_id)
    if model is None:
        return None
    try:
        key = model._meta.pk.to_python(run_id.partition(":")[2])
        obj: Model = model._base_manager.get(pk=key)
        return obj if clean_id(obj) == run_id else None
    except (*UNKNOWN, ArithmeticError, AttributeError, TypeError):  # each field has its own
        return None


def is_known(user: Any) -> bool:
    """Whether somebody has logged in."""
    return bool(getattr(user, "is_authenticated", False))


def is_true(answer: object, rule: object) -> bool:
    """Whether the answer of a rule is True. Anything but a ``bool`` counts as False, and is logged.

    A coroutine is true for Python; it is not awaited here.
    """
    if isinstance(answer, bool):
        return answer
    if iscoroutine(answer):
        answer.close()  # else Python warns that it was never awaited
    name = getattr(rule, "__qualname__", type(rule).__qualname__)
    logger.error(
        "%s must return a bool, but returned a %s: refused", name, type(answer).__qualname__
    )
    return False


def _model_of(run_id: str) -> type[Model] | None:
    label, colon, _key = run_id.partition(":")
    try:
        model = apps.get_model(label) if colon else None
    except (LookupError, ValueError):
        return None
    # A composite key is not read from its text, so nothing is known of such instances.
    return model if model is not None and len(model._meta.pk_fields) == 1 else None


def _rule() -> Rule:
    rule = conf.settings().MAY_ABORT or has_run_permission
    found: Rule = import_string(rule) if isinstance(rule, str) else rule
    return found


def _refuse(error: Exception) -> bool:
    if not isinstance(error, (PermissionDenied, Http404)):
        logger.error("The rule of who may abort failed: refused", exc_info=error)
    return False


def _as_user(user: object) -> object:
    # A rule may compare the user with that of a row, which may be None.
    if user is not None:
        return user
    # Importing it needs django.contrib.auth in INSTALLED_APPS, which a check asks for.
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


def _is_inactive(user: Any) -> bool:
    return is_known(user) and not getattr(user, "is_active", True)


def _has_perm(user: Any, permission: str, *obj: Model) -> bool:
    has_perm = getattr(user, "has_perm", None)  # a user model of the project need not have it
    return has_perm is not None and has_perm(permission, *obj) is True


def _has_object_perm(user: Any, permission: str, obj: Model) -> bool:
    try:
        if _has_perm(user, permission, obj):
            return True
    except Exception as error:
        # django-guardian knows no permission of another app than the object's.
        if type(error).__name__ != "WrongAppError":
            raise
    own = f"{obj._meta.app_label}.{permission.partition('.')[2]}"
    try:
        return _has_perm(user, own, obj)
    except Exception as error:  # the project need not have such a permission
        logger.debug("The permission %s cannot be asked for: %s", own, visible(error))
        return False
