"""Sends instructions out on each of its ports named program..., and numbers on
each named data...: which and how many there are, and who is at the other end,
the profile says."""
import sys

import mvm

numbers = int(sys.argv[1])
INSTRUCTIONS = ["divisors.c", "collatz.py", "totient.go", "squares.c"]

ports = sorted(mvm.ports())
for k, name in enumerate(p for p in ports if p.startswith("program")):
    source = open(INSTRUCTIONS[k], "rb").read()
    language = INSTRUCTIONS[k].rsplit(".", 1)[1].replace("py", "python")
    port = mvm.open(name)
    port.instruct(b"mvm-instruction 1 %s\n%s" % (language.encode(), source))
    port.end()
for k, name in enumerate(p for p in ports if p.startswith("data")):
    port = mvm.open(name)
    for n in range(k * numbers + 1, (k + 1) * numbers + 1):
        port.enqueue(b"%d" % n)
    port.end()
