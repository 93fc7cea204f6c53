"""Worker processes that start cleanly and never outlive the process that started them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait

from ganlab.errors import InputError

GUARD = (
    'in a script, what starts them must stand under `if __name__ == "__main__":`, because each '
    "of them begins by importing the script"
)
"""Why worker processes do not start."""


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of new processes, which end with this one, even if it is killed.

    Raises:
        InputError: they do not start, or one of them ended before its work was done.
    """
    # A forked process would share the open files, and their positions, with this one.
    spawn = multiprocessing.get_context("spawn")
    started = False
    try:
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as made:
            try:
                made.submit(os.getpid).result()
                started = True
                yield made
            finally:
                # On the way out of an interruption, too: what is waiting is not begun.
                made.shutdown(cancel_futures=True)
    except BrokenProcessPool:
        if not started:
            raise InputError(
                f"the {workers} worker processes do not start: {GUARD}; or give workers=1"
            ) from None
        raise InputError(
            f"one of the {workers} worker processes was ended from outside, perhaps for want of "
            "memory; nothing was left behind: use fewer workers"
        ) from None


def leave_if_main_is_being_imported() -> None:
    """End a worker process that imports an unguarded script, which is about to start workers.

    To be called first by whatever starts workers. The process ends without a word, and the one
    that started it says what is wrong, once.
    """
    # What multiprocessing itself looks at before it explains the same in twenty lines.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)


def _end_with_parent() -> None:
    """Leave interruptions to the parent, and end at once when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
