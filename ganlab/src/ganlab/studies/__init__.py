"""Settings compared: a task trained with each of them from several seeds, judged by a fixed rule.

A study asks one question. It changes one thing at a time against a baseline, trains every setting
from the same seeds on the same tiles, and measures all of them on the same tiles of another share,
so that differences are paired. What counts as a difference is written down before the first run.
"""

from ganlab.studies.questions import STUDIES, Study, changed
from ganlab.studies.runs import Outcome, read_study, run_study, table
from ganlab.studies.verdicts import Comparison, Rule, compare

__all__ = [
    "STUDIES",
    "Comparison",
    "Outcome",
    "Rule",
    "Study",
    "changed",
    "compare",
    "read_study",
    "run_study",
    "table",
]
