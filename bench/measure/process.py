"""Running one program and reading what it cost."""

import dataclasses
import os
import subprocess
import tempfile
import threading
import time

TIME_LIMIT_S = 1800


class ProgramError(Exception):
    """A program ended badly or printed something else than expected."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a program."""

    output: bytes
    wall_s: float
    first_byte_s: float | None
    peak_rss_bytes: int


def run(command, environment=None, limit_s=TIME_LIMIT_S):
    """Runs `command` to its end. The peak counts resident pages of mapped files too."""
    command = [str(part) for part in command]
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise ProgramError(f"cannot run {command[0]}: {error.strerror}") from error
        finished = watch(process, begin, limit_s)
        if process.returncode != 0:
            errors.seek(0)
            lines = errors.read().decode("utf-8", "replace").strip().splitlines() or ["(silent)"]
            raise ProgramError(f"{shown(command)}: ended with {process.returncode}: {lines[-1]}")
    return finished


def watch(process, begin, limit_s):
    """Reads the output of `process` and waits for it. It does not outlive us or the time limit."""
    limit = threading.Timer(limit_s, process.kill)
    limit.start()
    try:
        with process.stdout as pipe:
            first = os.read(pipe.fileno(), 1 << 16)
            first_byte_s = time.perf_counter() - begin if first else None
            output = first + pipe.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        limit.cancel()
        if process.returncode is None:
            process.kill()
            process.wait()
    return Run(output, time.perf_counter() - begin, first_byte_s, usage.ru_maxrss * 1024)


def shown(command):
    text = " ".join(command)
    return text if len(text) < 300 else text[:300] + "..."
