# CPython: three nested functions that burn, run by the system's interpreter.
#
# usage: python3 busy.py [SECONDS]
import signal
import sys


def inner(value):
    for i in range(1000):
        value = (value * 0x2545F491 + i) & 0xFFFFFFFF
    return value


def middle(value):
    return sum(sorted(inner(value + i) for i in range(10)))


def outer():
    value = 1
    while True:
        value = middle(value) & 0xFFFF


signal.signal(signal.SIGALRM, lambda *_: sys.exit(0))
signal.alarm(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
print("ready", flush=True)
outer()
