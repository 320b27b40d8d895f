"""Compile kernels for GPUs that are not here, in processes of their own.

A process either interprets kernels or compiles them: Triton decides that at its import, for its own
library too. Run as a script, this reads cases from stdin and answers on stdout.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

CAPABILITIES = (80, 90)
_NUM_PROCESSES = 2


@dataclass
class Case:
    """One kernel with one set of types and constants.

    Attributes:
        module: where the kernel is, for instance "keyturn.kernels.rotary.device".
        kernel: its name there.
        types: argument to Triton type ("*bf16", "i32"); pointers count as aligned to 16 bytes, as
            torch's are.
        constants: all constexpr arguments; "dtype" by its name, "EARLY" for the GPUs that can.
        aligned: integer arguments that the launcher would find to be multiples of 16.
        options: num_warps, num_stages.
    """

    module: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, object]
    aligned: list[str] = field(default_factory=list)
    options: dict[str, int] = field(default_factory=dict)


@dataclass
class Compiled:
    """What the compiler made of a case for one GPU.

    Attributes:
        capability: 80 or 90.
        ptx: the code.
        num_registers: of one thread.
        num_spilled_bytes: local memory and stack of one thread; 0 unless registers ran out.
        num_shared_bytes: shared memory of one program.
    """

    capability: int
    ptx: str
    num_registers: int
    num_spilled_bytes: int
    num_shared_bytes: int


def compile_all(cases: list[Case]) -> list[list[Compiled]]:
    """Compile every case for every capability; a list per case, in the order of CAPABILITIES."""
    compiled: list[list[Compiled]] = [[] for _ in cases]
    with ThreadPoolExecutor(_NUM_PROCESSES) as pool:
        parts = pool.map(_compiled, (cases[n::_NUM_PROCESSES] for n in range(_NUM_PROCESSES)))
        for number, part in enumerate(parts):
            compiled[number::_NUM_PROCESSES] = part
    return compiled


def _compiled(cases: list[Case]) -> list[list[Compiled]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(case) for case in cases]),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [[Compiled(**one) for one in of_case] for of_case in json.loads(done.stdout)]


def check_early(compiled: Compiled) -> None:
    """Assert that a kernel launched early has loads of weights, and nothing else, under way."""
    before, wait, after = compiled.ptx.partition("griddepcontrol.wait")
    if compiled.capability < 90:
        assert not wait
        return
    assert "griddepcontrol.launch_dependents" in before
    assert "evict_first" in before  # weights
    assert "st.global" not in before
    assert "st.global" in after


def _compile(case: Case) -> list[Compiled]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(case.module), case.kernel)
    names = kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    unknown = {*case.types, *case.constants} - {*names}
    assert not unknown, f"{case.kernel} has no argument {unknown}"
    attributes = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(names)
        if signature[name].startswith("*") or name in case.aligned
    }
    constants = {
        name: getattr(triton.language, value) if name == "dtype" else value
        for name, value in case.constants.items()
    }
    made = []
    for capability in CAPABILITIES:
        if "EARLY" in constants:  # from Hopper on, as `early_launch` has it
            constants["EARLY"] = case.constants["EARLY"] and capability >= 90
        source = ASTSource(kernel, signature, constants, attributes)
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options=case.options)
        usage = _resource_usage(compiled.asm["cubin"])
        made.append(
            Compiled(
                capability=capability,
                ptx=compiled.asm["ptx"],
                num_registers=usage["REG"],
                num_spilled_bytes=usage["LOCAL"] + usage["STACK"],
                num_shared_bytes=compiled.metadata.shared,
            )
        )
    return made


def _resource_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # " REG:38 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:612 ..."
    parts = [
        word.split(":") for line in found.splitlines() if "REG:" in line for word in line.split()
    ]
    return {name: int(value) for name, value in parts}


if __name__ == "__main__":
    wanted = [Case(**case) for case in json.load(sys.stdin)]
    answer = [[asdict(one) for one in _compile(case)] for case in wanted]
    sys.stdout.write(json.dumps(answer))
