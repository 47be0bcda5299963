"""n-grams, packing programs and real bits on King James text: python tests/benchmarks/bench_ngram.py [5,7,9]

Bits a byte of the held-out chapters (193,740 bytes), CPU seconds of the fit, bytes a second scored, bytes of the model,
and the size of the coded file beside -log2 p. Published beside: gzip 2.511, xz 1.658 (differences of packed lengths of
the whole held-out text at once), PPMd of order 16 1.304 (adaptive); the prototype's n-gram of order 9 1.377 in 20 s.
"""

import math
import sys
import time

from probgen import datasets
from probgen.evaluate.codec import codec
from probgen.events import BPE, Text
from probgen.models.compressor import Compressor
from probgen.models.ngram import NGram


def clocked(run):
    began = time.process_time()
    return run(), time.process_time() - began


def counted(order, tune, train, held, event=None):
    model, fitting = clocked(lambda: NGram(event or Text(), order).fit(train, seed=0, tune=tune))
    answer, scoring = clocked(lambda: model.log_prob(held))
    size = sum(len(text.encode()) for text in held)
    weight = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    bits = answer.bits_per_byte()
    how = ("tuned" if tune else "formula") + (f", {event.tokens} tokens" if event else "")
    print(
        f"order {order} {how:20s} {bits.value:.4f} bits/byte ± {bits.between_rows:.3f}  fit {fitting:.2f} s"
        f"  score {size / scoring / 1e3:.0f} kB/s  model {weight / 1e6:.1f} MB"
    )
    return model, answer


def real_bits(model, answer, held):
    there = codec(model)
    blob, coding = clocked(lambda: there.compress(held))
    back, decoding = clocked(lambda: there.decompress(blob))
    claimed = -answer.nats.sum() / math.log(2) / 8
    header, payload = there.sizes(blob)
    print(
        f"  codec: claimed {claimed:.1f} bytes, payload {payload}, header {header}; coded in {coding:.1f} s, "
        f"decoded in {decoding:.1f} s, the same: {back == held}"
    )


def main(orders=(5, 7, 9), tunes=(False, True)):
    train, held = datasets.load("kjv").split()
    for order in orders:
        for tune in tunes:
            model, answer = counted(order, tune, train, held)
    real_bits(model, answer, held)
    tokens, learning = clocked(lambda: Text(BPE.learn(train, 2048)))
    print(f"2048 tokens learnt in {learning:.1f} s")
    for order in (3, 5, 7):
        model, answer = counted(order, True, train, held, tokens)
    real_bits(model, answer, held)
    for program in ("gzip", "xz"):
        packer = Compressor(Text(), program).fit(train, seed=0)
        began = time.perf_counter()
        bits = packer.log_prob(held).bits_per_byte().value
        print(
            f"{program}: {bits:.4f} bits/byte of whole chapters, scored in {time.perf_counter() - began:.1f} s (wall)"
        )


if __name__ == "__main__":
    main(*([tuple(map(int, sys.argv[1].split(",")))] if len(sys.argv) > 1 else []))
