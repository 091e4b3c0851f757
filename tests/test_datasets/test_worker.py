import multiprocessing
import os
import select
import signal
import subprocess
import sys
import textwrap

from torch.utils.data import DataLoader

from mm_sop.datasets import pretrain_worker_init
from mm_sop.datasets.worker import obey_parent_only

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class ProcessIds:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return os.getpid()


def test_workers_obey_a_termination_by_their_parent():
    iterator = iter(DataLoader(ProcessIds(), num_workers=1, worker_init_fn=pretrain_worker_init))
    process_id = int(next(iterator))
    worker = next(child for child in multiprocessing.active_children() if child.pid == process_id)
    os.kill(process_id, signal.SIGTERM)
    worker.join(20)
    assert worker.exitcode == 0


def test_a_worker_that_waits_ends_with_its_parent():
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        own = os.getpid()
        if os.fork() == 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            os.write(writer, b'x')
            obey_parent_only(own)
        signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b'x'
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    # The end of the last process that holds the pipe.
    assert select.select([reader], [], [], 60)[0] and os.read(reader, 1) == b''
    os.close(reader)


def test_signals_to_the_group_leave_workers_alive_and_python_exits():
    script = textwrap.dedent("""
        import signal
        from torch.utils.data import DataLoader
        from mm_sop.datasets import pretrain_worker_init
        from test_worker import SIGNALS, ProcessIds

        received = []
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: received.append(number))
        loader = DataLoader(ProcessIds(), num_workers=2, persistent_workers=True, worker_init_fn=pretrain_worker_init)
        iterator = iter(loader)
        workers = {int(next(iterator)) for _ in range(4)}
        print('ready', flush=True)
        input()
        # Python ends the workers of an unfinished iterator at exit, which must not hang.
        print({int(process) for process in loader} == workers, sorted(received), flush=True)
        iterator = iter(loader)
    """)
    process = subprocess.Popen(
        [sys.executable, '-c', script],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), *sys.path])),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while 'ready' not in (line := process.stdout.readline()):
            assert line, 'the script ended early'
        for number in SIGNALS:
            os.killpg(process.pid, number)
        output, _ = process.communicate('\n', timeout=60)
    finally:
        process.kill()
    assert output.strip() == f'True {sorted(map(int, SIGNALS))}'
    assert process.returncode == 0
