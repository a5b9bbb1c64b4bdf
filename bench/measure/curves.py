"""Losses of runs over their steps as a picture."""

import html

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 320, 56, 16, 40
COLOURS = ("#2563eb", "#dc2626", "#059669", "#7c3aed", "#d97706")
# Single steps of small batches say little.
WINDOW = 21


def medians(values, window=WINDOW):
    """The median of the last values up to each, without those that are none."""
    found = []
    for end in range(1, len(values) + 1):
        last = sorted(value for value in values[max(0, end - window):end] if value is not None)
        found.append(last[len(last) // 2] if last else None)
    return found


def svg(methods):
    """A line for each run of each method, whose colour is the method's; the step is a share of the run,
    as runs of different methods have different lengths."""
    lines = [(name, medians(losses)) for name, runs in methods.items() for losses in runs]
    most = max((value for _, line in lines for value in line if value is not None), default=1.0)
    most = most or 1.0
    colours = dict(zip(methods, COLOURS * (1 + len(methods) // len(COLOURS))))
    wide, high = WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM

    def point(at, count, value):
        x = LEFT + wide * (at + 1) / count
        return f"{x:.1f},{TOP + high * (1 - value / most):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
             f'<path d="M{LEFT} {TOP}V{TOP + high}H{LEFT + wide}" fill="none" stroke="black"/>',
             f'<text x="8" y="{TOP + 10}">{most:.3g}</text><text x="8" y="{TOP + high}">0</text>',
             f'<text x="{LEFT}" y="{HEIGHT - 8}">training loss, medians of {WINDOW} steps, over the '
             'share of the run</text>']
    for name, line in lines:
        points = " ".join(point(at, len(line), value) for at, value in enumerate(line)
                          if value is not None)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}"/>')
    for number, (name, colour) in enumerate(colours.items()):
        parts.append(f'<text x="{LEFT + wide - 120}" y="{TOP + 16 * (number + 1)}" '
                     f'fill="{colour}">{html.escape(name)}</text>')
    return "\n".join(parts) + "\n</svg>\n"
