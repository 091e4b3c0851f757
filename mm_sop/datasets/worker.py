"""Initialization of data-loading worker processes."""

import os
import signal
import threading

import cv2
import torch
from mmengine.registry import FUNCTIONS


@FUNCTIONS.register_module()
def pretrain_worker_init(worker_id: int) -> None:
    """Limit a worker to one thread and protect it from signals that are meant for the training process.

    A signal to the whole process group (Ctrl-C, a cluster's preemption warning) would kill the workers, and the
    training process with them, before it could write its checkpoint. Workers are not seeded here, because
    :class:`SeededDataset` seeds every sample.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Blocked instead of ignored: at exit, multiprocessing terminates workers by this signal and waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=obey_parent_only, args=(os.getppid(),), daemon=True).start()


def obey_parent_only(parent: int) -> None:
    """Exit on a SIGTERM from the training process or after its death; ignore SIGTERM from other processes.

    PyTorch's watchdog does not detect this death while the worker waits for a free slot in the queue of results.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
