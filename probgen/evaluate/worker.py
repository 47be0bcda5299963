"""A process that scores: ``python -m probgen.evaluate.worker``, spoken to through its standard streams.

A message is two lengths (8 bytes each, little endian), a JSON text and bytes of Arrow. First comes the job with the
folder of the model; the answer is ``ready``. Then tasks come, one at a time. Each is answered by its batches, then by
``done`` or by the error. Nothing is pickled, and nothing of the parent's is imported: no main guard is needed.
"""

import dataclasses
import json
import os
import signal
import struct
import sys
import traceback
import warnings
from collections.abc import Mapping
from typing import IO, Any

__all__ = ["main", "receive", "send"]

_HEAD = struct.Struct("<QQ")


def send(stream: IO[bytes], about: Mapping[str, Any], payload: bytes = b"") -> None:
    """Writes a message."""
    text = json.dumps(about).encode()
    stream.write(_HEAD.pack(len(text), len(payload)))
    stream.write(text)
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Reads a message; None where the other side is gone, in the middle of one as well."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    sizes = _HEAD.unpack(head)
    text, payload = stream.read(sizes[0]), stream.read(sizes[1])
    return (json.loads(text), payload) if (len(text), len(payload)) == sizes else None


def main() -> None:
    """Serves one parent until it closes the stream. What is printed meanwhile goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's: it ends the stream
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    try:
        _serve(incoming, outgoing)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone


def _serve(incoming: IO[bytes], outgoing: IO[bytes]) -> None:
    if (first := receive(incoming)) is None:
        return
    import torch

    from probgen import store
    from probgen.evaluate.table.job import Job

    about = first[0]
    torch.set_num_threads(about["threads"])
    job = Job.from_json(store.load(about["model"]), about["job"])
    send(outgoing, {"is": "ready"})
    while (message := receive(incoming)) is not None:
        _answer(job, *message, outgoing)


def _answer(job: Any, task: dict[str, Any], payload: bytes, outgoing: IO[bytes]) -> None:
    """The batches of a task but those that the parent has, then how it ended."""
    from probgen.errors import ProbgenError
    from probgen.evaluate.table.job import told
    from probgen.frames import sinks

    with warnings.catch_warnings(record=True) as noted:
        try:
            for i, (table, stats) in enumerate(job.batches(task, payload)):
                if i >= task["have"]:
                    send(outgoing, {"is": "batch", "stats": dataclasses.asdict(stats)}, sinks.packed(table))
            ended: dict[str, Any] = {"is": "done"}
        except ProbgenError as problem:
            ended = {"is": "error", "error": told(problem)}
        except BrokenPipeError:
            raise
        except Exception:
            ended = {"is": "defect", "text": traceback.format_exc()}
    notes = [str(note.message) for note in noted]
    send(outgoing, {**ended, "notes": list(dict.fromkeys(notes))})


if __name__ == "__main__":
    main()
    sys.exit(0)
