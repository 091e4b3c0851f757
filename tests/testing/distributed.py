"""Runs test functions in several gloo processes; the workers start once and serve all tests of a session."""

import atexit
import importlib
import importlib.util
import inspect
import logging
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait

import numpy as np
import torch
import torch.distributed as dist

TIMEOUT = 300.0
"""Seconds that the ranks have in all for one call."""

_GRACE = 2.0
_pools = {}


class DistributedTestError(RuntimeError):
    """A rank failed, died or did not finish in time."""


def run_distributed(function, *args, world_size=2, timeout=TIMEOUT):
    """Call ``function(rank, world_size, *args)`` in every rank of a gloo process group.

    The workers stay alive between calls; each call gets a fresh process group (also for ``mmengine.dist``), the
    seed 0 on all ranks, MMPretrain's scope and no MMEngine singletons. Arguments and results are pickled: tensors
    arrive as copies.

    Args:
        function: Callable defined at the top level of a module.
        *args: Picklable arguments, the same for all ranks.
        world_size (int): Number of processes.
        timeout (float): Seconds until all ranks are killed.

    Returns:
        list: What the function returned on rank 0, 1, ...

    Raises:
        DistributedTestError: Some rank raised (its traceback is in the message), died or was too slow.
    """
    if '<' in function.__qualname__:
        raise ValueError(f'{function.__qualname__} is not importable: define it at the top level of its module')
    pool = _pools.get(world_size) or _pools.setdefault(world_size, _WorkerPool(world_size))
    try:
        return pool.run(function, args, timeout)
    except BaseException:
        _pools.pop(world_size).kill()
        raise


def reset_global_state(seed=0):
    """Seed all generators and forget the singletons that MMEngine keeps per process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if 'mmengine' not in sys.modules:
        return
    from mmengine.logging import MMLogger
    from mmengine.utils import ManagerMixin

    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
    classes = [ManagerMixin]
    while classes:
        current = classes.pop()
        current._instance_dict.clear()
        classes.extend(current.__subclasses__())


class _WorkerPool:
    """Spawned processes, one per rank, each with a pipe for tasks and results."""

    def __init__(self, world_size):
        context = multiprocessing.get_context('spawn')
        self.processes, self.pipes = [], []
        for rank in range(world_size):
            pipe, worker_pipe = context.Pipe()
            process = context.Process(target=_serve, args=(worker_pipe, rank, world_size))
            process.start()
            worker_pipe.close()
            self.processes.append(process)
            self.pipes.append(pipe)

    def run(self, function, args, timeout):
        location = function.__module__, inspect.getfile(function), function.__qualname__
        # The arguments are pickled apart: their classes may live in the module that holds the function.
        arguments = pickle.dumps(args)
        with tempfile.TemporaryDirectory() as folder:
            task = pickle.dumps((list(sys.path), location, arguments, f'file://{folder}/rendezvous', timeout))
            for pipe in self.pipes:
                pipe.send_bytes(task)
            results, failures = self._collect(time.monotonic() + timeout)
        if failures:
            raise DistributedTestError('\n'.join(f'rank {rank}: {text}' for rank, text in sorted(failures.items())))
        return [results[rank] for rank in range(len(self.pipes))]

    def _collect(self, deadline):
        """Wait for every rank; after a failure only for a moment, as the others may hang in a collective."""
        waiting = dict(enumerate(self.pipes))
        results, failures = {}, {}
        while waiting:
            ready = wait(waiting.values(), max(0.0, deadline - time.monotonic()))
            if not ready:
                failures.update((rank, 'did not finish in time, killed') for rank in waiting if not failures)
                break
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                ok, value = self._receive(rank)
                (results if ok else failures)[rank] = value
                del waiting[rank]
            if failures:
                deadline = min(deadline, time.monotonic() + _GRACE)
        return results, failures

    def _receive(self, rank):
        try:
            return pickle.loads(self.pipes[rank].recv_bytes())
        except (EOFError, ConnectionError):
            self.processes[rank].join(_GRACE)
            return False, f'died with exit code {self.processes[rank].exitcode}'

    def kill(self):
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()


@atexit.register
def _kill_all():
    while _pools:
        _pools.popitem()[1].kill()


def _load(module_name, file, qualified_name):
    """Find a function by module name, or by file where pytest made up the name."""
    if module_name not in sys.modules:
        try:
            importlib.import_module(module_name)
        except ImportError:
            specification = importlib.util.spec_from_file_location(module_name, file)
            module = importlib.util.module_from_spec(specification)
            sys.modules[module_name] = module
            specification.loader.exec_module(module)
    value = sys.modules[module_name]
    for name in qualified_name.split('.'):
        value = getattr(value, name)
    return value


def _serve(pipe, rank, world_size):
    """Work on tasks until the parent closes the pipe."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), GLOO_SOCKET_IFNAME='lo')
    torch.set_num_threads(1)
    # Before the modules of the tests, as in the parent: it makes the others importable on a CPU torch.
    from mm_sop import compat

    compat.apply()

    while True:
        try:
            paths, location, arguments, rendezvous, timeout = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        sys.path[:] = paths
        try:
            function = _load(*location)
            with _process_group(rendezvous, rank, world_size, timeout):
                result = function(rank, world_size, *pickle.loads(arguments))
            answer = pickle.dumps((True, result))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(answer)


@contextmanager
def _process_group(rendezvous, rank, world_size, timeout):
    from mmengine.dist import utils as mmengine_dist
    from mmengine.registry import init_default_scope

    reset_global_state()
    init_default_scope('mmpretrain')
    dist.init_process_group(
        'gloo', init_method=rendezvous, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
    )
    try:
        mmengine_dist.init_local_group(0, world_size)
        # A function without communication could otherwise end on one rank while another still connects.
        dist.barrier()
        yield
    finally:
        mmengine_dist._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()
