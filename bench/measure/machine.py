"""What machine this is, and how much of it others used while we measured."""

import os
import pathlib
import resource
import subprocess
import time

FLAGS = ("avx2", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni",
         "amx_int8", "asimddp", "i8mm", "sve")


def first_field(path, keys):
    """The value after the first of `keys` that stands in a file of `key : value` lines."""
    for line in pathlib.Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return "unknown"


def describe():
    """Processor, cores, the instructions that matter, memory, system, load."""
    flags = first_field("/proc/cpuinfo", ("flags", "Features")).split()
    return {
        "processor": first_field("/proc/cpuinfo", ("model name", "CPU part")),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory": first_field("/proc/meminfo", ("MemTotal",)),
        "system": f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        "load_average": os.getloadavg(),
    }


def commit(folder):
    """The commit that `folder` has checked out, marked if files differ from it."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


class Watch:
    """Counts the processor time that went neither to us nor to our programs."""

    def __init__(self):
        self.begin = self.reading()

    @staticmethod
    def reading():
        fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
        ticks = os.sysconf("SC_CLK_TCK")
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own_s = sum(usage.ru_utime + usage.ru_stime for usage in own)
        busy_s = (user + nice + system + irq + softirq) / ticks
        return time.monotonic(), busy_s - own_s, steal / ticks

    def cores_used_by_others(self):
        """Mean number of cores that other programs, or other guests of the host, kept busy."""
        began, foreign, steal = self.begin
        now, foreign_now, steal_now = self.reading()
        return max(0.0, foreign_now - foreign + steal_now - steal) / max(now - began, 1e-9)
