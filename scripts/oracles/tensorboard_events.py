"""What TensorBoard itself reads from an event file that `offshoot tune` wrote.

Run with tensorboard installed; it reads crates/offshoot-engine/tests/data/run/events.tfevents and
rewrites events.json beside it: for each tag the steps, the times and the values. The file and
log.jsonl beside it are those of a real run on the small model of the command line's tests.
"""

import json
import pathlib
import shutil
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

DATA = pathlib.Path(__file__).parents[2] / "crates/offshoot-engine/tests/data/run"

with tempfile.TemporaryDirectory() as folder:
    shutil.copy(DATA / "events.tfevents", f"{folder}/events.out.tfevents.0000000000.offshoot")
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    tags = {
        tag: [[scalar.step, scalar.wall_time, scalar.value] for scalar in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
    }
text = json.dumps(tags, indent=0, sort_keys=True)
(DATA / "events.json").write_text(text + "\n")
