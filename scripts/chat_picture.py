#!/usr/bin/env python3
"""Makes docs/chat.svg: types into a chat with smollm2 in a real terminal and draws what it shows.

Needs tmux, the `offshoot` to be shown on the PATH, and the model pulled. Run it anew when the look
of a chat changes: cargo build --release && PATH="$PWD/target/release:$PATH" scripts/chat_picture.py
"""

import html
import os
import pathlib
import subprocess
import tempfile
import time

COLUMNS, ROWS = 88, 28
CHARACTER_W, LINE_H, MARGIN = 8.4, 19, 16
PAPER, INK, TYPED, FAINT = "#1e2127", "#c8ccd4", "#98c379", "#7f848e"

SECONDS_MAX = 120
LINES_BEFORE_CTRL_C = 3

# What is typed, and what the screen shows when it is time to go on.
SESSION = [
    ("offshoot run smollm2 --seed 2\n", ">>> "),
    ("Explain what a compiler does, in one sentence.\n", ">>> "),
    ('"""Say the same\nto a child."""\n', ">>> "),
    ("/set max-tokens 400\n", ">>> "),
    ("/clear\n", "forgotten\n>>> "),
    ("Write a long story about a fox.\n", None),
    ("\x03", "(stopped)\n>>> "),
    ("/save talk.json\n", "saved to talk.json\n>>> "),
]


class Terminal:
    """A tmux session of its own, on a socket of its own."""

    def __init__(self, folder):
        self.tmux = ["tmux", "-S", os.path.join(folder, "socket"), "-f", os.devnull]
        shell = "env PS1='$ ' sh"
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        self.call("new-session", "-d", "-s", "chat", "-c", folder, *size, shell)

    def call(self, *words):
        done = subprocess.run([*self.tmux, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def lines(self):
        text = self.call("capture-pane", "-p", "-t", "chat")
        return [line.rstrip() for line in text.rstrip().split("\n")]

    def type(self, text, then):
        """Types `text`, then waits until the screen ends with `then`, or for lines of answer."""
        before = self.lines()
        for key in text:
            names = {"\n": "Enter", "\x03": "C-c"}
            literal = [] if key in names else ["-l"]
            self.call("send-keys", "-t", "chat", *literal, names.get(key, key))
            time.sleep(0.02)
        end = time.monotonic() + SECONDS_MAX
        time.sleep(0.5 if then else 0)
        while True:
            lines = self.lines()
            shown = "\n".join(lines).rstrip()
            enough = len(lines) > len(before) + LINES_BEFORE_CTRL_C
            if enough if then is None else lines != before and shown.endswith(then.rstrip()):
                return
            if time.monotonic() > end:
                raise SystemExit(f"waited for {then!r} in vain:\n{shown}")
            time.sleep(0.05)


def drawn(lines):
    """The lines as an SVG of a terminal's window."""
    width = round(COLUMNS * CHARACTER_W + 2 * MARGIN)
    height = len(lines) * LINE_H + 2 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="A chat with smollm2">',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" '
        'xml:space="preserve">',
    ]
    for row, line in enumerate(lines):
        if not line:
            continue
        typed = line.startswith((">>> ", "... ", "$ "))
        said = line.startswith(("/help lists", "(stopped)", "saved to", "max-tokens is", "forgotten"))
        colour = TYPED if typed else FAINT if said else INK
        y = MARGIN + (row + 0.75) * LINE_H
        length = len(line) * CHARACTER_W
        out.append(
            f'<text x="{MARGIN}" y="{y:.1f}" fill="{colour}" textLength="{length:.1f}" '
            f'lengthAdjust="spacingAndGlyphs">{html.escape(line)}</text>'
        )
    out += ["</g>", "</svg>", ""]
    return "\n".join(out)


def main():
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(folder)
        try:
            time.sleep(1)
            for text, then in SESSION:
                terminal.type(text, then)
            lines = terminal.lines()
        finally:
            terminal.call("kill-server")
    target = pathlib.Path(__file__).resolve().parent.parent / "docs" / "chat.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text(drawn(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
