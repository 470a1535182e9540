"""Puts real output into the Markdown pages.

A block between `<!-- output of: COMMAND (in FOLDER) -->` and `<!-- end of output -->` is replaced by what the command
prints when it is run in the folder. `--check` writes nothing and exits with 1 if a page is stale.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md",)
BLOCK = re.compile(
    r"(?P<begin><!-- output of: (?P<command>[^\n]+?) \(in (?P<folder>[^)\n]+)\) -->\n)"
    r"(?P<old>.*?)(?P<end><!-- end of output -->)",
    re.DOTALL,
)


def output(command: str, folder: Path) -> str:
    """What a command of acclint prints, errors included, on a terminal 100 columns wide."""
    arguments = shlex.split(command)
    if arguments[0] != "acclint":
        raise SystemExit(f"only acclint's own commands are run, not {command!r}")
    environment = {
        **os.environ,
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
    }
    done = subprocess.run(
        [sys.executable, "-m", "acclint", *arguments[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout.rstrip()


def regenerated(text: str) -> str:
    """The page with every block brought up to date."""

    def fresh(match: re.Match[str]) -> str:
        shown = f"```console\n$ {match['command']}\n{output(match['command'], ROOT / match['folder'])}\n```\n"
        return f"{match['begin']}{shown}{match['end']}"

    return BLOCK.sub(fresh, text)


def main() -> int:
    stale = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = regenerated(old)
        if new != old:
            stale.append(name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8", newline="\n")
    for name in stale:
        print(f"{name}: {'stale; run python docs/regenerate.py' if '--check' in sys.argv else 'updated'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
