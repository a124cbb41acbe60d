"""Tasks with certain answers, made from free texts: RULER-style ones, look-ups, and context-intensive ones.

    niah_single_1     one number hidden in repeated noise
    niah_single_2     one number hidden in a novel
    niah_single_3     one uuid hidden in a novel
    niah_multikey_1   one number among three other keys' in a novel
    niah_multikey_2   one number; every other line is another key's
    niah_multikey_3   the same with uuids for keys and values
    niah_multivalue   four numbers of one key in a novel
    niah_multiquery   four keys' numbers in a novel
    vt                five variables with the same value, through four assignments
    cwe               the ten most common words of a list
    fwe               the three most frequent words of a coded text
    qa_1              a person's town, told among a novel's paragraphs
    qa_2              the town of a person's employer, told in two places
    verse             how a verse of the Bible begins
    next_line         the line of a play after a quoted one
    json              all people told of in a novel, as JSON records
    multineedle       all numbers of one kind of key in a novel
    table             one column of a table's rows with a given trade
    turns             one of four keys' numbers in a novel, after two of the others were asked for and answered
    said              one of three numbers that the model itself gave in an earlier turn, before a passage of a novel

Scores compare a method with full attention on the same samples. They are not RULER's published numbers: the
texts differ.
"""

from .aggregation import CWE, FWE
from .dialogue import DIALOGUE
from .fit import Fit
from .intensive import INTENSIVE
from .niah import NIAH
from .questions import QA
from .quoting import QUOTING
from .sample import Exchange, Sample, Task
from .tracing import VT

TASKS: dict[str, Task] = {task.name: task for task in (*NIAH, VT, CWE, FWE, *QA, *QUOTING, *INTENSIVE, *DIALOGUE)}


def select(names: str | None) -> list[Task]:
    """The tasks of a comma-separated list, in its order; all for None. Raises ValueError for an unknown name."""
    wanted = list(TASKS) if names is None else [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in TASKS]
    if unknown:
        raise ValueError(f"no task {', '.join(map(repr, unknown))}; known: {', '.join(TASKS)}")
    return [TASKS[name] for name in dict.fromkeys(wanted)]


__all__ = ["TASKS", "Exchange", "Fit", "Sample", "Task", "select"]
