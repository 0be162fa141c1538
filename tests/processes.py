"""Several programs, each in a process of its own that starts with PyTorch imported and nothing else of ours."""

import json
import os
import subprocess
import sys

_RUN_ALL = """
import json, os, sys, tempfile, traceback
import torch, torchvision
torch.set_num_threads(1)
found = []
for code, environment in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            status = 1
            os.dup2(output.fileno(), 1)
            os.environ.update(environment)
            try:
                exec(code, {"__name__": "__main__"})
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        status = os.waitpid(child, 0)[1]
        output.seek(0)
        found.append([status, output.read()])
json.dump(found, sys.stdout)
"""


def run_programs(*programs: tuple[str, dict[str, str]], environment: dict[str, str] | None = None) -> list[str]:
    """Run programs one after another, each with more in its environment; what each wrote, once all succeeded."""
    told = json.dumps(programs)
    command = [sys.executable, "-c", _RUN_ALL]
    done = subprocess.run(command, input=told, env=environment or os.environ.copy(), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for status, _ in found:
        assert status == 0, done.stderr
    return [output for _, output in found]
