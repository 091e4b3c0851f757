"""Runs protocols one after the other; finished ones, whose card is known, are not run again."""

import logging
import shutil
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict

import mmengine
import mmpretrain
import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.logging import print_log

from mm_sop import __version__
from mm_sop.datasets.randomness import isolated_random_state
from mm_sop.evaluation.context import EvaluationContext, MissingDataError, Protocol
from mm_sop.evaluation.features.extraction import READOUTS
from mm_sop.evaluation.features.identity import content_key, describe_source
from mm_sop.evaluation.results import EvaluationResults, finished_record, format_value
from mm_sop.utils.files import hash_file

_SHOWN_SCORES = 6


def make_card(name: str, protocol: Protocol, context: EvaluationContext, data: Mapping) -> dict:
    """Describe all that the scores of a protocol depend on, JSON-serializable: equal cards mean equal scores."""
    return dict(
        protocol=name,
        version=protocol.version,
        options=asdict(protocol),
        encoder=context.encoder.identity,
        transform=asdict(context.transform),
        layers={readout: READOUTS[readout] for readout in protocol.readouts},
        dtype=context.cache.dtype,
        data={key: describe_source(source) for key, source in data.items()},
        lists={key: hash_file(path) for key, path in protocol.find_lists(context).items()},
        seed=context.seed,
    )


def run_protocols(
    protocols: Mapping[str, Protocol], context: EvaluationContext, results: EvaluationResults
) -> list[dict]:
    """Run protocols on one encoder.

    A protocol with a stored result under the same card is not run again, so that an interrupted evaluation continues;
    an unfinished protocol continues after its stored partial results. Protocols without data are recorded as skipped,
    those that raise as failed, and both are tried again the next time. With several processes an error is raised after
    it is recorded, as the other processes may be waiting.

    Args:
        protocols: Protocols by registered name.
        context: Network and settings; its ``readouts`` become those of all protocols.
        results: Where the records go, which are returned.
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
        key = content_key(card)
        stored = results.find(key)
        if stored is not None:
            print_log(f'{name} ({progress}) is finished already', logger='current')
            return stored
        print_log(f'{name} ({progress}) ...', logger='current')
        context.parts = context.work_dir / 'parts' / key
        with isolated_random_state(cuda=True):
            result = protocol.run(context, data)
    except MissingDataError as error:
        return _record(results, dict(base, status='skipped', reason=str(error), seconds=0.0))
    except Exception as error:  # the failure of a protocol must not stop the others
        print_log(traceback.format_exc(), 'current', logging.ERROR)
        reason, seconds = f'{type(error).__name__}: {error}', round(time.perf_counter() - started, 2)
        record = _record(results, dict(base, status='failed', reason=reason, seconds=seconds))
        if get_world_size() > 1:
            raise
        return record
    modules = dict(torch=torch, numpy=np, mmengine=mmengine, mmpretrain=mmpretrain)
    software = dict(mm_sop=__version__, **{name: module.__version__ for name, module in modules.items()})
    base.update(key=key, card=dict(card, software=software))
    record = _record(results, finished_record(base, result, time.perf_counter() - started), result.data)
    if is_main_process():
        shutil.rmtree(context.parts, ignore_errors=True)
        with suppress(OSError):  # the folder is missing, or has partial results of other protocols
            context.parts.parent.rmdir()
    return record


def _record(results: EvaluationResults, record: dict, data: Mapping | None = None) -> dict:
    if is_main_process():
        results.add(record, data)
    summary = f'{record["status"]}, {record.get("reason")}'
    if record['status'] == 'done':
        scores = [f'{name} {format_value(score)}' for name, score in list(record['scores'].items())[:_SHOWN_SCORES]]
        summary = f'{", ".join(scores)} ({record["seconds"]:.1f} s)'
    print_log(f'{record["protocol"]}: {summary}', logger='current')
    return record
