from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading

sys.setswitchinterval(1e-6)
from llm_cost_ops._gen import methods
from llm_cost_ops.rpc.method import MethodDescriptor

METHODS = [each for each in vars(methods).values() if isinstance(each, MethodDescriptor)]
together = threading.Barrier(6)
JSON = b'{"data":{"total_cost":"1","results":[{"status":"created"}],"breakdown":[{"total_cost":"1"}]}}'

def decode(number):
    for method in METHODS:
        together.wait()
        for codec in (method.response, method.request)[:: 1 if number % 2 else -1]:
            try:
                codec.decode_json(JSON)
            except ValueError:
                pass

threads = [threading.Thread(target=decode, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


@pytest.mark.parametrize("attempt", range(3))
def test_threads_that_decode_first_at_the_same_time_do_not_crash_the_process(attempt: int) -> None:
    """Without a lock around the making of decoders three of four such processes end by SIGSEGV."""
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), f"attempt {attempt}: {ran.stderr}"
