"""Running protocols one after the other; what is finished is not run again."""

import logging
import shutil
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress

from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.logging import print_log

from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.evaluation.cards import card_key, make_card, software_versions
from mm_sop.evaluation.protocol import EvaluationContext, MissingDataError, Protocol
from mm_sop.evaluation.results import EvaluationResults, finished_record, format_figure


def run_protocols(protocols: Mapping[str, Protocol], context: EvaluationContext, results: EvaluationResults) -> list:
    """Run protocols on one encoder.

    A protocol whose result is kept under the same card is not run again, so that an interrupted evaluation goes on; so
    do the parts that a protocol had finished. One whose data are absent is recorded as skipped, one that raises as
    failed, and both are tried again the next time. Of several processes the others may wait for one that has failed:
    there the error is raised after it is recorded.

    Args:
        protocols: Protocols by registered name.
        context: What they run with; its ``readouts`` become those of all protocols.
        results: Where the records go.

    Returns:
        Records of these protocols.
    """
    context.readouts = tuple(dict.fromkeys(readout for protocol in protocols.values() for readout in protocol.readouts))
    # Only the main process is sure to see the results.
    shared = [results.records]
    broadcast_object_list(shared)
    results.records = shared[0]
    return [
        _run(name, protocol, context, results, f'{number} of {len(protocols)}')
        for number, (name, protocol) in enumerate(protocols.items(), start=1)
    ]


def _run(name: str, protocol: Protocol, context: EvaluationContext, results: EvaluationResults, progress: str) -> dict:
    base = dict(protocol=name, key='', checkpoint=context.encoder.identity['checkpoint'], setup=context.setup, card={})
    started = time.perf_counter()
    try:
        data = protocol.find_data(context)
        card = make_card(name, protocol, context, data)
        kept = results.find(card_key(card))
        if kept is not None:
            print_log(f'{name} ({progress}) is finished already', logger='current')
            return kept
        print_log(f'{name} ({progress}) ...', logger='current')
        context.parts = context.work_dir / 'parts' / card_key(card)
        with isolated_random_state(cuda=True):
            result = protocol.run(context, data)
    except MissingDataError as error:
        return _finish(results, dict(base, status='skipped', reason=str(error), seconds=0.0))
    except Exception as error:  # whatever one protocol raises, the others are to be run
        print_log(traceback.format_exc(), 'current', logging.ERROR)
        reason, seconds = f'{type(error).__name__}: {error}', round(time.perf_counter() - started, 2)
        record = _finish(results, dict(base, status='failed', reason=reason, seconds=seconds))
        if get_world_size() > 1:
            raise
        return record
    base.update(key=card_key(card), card=dict(card, software=software_versions()))
    record = _finish(results, *finished_record(base, result, time.perf_counter() - started))
    if is_main_process():
        shutil.rmtree(context.parts, ignore_errors=True)
        with suppress(OSError):  # others are interrupted, or there has been none
            context.parts.parent.rmdir()
    return record


def _finish(results: EvaluationResults, record: dict, pictures=()) -> dict:
    if is_main_process():
        results.add(record, pictures)
    print_log(f'{record["protocol"]}: {_summarize(record)}', logger='current')
    return record


def _summarize(record: Mapping) -> str:
    if record['status'] != 'done':
        return f'{record["status"]}, {record["reason"]}'
    scores = [f'{name} {format_figure(score)}' for name, score in list(record['scores'].items())[:6]]
    return f'{", ".join(scores)} ({record["seconds"]:.1f} s)'
