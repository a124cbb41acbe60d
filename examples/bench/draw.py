"""Draw a result of `stratakv bench` again, as its `--plot` did.

python examples/bench/draw.py docs/results/breakdown_smollm2_cpu.json PICTURE.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from stratakv.runtime.bench.breakdown_plot import draw_breakdown
from stratakv.runtime.bench.plot import draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    (draw_breakdown if result["options"].get("breakdown") else draw)(result, options.picture)


if __name__ == "__main__":
    main()
