"""Training: any task, in a run directory that anyone can read.

``train`` starts a run, ``resume`` continues one exactly, ``load_task`` takes a trained model out.
"""

from ganlab.training.runs import load_task, resume, train
from ganlab.training.trainer import Trainer

__all__ = ["Trainer", "load_task", "resume", "train"]
