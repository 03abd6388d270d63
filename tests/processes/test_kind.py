"""What kind of process real ones say they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT, Child

PROGRAM = """
import multiprocessing, sys
from run_abort._runtime.kind import kind_of_process
def tell():
    print(f"kind: {kind_of_process()}", flush=True)
if __name__ == "__main__":
    tell()
    context = multiprocessing.get_context(sys.argv[1])
    process = context.Process(target=tell)
    process.start()
    process.join()
"""


class TestRealProcesses:
    @pytest.mark.parametrize(
        ("method", "child"), [("spawn", "SpawnProcess-1"), ("fork", "ForkProcess-1")]
    )
    def test_a_script_and_its_child(self, tmp_path: Path, method: str, child: str) -> None:
        script = tmp_path / "import.py"
        script.write_text(PROGRAM)
        with Child(str(script), method) as process:
            assert process.wait_for("kind") == "kind: import.py"
            assert process.wait_for("kind") == f"kind: import.py ({child})"
            assert process.wait() == 0, str(process)

    def test_a_module_and_its_child_of_billiard(self, tmp_path: Path) -> None:
        package = tmp_path / "celery"
        package.mkdir()
        (package / "__init__.py").touch()
        program = PROGRAM.replace("sys.argv[1]", '"fork"').replace("multiprocessing", "billiard")
        (package / "__main__.py").write_text(program)
        environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        with Child("-m", "celery", "-A", "x", "worker", environment=environment) as process:
            assert process.wait_for("kind") == "kind: celery"
            assert process.wait_for("kind") == "kind: celery (ForkProcess-1)"
