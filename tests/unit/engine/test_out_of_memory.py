"""Too little memory is told in words, wherever it runs out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from dreambooth.errors import is_out_of_memory, no_memory

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]) << 20,) * 2)
from dreambooth.cli import main
sys.argv = ["dbt", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_what_says_that_memory_ran_out(error):
    assert is_out_of_memory(error)
    assert no_memory(error).message.startswith("memory ran out: ")


def test_other_errors_are_no_want_of_memory():
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_out_of_memory(ImportError("No module named 'memory'"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space")
def test_a_limit_under_which_torch_cannot_be_loaded_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "150", "sample", str(tmp_path), "a dog"],
        capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "memory ran out" in done.stderr
    assert "150 MiB that is set for this process (ulimit -v)" in done.stderr
    assert "Traceback" not in done.stderr
