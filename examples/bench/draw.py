"""Print and draw a result of `stratakv bench` again, as it did with `--plot`.

python examples/bench/draw.py docs/results/breakdown_smollm2_cpu.json PICTURE.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from stratakv.runtime.bench.breakdown_plot import draw_breakdown
from stratakv.runtime.bench.plot import draw
from stratakv.runtime.bench.report import describe_row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    for row in result["rows"]:
        print("\n".join(describe_row(row)))
    (draw_breakdown if result["options"].get("breakdown") else draw)(result, options.picture)


if __name__ == "__main__":
    main()
