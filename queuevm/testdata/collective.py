"""The collectives' program in Python: see collective.c."""
import sys

import mvm


def fill(n, seed):
    whole = bytes((seed * 31 + j * 7) & 255 for j in range(256))
    return (whole * (n // 256 + 1))[:n]


def add(a, b):
    return bytes((x + y) & 255 for x, y in zip(a, b))


def total(n, seed):
    whole = bytes(sum((seed + k) * 31 + j * 7 for k in range(c.size)) & 255 for j in range(256))
    return (whole * (n // 256 + 1))[:n]


c = mvm.Collective(sys.argv[1])
own, size = c.index, c.size
for a, argument in enumerate(sys.argv[2:], 2):
    n, seed = int(argument), a * 1000
    c.barrier()
    assert c.broadcast(fill(n, seed + (77 if own else 0))) == fill(n, seed)
    got = c.reduce(fill(n, seed + own), add)
    assert got == (None if own else total(n, seed))
    assert c.allreduce(fill(n, seed + 1 + own), add) == total(n, seed + 1)
    got = c.gather(fill(n, seed + 2 + own))
    assert got == (None if own else [fill(n, seed + 2 + k) for k in range(size)])
    assert c.scatter(None if own else [fill(n, seed + 3 + k) for k in range(size)]) == fill(n, seed + 3 + own)
    got = c.alltoall([fill(n, seed + own * size + k) for k in range(size)])
    assert got == [fill(n, seed + k * size + own) for k in range(size)]
print(own, "of", size)
