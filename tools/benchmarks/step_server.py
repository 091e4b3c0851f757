"""Makes training steps of a config on request, with the package of the checkout in the working directory.

Started by ``step_against.py``: reads numbers of steps, a line each, and answers with the time of a step in JSON.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

# The package and the benchmark of the checkout, not those beside this file
sys.path[0] = str(Path('tools/benchmarks').resolve())

import train_speed  # noqa: E402


def main() -> None:
    cfg = train_speed.prepare(train_speed.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        noise = Path(folder, 'noise')
        train_speed.make_noise(noise, cfg.train_dataloader.batch_size)
        train_speed.set_data_root(cfg, str(noise))
        trainer = train_speed.Trainer(cfg, folder, {}, synthetic=True)
        for line in sys.stdin:
            iterations = int(line)
            started, cpu_started = time.perf_counter(), time.process_time()
            trainer.step(iterations)
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            answer = dict(
                seconds=seconds / iterations, cpu_seconds=cpu_seconds / iterations, batch_size=trainer.batch_size
            )
            print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
