"""What a process does before it ends."""

from __future__ import annotations

from typing import Any

from tests.conftest import Configure
from tests.support import Child


class TestProcesses:
    def test_what_a_short_process_did_is_told_before_it_ends(
        self, configure: Configure, settings: Any
    ) -> None:
        code = """
import logging, sys, time
import django
django.setup()
logging.basicConfig(level=logging.INFO, format="%(abort_name)s %(abort_run_id)s")
from run_abort import abort_run
from run_abort._runtime.runtime import current
from run_abort.facts import on_fact
on_fact(lambda fact: (time.sleep(0.1), sys.stdout.write(f"hook {fact.name}\\n")))
abort_run("run-1")
"""
        options = settings.RUN_ABORT | {"LISTEN": False}
        with Child("-c", code, settings={"RUN_ABORT": options}) as child:
            assert child.wait() == 0
        assert sorted(child.output) == [
            "hook published",
            "hook requested",
            "published run-1",
            "requested run-1",
        ]
