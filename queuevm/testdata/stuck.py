"""A program that comes to a stop: stuck.py VERB [PORT...]."""
import signal
import sys
import threading
import time

import mvm

verb, ports = sys.argv[1], [mvm.open(name) for name in sys.argv[2:]]
if verb == "fill":
    while True:
        ports[0].enqueue(bytes(1000))
elif verb == "take":
    for _ in ports[0]:
        pass
elif verb == "any":
    mvm.wait(ports)
elif verb == "join":
    t = threading.Thread(target=lambda: list(ports[0]))
    t.start()
    t.join()
elif verb == "timed":
    ports[0].dequeue(1000)
elif verb == "sleep":
    time.sleep(1000)
elif verb == "take+alarm":
    signal.signal(signal.SIGALRM, lambda *_: sys.exit())
    signal.alarm(1000)
    list(ports[0])
elif verb == "take+timer":
    threading.Timer(1000, lambda: None).start()
    list(ports[0])
else:
    sys.exit("what is %s?" % verb)
