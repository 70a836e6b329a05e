"""A training next to another one, such as the release's: `python experiments/compare_logs.py OURS RELEASE`.

It prints both traces of the losses with their difference, and draws them.
"""
import argparse
from pathlib import Path

import numpy as np

from util import UserError, run_program

STEPS = (1, 50, 147, 300, 600, 900, 1200)  # that are printed, with the last; 147 is flickr's first update
SMOOTHED = 20  # steps of a running mean in the figure


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Compare two training logs, ours and the release's, step by step: print embedding loss and "
                    "quantization loss at some steps with their difference, and draw both traces.")
    parser.add_argument("ours", metavar="OURS", type=Path, help="a log that train.py wrote, logs/<experiment>.log")
    parser.add_argument("release", metavar="RELEASE", type=Path, help="another log, such as the release's")
    parser.add_argument("--figure", type=Path, metavar="FILE.png",
                        help="where to draw them (default: next to OURS, with _compared.png)")
    return parser.parse_args()


def main():
    options = parse_arguments()
    from retrieval import figures  # loads matplotlib
    logs = [options.ours, options.release]
    traces = []
    for path in logs:
        traces.append(figures.read_training_log(path))
        if not len(traces[-1]):
            raise UserError(f"{path}: expected the lines of a training, 'step [   1], lr [0.0003000], …', found none")
    print_table(*traces)
    target = options.figure or options.ours.with_name(f"{options.ours.stem}_compared.png")
    figures.traces_figure(target, [(path.stem, trace) for path, trace in zip(logs, traces, strict=True)], SMOOTHED)
    print(f"saved {target}")


def print_table(ours, release):
    """Both losses of two trainings, float64 (steps, 4) as `figures.read_training_log` returns them, and differences."""
    last = int(min(ours[-1, 0], release[-1, 0]))
    print(f"{'':6}{'embedding loss':>30}{'quantization loss':>32}")
    print(f"{'step':>6}{'ours':>10}{'release':>10}{'differ':>10}{'ours':>12}{'release':>10}{'differ':>10}")
    for step in sorted({*(step for step in STEPS if step < last), last}):
        a, b = (losses_at(trace, step) for trace in (ours, release))
        if a is not None and b is not None:
            print(f"{step:6}" + "".join(f"{x:{width}.4f}{y:10.4f}{x - y:+10.4f}"
                                        for x, y, width in zip(a, b, (10, 12), strict=True)))
    both, own, other = np.intersect1d(ours[:, 0], release[:, 0], return_indices=True)
    differences = ours[own, 2] - release[other, 2]
    print(f"{len(both):,} steps in both; embedding loss: mean difference {differences.mean():+.4f}, "
          f"mean absolute difference {np.abs(differences).mean():.4f}")


def losses_at(trace, step):
    """Embedding loss and quantization loss of a step, or None."""
    row = np.flatnonzero(trace[:, 0] == step)
    return trace[row[0], 2:] if len(row) else None


if __name__ == "__main__":
    run_program(main)
