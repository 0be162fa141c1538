"""Programs in processes of their own, forked from one in which what takes long to import is imported already."""

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FORK_PROGRAMS = """
import json, os, sys, tempfile, traceback
import torch, torchvision
torch.set_num_threads(1)
for line in sys.stdin:
    code, folder, environment = json.loads(line)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            status = 1
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            try:
                exec(code, {"__name__": "__main__"})
                status = 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitpid(child, 0)[1]
        for file in (output, errors):
            file.seek(0)
        print(json.dumps([status, output.read(), errors.read()]), flush=True)
"""


@functools.cache
def _process_with_torch() -> "subprocess.Popen[str]":
    """It ends with this process, as its input does."""
    command = [sys.executable, "-c", _FORK_PROGRAMS]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_program(code: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program in a process in which PyTorch is imported and nothing of timm, the Hub or tosa; it has to succeed.

    Args:
        code: The program.
        environment: Its whole environment; None takes that of this process.
    """
    server = _process_with_torch()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps([code, os.getcwd(), dict(environment or os.environ)]) + "\n")
    server.stdin.flush()
    status, output, errors = json.loads(server.stdout.readline())
    assert status == 0, errors
    return subprocess.CompletedProcess([code], status, output, errors)


_FORK_GROUPS = """
import json, os, runpy, signal, sys, time, traceback
import accelerate, timm, torch, torchvision
import tosa_cli.workflow.distill, tosa_cli.workflow.finetune
torch.set_num_threads(1)
for line in sys.stdin:
    told, children, statuses = json.loads(line), [], []
    for rank in range(told["processes"]):
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(120)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(told[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            os.environ.update(told["environment"], RANK=str(rank), LOCAL_RANK=str(rank))
            os.chdir(told["folder"])
            sys.argv = told["words"]
            try:
                runpy.run_module(told["words"][0], run_name="__main__", alter_sys=True)
                status = 0
            except SystemExit as exit:
                status = int(exit.code or 0)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        statuses.append(os.waitstatus_to_exitcode(status))
        if status:
            time.sleep(1)  # launchers do not look all the time either
            for other in children:
                os.kill(other, signal.SIGTERM)
    print(json.dumps(statuses), flush=True)
"""


@functools.cache
def _forking_process() -> "subprocess.Popen[str]":
    """It ends with this process, as its input does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", _FORK_GROUPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def run_together(words: list[str], folder: Path, processes: int = 2) -> "subprocess.CompletedProcess[str]":
    """Run a module in processes that train together, as `accelerate launch` would.

    Args:
        words: Name of the module, and its arguments.
        folder: The current directory.
        processes: How many.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    told = {"words": words, "folder": str(folder), "processes": processes, "environment": environment}
    server = _forking_process()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as scratch:
        written = {name: Path(scratch, name) for name in ("stdout", "stderr")}
        server.stdin.write(json.dumps(told | {name: str(path) for name, path in written.items()}) + "\n")
        server.stdin.flush()
        statuses = json.loads(server.stdout.readline())
        return subprocess.CompletedProcess(
            words, max(map(abs, statuses)), *(path.read_text() for path in written.values())
        )
