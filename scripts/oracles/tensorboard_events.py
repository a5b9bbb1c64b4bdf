"""What TensorBoard itself reads from the event file of a run of `offshoot tune`.

    python3 scripts/oracles/tensorboard_events.py RUN

Run with tensorboard installed. Puts log.jsonl and the event file of the folder RUN into
crates/offshoot-engine/tests/data/run, and what TensorBoard finds in the latter beside them as
events.json: for each tag a point a step, as step, time and value. The run that is there is

    offshoot tune smollm2 --data talks.jsonl --steps 6 --batch 2 --eval-fraction 0.25 --eval-every 3

taken up once more with --resume.
"""

import json
import pathlib
import shutil
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

DATA = pathlib.Path(__file__).parents[2] / "crates/offshoot-engine/tests/data/run"


def main():
    run = pathlib.Path(sys.argv[1])
    (file,) = (run / "tensorboard").iterdir()
    # Without the limit that its page has.
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = {
        tag: [[scalar.step, scalar.wall_time, scalar.value] for scalar in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
    }
    DATA.mkdir(exist_ok=True)
    shutil.copy(run / "log.jsonl", DATA / "log.jsonl")
    shutil.copy(file, DATA / "events.tfevents")
    (DATA / "events.json").write_text(json.dumps(tags, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
