"""Tests by files over several processes, where the loss of a process costs the test that it ran and no more."""

from contextlib import suppress
from typing import Any

from xdist.scheduler import LoadFileScheduling


class FileScheduling(LoadFileScheduling):
    """`--dist loadfile` that ends after the crash of a worker.

    xdist 3.8 queues all files of a worker that crashed again, the finished ones too. The next worker that is given one
    of those waits for ever (pytest-xdist, issue 1378); a test that crashes every worker is run by each of them. It also
    gives files to a worker that has not collected its tests yet, which is an error (issue 1362).
    """

    def remove_node(self, node: Any) -> str | None:
        """Queue what the worker had not run; return the test that it ran when it crashed, if it ran one."""
        files = self.assigned_work.pop(node)
        left = [(file, test) for file, tests in files.items() for test, is_done in tests.items() if not is_done]
        if not left:
            return None
        file, crashed = left[0]
        files[file][crashed] = True
        self.registered_collections.pop(node)
        self.workqueue.update({file: tests for file, tests in files.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _reschedule(self, node: Any) -> None:
        """Give work to a worker, or let it end; it runs its last test only when it has another one, or is to end."""
        if node not in self.registered_collections:
            return
        with suppress(OSError):  # it has crashed a moment ago: what it was to run is queued again once that is noticed
            super()._reschedule(node)
            if self._pending_of(self.assigned_work[node]) == 1:
                super()._reschedule(node)
