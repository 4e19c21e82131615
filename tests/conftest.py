"""What all tests start from."""

from __future__ import annotations

import signal

# A shell lets what it starts in the background ignore SIGINT, and its children with it: tests that interrupt a program
# would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
