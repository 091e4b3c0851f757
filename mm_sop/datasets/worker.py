"""Set-up of data-loading worker processes."""

import os
import signal
import threading

import cv2
import torch
from mmengine.registry import FUNCTIONS


@FUNCTIONS.register_module()
def pretrain_worker_init(worker_id: int) -> None:
    """Limit a worker to one thread and shield it from signals that are meant for the training process.

    A signal to the whole process group (Ctrl-C, a cluster's pre-emption warning) would kill the workers, and the
    training process with them, before it could write its checkpoint. Workers seed nothing here: every sample is seeded
    by :class:`SeededDataset`.

    Args:
        worker_id (int): Number of the worker, as PyTorch passes it.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Not to be ignored altogether: multiprocessing ends workers by this signal when Python exits, and then waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=obey_parent_only, args=(os.getppid(),), daemon=True).start()


def obey_parent_only(parent: int) -> None:
    """Leave on a SIGTERM from the training process or after its death, ignore all other signals.

    PyTorch's own watchdog does not see that death while the worker waits for the queue of results to become free.

    Args:
        parent: Number of the training process.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
