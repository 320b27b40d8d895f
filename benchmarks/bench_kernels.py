"""Every kernel against the device's copy bandwidth, against torch and against public rivals.

One section a kernel; all baselines are measured in the same run. Needs a CUDA device; with
TRITON_INTERPRET=1 and `--tiny --device cpu` it only shows that it works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench_matmul
import harness
import torch
from gpu import kernels_dependency_record, kernels_rope_shift, kernels_slot_attention
from gpu.kernel_timer import Bench, copy_bandwidth

Section = Callable[[Bench], tuple[dict[str, Any], list[dict[str, Any]]]]

# A section prints its table and returns its figures and its checks.
SECTIONS: dict[str, Section] = {
    "rope_shift": kernels_rope_shift.run,
    "matmul": bench_matmul.run,
    "slot_attention": kernels_slot_attention.run,
    "dependency_record": kernels_dependency_record.run,
}


def main() -> None:
    """Run the sections, print, and save if asked to."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=[*SECTIONS])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--tiny", action="store_true", help="shapes that only test the benchmark")
    parser.add_argument("--sweep", action="store_true", help="try tiles instead of measuring")
    parser.add_argument("--commit", help="what runs here, where git cannot say it")
    parser.set_defaults(model=None)
    args = parser.parse_args()
    if args.save and (args.tiny or args.sweep):
        parser.error("--tiny and --sweep give no figures to --save")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --tiny --device cpu shows that the benchmark works")
    torch.manual_seed(args.seed)
    bandwidth = copy_bandwidth(device, args.repeats, args.tiny)
    print(f"device copy, bytes read plus written: {bandwidth / 1e12:.2f} TB/s")
    bench = Bench(device, args.repeats, args.tiny, args.sweep, bandwidth)
    figures: dict[str, Any] = {"cuda": torch.version.cuda, "copy_bytes_per_s": bandwidth}
    checks = []
    for name in args.only:
        print(f"\n{name}")
        with torch.inference_mode():
            figures[name], found = SECTIONS[name](bench)
        checks += found
    harness.finish("kernels", args, figures, checks)


if __name__ == "__main__":
    main()
