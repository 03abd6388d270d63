"""The function of docs/howto/job-table.md, for the workers of queues."""

from __future__ import annotations

import re
import sys

import django

django.setup()

import tests.jobs.models  # noqa: E402
from tests.support import ROOT  # noqa: E402

PAGE = ROOT / "docs" / "howto" / "job-table.md"

sys.modules["jobs.models"] = tests.jobs.models
(first, *_) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
exec(compile(first, str(PAGE), "exec"))
