"""The optional C extension; everything else is in pyproject.toml.

Without a compiler the installation goes on without it, and torch computes decode steps. The library
has no Python in it: it is loaded with ctypes, so only Linux, where any shared object will do, is
built for, and one wheel serves every CPython from 3.11 on ("abi3").
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

CPU_STEP = Extension(
    "keyturn.kernels.cpu._cpu_step",
    ["kernels/cpu/cpu_step.c"],
    depends=[str(header) for header in sorted(Path("kernels/cpu").glob("*.h"))],
    # Products and sums are joined only where the source says so: the order of every sum is fixed.
    extra_compile_args="-std=gnu11 -O2 -g0 -ffp-contract=off -fno-math-errno -Wno-psabi".split(),
    libraries=["m"],
    optional=True,
    py_limited_api=True,
)

if sys.platform == "linux":
    setup(ext_modules=[CPU_STEP], options={"bdist_wheel": {"py_limited_api": "cp311"}})
else:
    setup()
