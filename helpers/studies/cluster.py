"""Runs on several machines: by the workers of a Dask cluster."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

from joblib import parallel_config

from helpers.support.files import one_line

TIMEOUT_SECONDS = 10  # how long to wait for the scheduler, and for two workers
# Dask's "nanny" makes its workers hand memory back at once, which took 1.7 times as long, and
# forbids them to start the processes that load images.
WORKER_COMMAND = "OMP_NUM_THREADS=1 PYTHONPATH=. dask worker ADDRESS --nthreads 1 --no-nanny"
HOW_TO_START = (
    'pip install "dask[distributed]", then `PYTHONPATH=. dask scheduler` and, for each core, '
    f"`{WORKER_COMMAND}`"
)


@contextmanager
def on_cluster(scheduler: str | None, shared: object) -> Iterator[None]:
    """Let a Dask cluster's workers make the runs that joblib starts for as long as this lasts.

    When a worker dies, another one goes on with its run, from the last epoch. A run under way at
    Ctrl-C goes on to its end on its worker, but nobody takes its result.

    Args:
        scheduler: the address of Dask's scheduler, tcp://...; None: runs are made here.
        shared: an argument of all runs, such as the study with its images. It is sent to each
            worker once.

    Raises:
        OSError: there is no cluster that will do, or no Dask.
        RuntimeError: the cluster was lost on the way.
    """
    if scheduler is None:
        yield
        return
    with ExitStack() as stack:
        try:
            from dask.distributed import CancelledError, Client, KilledWorker  # Dask is optional

            address = urlsplit(scheduler)
            # Where nobody listens, Dask itself would try for long, or hang.
            socket.create_connection((address.hostname, address.port), timeout=5).close()
            client = stack.enter_context(Client(scheduler, timeout=TIMEOUT_SECONDS))
            _prepare(client)
            stack.enter_context(parallel_config(backend="dask", client=client, scatter=[shared]))
        except Exception as error:  # of many kinds: Dask, joblib and the network fail in their ways
            reason = one_line(error)
            message = f"no cluster to use at {scheduler} ({reason}): {HOW_TO_START}"
            raise OSError(message) from None
        try:
            yield
        except (CancelledError, KilledWorker) as error:
            message = f"{one_line(error)}; what was done is in the table: run this again to go on"
            raise RuntimeError(message) from None


def _prepare(client: Any) -> None:
    """Raise an error for a cluster on which joblib would wait forever or runs would go wrong."""
    client.run_on_scheduler(one_line, "")  # fails where the scheduler cannot import the project
    client.wait_for_workers(2, TIMEOUT_SECONDS)  # for a single one, joblib would make the runs here
    if max(client.nthreads().values()) > 1:
        raise ValueError("workers of one thread each are needed: a process has one seed")
    client.amm.stop()  # else Dask keeps a single copy of the images, which is lost with its worker
