"""After how many steps of Collatz's a number comes to 1."""
import mvm

out = mvm.open("out")
for item in mvm.open("in"):
    n, steps = int(item), 0
    while n != 1:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    out.enqueue(b"collatz %d %d" % (int(item), steps))
