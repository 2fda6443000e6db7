"""The threads that share the rows of a large array: ours, so that any number of callers may come at once.

A caller does its part itself and takes what help there is: it waits for nobody who has not begun. So calls from many
threads, from a process that was forked, or while the interpreter shuts down go on, with fewer hands.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

_chosen: int | None = None
_pool: ThreadPoolExecutor | None = None
_lock = Lock()


def available() -> int:
    """The processors this process may use, or OMP_NUM_THREADS where that is fewer."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(count, int(asked)) if asked.isdigit() and int(asked) > 0 else count


def num_threads() -> int:
    return _chosen if _chosen is not None else available()


def set_num_threads(count: int | None, /) -> None:
    """How many threads a call may use, the caller's own among them, for arrays in the memory of the host.

    Parameters
    ----------
    count : at least 1; None for the default: the processors that the process may use (its affinity mask), or
        OMP_NUM_THREADS where that is fewer. torch tensors keep to torch.get_num_threads() as well.

    Raises
    ------
    TypeError, ValueError : count is no integer of at least 1.

    Notes
    -----
    Answers are the same bits whatever the number. Small arrays are computed by the caller alone, and threads start with
    the first array that is large enough.

    Examples
    --------
    >>> import softxp
    >>> softxp.set_num_threads(2)
    >>> softxp.set_num_threads(None)
    """
    global _chosen
    if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
        raise TypeError(f"set_num_threads needs an integer or None, got {count!r}.")
    if count is not None and count < 1:
        raise ValueError(f"set_num_threads needs at least 1, got {count}.")
    _chosen = count


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None or _pool._max_workers < count:  # an outgrown pool ends with the work it has
            _pool = ThreadPoolExecutor(count, thread_name_prefix="softxp")
        return _pool


def _forget() -> None:
    """After a fork, in the child: the helpers stayed with the parent, and so may whoever held the lock."""
    global _pool, _lock
    _pool, _lock = None, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def share(task: Callable[..., Any], pieces: Iterable[tuple[Any, ...]], threads: int) -> None:
    """task(*piece) for each piece, by up to `threads` threads. The first error is raised when all have stopped."""
    waiting = deque(pieces)

    def work() -> None:
        while True:
            try:
                piece = waiting.popleft()
            except IndexError:
                return
            task(*piece)

    helpers = []
    try:
        for _ in range(min(threads, len(waiting)) - 1):
            helpers.append(_helpers(threads - 1).submit(work))
    except RuntimeError:  # the interpreter is shutting down: no thread starts any more
        pass
    try:
        work()
    finally:
        waiting.clear()
        _stop(helpers)


def _stop(helpers: list[Any]) -> None:
    """Until all have stopped: they hold addresses of arrays that their caller may let go of, by Ctrl-C for example."""
    interrupted = None
    running = [helper for helper in helpers if not helper.cancel()]
    while running:
        try:
            wait(running)
            break
        except KeyboardInterrupt as interrupt:
            interrupted = interrupt
    if interrupted is not None:
        raise interrupted
    for helper in running:
        helper.result()
