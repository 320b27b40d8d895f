"""The engine: a language model whose KV cache follows the text."""

import os

# Before torch loads OpenMP: its threads wait by spinning, and beside any other busy process that
# makes two threads many times slower than one. Measured on 2 cores with other work running: a
# 400-token prefill took 1.9 to 25 s spinning and 0.7 s waiting passively. On a quiet machine a
# short spin is worth it: 19 ms a token against 18 with endless and 28 with none.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # GNU's OpenMP, which torch has on Linux
