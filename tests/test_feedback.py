"""experiments/feedback.py: one round of marks, against a plain calculation."""
import numpy as np

import oracles
import quantizer
from experiments import feedback_round
from storage.retrieval_file import read_content
from test_baselines import write


def test_marks_move_the_query_by_the_pages_rule_and_marked_images_are_left_out(tmp_path, run_here):
    path = write(tmp_path / "x_retrieval.h5")
    content = read_content(path)
    right, before, after = feedback_round.measure(content, 10)
    averages, counts = [], []
    for query, labels in zip(content.qry_features, content.qry_label, strict=True):
        q = quantizer.reconstruct(content.db_codes, content.codebooks)
        wanted = (content.db_label @ labels) > 0
        shown = np.argsort(-(q @ query), kind="stable")[:10]
        rest = np.setdiff1d(np.arange(len(q)), shown)
        moved = oracles.unit(query)
        for weight, marked in ((0.75, shown[wanted[shown]]), (-0.15, shown[~wanted[shown]])):
            if len(marked):
                moved = moved + weight * np.mean([oracles.unit(q[row]) for row in marked], 0)
        counts.append(wanted[shown].sum())
        averages.append([oracles.retrieval((q[rest] @ vector)[None], labels[None], content.db_label[rest], len(rest))[0]
                         for vector in (query, moved)])
    np.testing.assert_allclose((right, before, after), (np.mean(counts), *np.mean(averages, 0)), atol=1e-5)
    code, printed = run_here("experiments.feedback", path, "--marked", 10)
    assert code == 0, printed
    assert f"{before:.4f}  {after:9.4f}" in printed
