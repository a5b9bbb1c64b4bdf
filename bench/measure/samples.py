"""Figures taken many times, each only while the machine is quiet."""

import statistics
import time

from measure.machine import Watch
from measure.process import ProgramError

# Others may use a tenth of a core; the clock of /proc/stat ticks every hundredth of a second.
OTHERS_CORES_MAX = 0.1
OTHERS_SLACK_S = 0.05
ATTEMPTS = 4
QUIET_WAIT_S = 60


class Samples:
    """All samples of a run: lists of numbers by name."""

    def __init__(self, say=print, needs_quiet=True):
        self.lists, self.errors, self.noisy, self.say = {}, {}, [], say
        self.attempts = ATTEMPTS if needs_quiet else 1
        self.wait_s = QUIET_WAIT_S if needs_quiet else 0

    def take(self, name, measure):
        """Calls `measure` on a quiet machine and keeps its number, or its dictionary of numbers.

        A call during which others were busy is repeated; the last attempt is kept, and noted as
        noisy. What cannot be measured is an error of that name, and is not tried again.
        """
        if name in self.errors:
            return
        for attempt in range(self.attempts):
            wait_until_quiet(self.wait_s)
            watch, begin = Watch(), time.monotonic()
            try:
                result = measure()
            except ProgramError as error:
                self.errors[name] = str(error)
                self.say(f"  {name}: {error}")
                return
            others = watch.cores_used_by_others()
            wall_s = time.monotonic() - begin
            if others * wall_s <= OTHERS_CORES_MAX * wall_s + OTHERS_SLACK_S:
                break
            if attempt == self.attempts - 1:
                self.noisy.append({"name": name, "cores_used_by_others": others})
        self.keep(name, result)

    def keep(self, name, result):
        if isinstance(result, dict):
            for key, value in result.items():
                self.keep(name + (key if isinstance(key, tuple) else (key,)), value)
        elif isinstance(result, (int, float)):
            self.lists.setdefault(name, []).append(result)

    def median(self, *name):
        """The median of the samples of `name`; nothing if there are none."""
        values = self.lists.get(name)
        return statistics.median(values) if values else None

    def best(self, *parts, better=max):
        """The best of the medians whose names hold all `parts`, and what else its name holds."""
        medians = {name: statistics.median(values) for name, values in self.lists.items()
                   if all(part in name for part in parts)}
        if not medians:
            return None, None
        name = better(medians, key=medians.get)
        return medians[name], " ".join(str(part) for part in name if part not in parts)

    def as_json(self):
        return {" / ".join(str(part) for part in name): values
                for name, values in self.lists.items()}


def wait_until_quiet(patience_s):
    """Waits until others let the processor be for a quarter second, or patience ends."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        watch = Watch()
        time.sleep(0.25)
        if watch.cores_used_by_others() <= OTHERS_CORES_MAX:
            return
