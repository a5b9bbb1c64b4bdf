"""Makes the table of what drafters' scores are worth before anything was learned.

    offshoot bench MODEL --spec --workload FILE --arms suffix,rest,medusa --json > one.json
    python3 scripts/drafting_prior.py one.json ... > crates/offshoot-engine/data/drafting_prior.json

Hits and guesses of all files are added up by drafter, class and score, and scaled down to at most
MOST guesses in a cell, so that what a text shows soon counts more than the table.
"""

import json
import sys

MOST = 24.0


def main(paths):
    sums = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            learned = json.load(file)["learned"]
        for entry in learned:
            if entry["arm"] != entry["drafter"]:
                continue  # of several drafters only those guesses that were grown were seen
            empty = [[[0.0, 0.0] for _ in cells] for cells in entry["counts"]]
            table = sums.setdefault(entry["drafter"], empty)
            for cells, new in zip(table, entry["counts"]):
                for cell, (hits, seen) in zip(cells, new):
                    cell[0] += hits
                    cell[1] += seen
    for table in sums.values():
        for cells in table:
            for cell in cells:
                scale = min(1.0, MOST / cell[1]) if cell[1] > 0 else 0.0
                cell[:] = [round(cell[0] * scale, 2), round(cell[1] * scale, 2)]
    rows = ",\n".join(
        f' "{name}": [\n' + ",\n".join("  " + json.dumps(cells) for cells in table) + "\n ]"
        for name, table in sorted(sums.items())
    )
    print("{\n" + rows + "\n}")


main(sys.argv[1:])
