"""A long training on the data set `demo`, watched for memory and file descriptors that grow: bench_soak.py [options].

`bash scripts/run0000.sh` makes `demo`. The first steps and the first update of the codebooks take memory for good, so
growth counts from the next line of the table on. Exit code 1 if memory grew by more than a fiftieth from there to the
end, or descriptors by more than one.
"""
import argparse
import re
import subprocess
import sys
from pathlib import Path

from util import ROOT, UserError, number, run_program

SHOWN = 10  # rows of the table


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=number(int, 50), default=500, help="gradient steps (default 500)")
    parser.add_argument("--batch-size", type=number(int, 1), default=64, help="images a step (default 64)")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="folder that holds data/demo")
    options = parser.parse_args()
    readings, updated = watch(options)
    print("step    memory, MiB    descriptors")
    shown = options.steps // SHOWN
    for step in range(shown, options.steps + 1, shown):
        memory, descriptors = readings[step]
        print(f"{step:4}{memory:15.1f}{descriptors:15}")
    first = min(-(-updated // shown) * shown, options.steps)
    (before, files_before), (after, files_after) = readings[first], readings[options.steps]
    print(f"from step {first} on memory grew by {100 * (after / before - 1):.2f} %, descriptors by "
          f"{files_after - files_before}")
    sys.exit(after > 1.02 * before or files_after > files_before + 1)


def watch(options):
    """{step: (resident memory in MiB, open file descriptors)} of train.py, read whenever it tells of a step; and the
    first step with codebooks, or 1 without any."""
    process = subprocess.Popen(
        [sys.executable, "train.py", "demo", "0.00003", str(options.steps), "0.0001", "2", "WSDQH", "soak", "cpu",
         "--backbone-init", "lsuv", "--dropout", "0", "--batch-size", str(options.batch_size), "--cache-gb", "0",
         "--save-every", str(options.steps // 5), "--root", str(options.root)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    readings, updated = {}, 1
    for line in process.stdout:
        if step := re.search(r"step \[ *(\d+)\]", line):
            readings[int(step[1])] = reading(Path("/proc") / str(process.pid))
            if updated == 1 and "quantization loss [ 0.0000]" not in line:
                updated = int(step[1])
    if process.wait():
        raise UserError("train.py failed")
    return readings, updated


def reading(process):
    memory = re.search(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
    return int(memory[1]) / 1024, len(list((process / "fd").iterdir()))


if __name__ == "__main__":
    run_program(main)
