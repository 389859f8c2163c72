"""Cuts 0 to LIMIT into orders "FROM TO", for whoever takes them."""
import sys

import mvm

limit, orders = int(sys.argv[1]), int(sys.argv[2])
port = mvm.open("orders")
for k in range(orders):
    port.enqueue(b"%d %d" % (limit * k // orders, limit * (k + 1) // orders))
