"""Arithmetic coding in whole numbers: a symbol of share size / total costs log2(total / size) bits."""

import numpy as np

__all__ = ["Decoder", "Encoder", "cumulated"]

_TOP, _LOW, _BYTES = 1 << 64, 1 << 56, 8
_SCALE = float(1 << 32)


def cumulated(pmf: np.ndarray) -> np.ndarray:
    """Probabilities (B, S) as cumulative whole numbers (B, S + 1) of some 2^32, from 0 to each row's own total.

    What is possible keeps at least 1, however improbable: no symbol costs more than 32 bits, and some S / 2^32 of the
    others' shares pays for it. What is impossible keeps 0.
    """
    sizes = np.floor(pmf * _SCALE).astype(np.int64) + (pmf > 0)
    table = np.zeros((pmf.shape[0], pmf.shape[1] + 1), dtype=np.int64)
    np.cumsum(sizes, axis=1, out=table[:, 1:])
    return table


class Encoder:
    """Symbols to bytes: Martin's (1979) range coder with 64 bits and carries.

    The interval [low, low + range) narrows by each symbol's share; bytes that can't change any more but for a carry
    leave it at the top. A range of at least 2^56 over totals near 2^32 loses less than 2^-23 of each share.
    """

    def __init__(self) -> None:
        self.low, self.range = 0, _TOP
        self.out = bytearray()

    def put(self, start: int, size: int, total: int) -> None:
        """The symbol whose share is [start, start + size) of total; size is at least 1."""
        unit = self.range // total
        self.low += unit * start
        self.range = unit * size
        if self.low >= _TOP:
            self._carry()
        while self.range < _LOW:
            self.out.append(self.low >> 56)
            self.low = (self.low << 8) & (_TOP - 1)
            self.range <<= 8

    def _carry(self) -> None:
        self.low -= _TOP
        place = len(self.out) - 1
        while self.out[place] == 255:
            self.out[place] = 0
            place -= 1
        self.out[place] += 1

    def finish(self) -> bytes:
        """All bytes: the fewest that lie in the interval, whatever would follow them is read as zeros."""
        for kept in range(_BYTES + 1):
            unit = 1 << (64 - 8 * kept)
            value = -(-self.low // unit) * unit
            if value < self.low + self.range:
                break
        self.low = value
        if value >= _TOP:
            self._carry()
        return bytes(self.out) + self.low.to_bytes(_BYTES, "big")[:kept]


class Decoder:
    """The way back, with the same shares in the same order."""

    def __init__(self, code: bytes) -> None:
        self.code, self.place, self.range = code, _BYTES, _TOP
        self.value = int.from_bytes(code[:_BYTES].ljust(_BYTES, b"\0"), "big")

    def take(self, table: np.ndarray) -> int:
        """The next symbol, by a row of cumulative numbers, (S + 1,)."""
        unit = self.range // int(table[-1])
        at = min(self.value // unit, int(table[-1]) - 1)
        symbol = int(table.searchsorted(at, side="right")) - 1
        start, end = int(table[symbol]), int(table[symbol + 1])
        self.value -= unit * start
        self.range = unit * (end - start)
        while self.range < _LOW:
            following = self.code[self.place] if self.place < len(self.code) else 0
            self.place += 1
            self.value = ((self.value << 8) | following) & (_TOP - 1)
            self.range <<= 8
        return symbol
