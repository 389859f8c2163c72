"""Reads positions, as JSON lists of years and two distances each, and says how
long one round takes."""
import json

import mvm

rounds, before = [], None
with open("orbit.csv", "w") as table:
    table.write("years,x,y\n")
    for item in mvm.open("positions"):
        numbers = json.loads(item)
        for years, x, y in zip(*[iter(numbers)] * 3):
            table.write("%r,%r,%r\n" % (float(years), float(x), float(y)))
            if before and before[1] < 0 <= y:
                share = -before[1] / (y - before[1])
                rounds.append(before[0] + share * (years - before[0]))
            before = years, y
print("a round takes %.3f years" % rounds[0])
