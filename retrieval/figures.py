"""Figures of a trained model: curves, rankings, a t-SNE map, codeword usage and training curves, as PNG files.

Matplotlib is optional, so import this module only where figures are wanted.
Letters: N database images, M codebooks of K = 256 codewords, D = 300, L labels.
"""
import os
import re
import textwrap

import numpy as np
from scipy.ndimage import median_filter
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from quantization import quantizer
from retrieval import metrics
from storage.files import replacing
from storage.images import thumbnail
from util import UserError, stream, unit_length

try:
    from matplotlib.figure import Figure  # draws with Agg, and needs no screen
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise UserError("figures need matplotlib: pip install -e '.[search]'") from error

PIXELS_AN_INCH = 150
KINDS = {  # colour and line of each ranking; Okabe and Ito's colours, which colour-blind readers can distinguish
    "AQD": ("#0072B2", "-"),
    "SQD": ("#D55E00", "--"),
    "feats": ("#009E73", "-."),
    "random": ("#888888", ":"),
}
HIT, MISS = "#009E73", "#D55E00"
GREY = "#C8C8C8"
PALETTE = ("#332288", "#EE7733", "#44AA99", "#CC6677", "#88CCEE", "#117733", "#DDCC77", "#882255", "#999933",
           "#AA4499")  # Tol's, which colour-blind readers can distinguish
MARKERS = "os^Dv"

SHOWN_QUERIES, SHOWN_RESULTS = 5, 10  # of rankings.png
TILES_A_LINE = 10
MAPPED = 2000  # images of the t-SNE, at most
NAMED_LABELS = 10  # labels with a colour of their own


# ---------------------------------------------------------------- all of them

def write_all(folder, retrieval, results, names, paths, training_log, seed):
    """Write every figure, and the curves as text, into `folder`.

    Args:
        retrieval: retrieval_file.Retrieval.
        results: `{ranking: (metrics.Quality, seconds)}`, see `validation.measure`.
        names: L names of labels.
        paths: `{"database": N image files, "test": Q image files}`, in the order of the retrieval's rows.
        training_log: the log file that train.py wrote.
    Returns a line for each figure that cannot be drawn, with the reason.
    """
    missing = []
    qualities = {name: quality for name, (quality, _) in results.items()}
    write_curves(folder, qualities)
    precision_recall_figure(folder / "precision_recall.png", qualities)
    precision_figure(folder / "precision_at_n.png", qualities)
    codeword_figure(folder / "codewords.png", retrieval.db_codes)

    def draw(name, content, figure, why_not):
        (folder / name).unlink(missing_ok=True)  # it may show another checkpoint
        if len(content):
            figure(folder / name, content)
        else:
            missing.append(f"no {name}: {why_not}.")

    draw("rankings.png", sample_rankings(retrieval, names, paths, seed), ranking_figure,
         "no query has a relevant image in the database")
    draw("training.png", read_training_log(training_log), training_figure, f"{training_log} has no steps")
    draw("tsne.png", retrieval.db_features if len(retrieval.db_features) > 3 else (),
         lambda path, features: tsne_figure(path, features, retrieval.db_label, names, seed),
         "the database holds too few images for a map")
    return missing


def _save(figure, path):
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=PIXELS_AN_INCH)


def _panel(title, x, y, size=(7, 5)):
    """A figure of one panel with a title, axis labels and a light grid."""
    figure = Figure(size, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    _plain(axes)
    return figure, axes


def _plain(axes):
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes):
    """A legend below the panel, where it hides nothing."""
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                       fontsize=9.5)


# ---------------------------------------------------------------- curves

def write_curves(folder, qualities):
    """Write `<ranking>_curve.txt` in the release's format: a row of recall, a row of precision, at 1 … topk results."""
    for name, quality in qualities.items():
        if name != "random":
            with replacing(folder / f"{name}_curve.txt") as temporary:
                np.savetxt(temporary, [quality.recall, quality.precision])


def precision_recall_figure(path, qualities):
    """Mean precision over mean recall of each ranking. qualities: `{ranking: metrics.Quality}`."""
    topk = len(qualities["AQD"].precision)
    figure, axes = _panel("Precision and recall, mean over the queries",
                          f"recall (1: all that is relevant among the first {topk:,} results)",
                          "precision (share of relevant results)")
    _plot_rankings(axes, qualities, lambda quality: quality.recall)
    axes.set_xlim(0, 1)
    _save(figure, path)


def precision_figure(path, qualities):
    """Mean precision of each ranking at each number of results. qualities: `{ranking: metrics.Quality}`."""
    topk = len(qualities["AQD"].precision)
    figure, axes = _panel("Precision of the first N results, mean over the queries", "N (results a query)",
                          "precision@N (share of relevant results)")
    _plot_rankings(axes, qualities, lambda quality: np.arange(1, topk + 1))
    axes.set_xscale("log")
    axes.set_xlim(1, max(topk, 2))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    _save(figure, path)


def _plot_rankings(axes, qualities, along):
    """Plot a line of precision for each ranking, with its MAP in the legend."""
    highest = np.nan
    for name, (colour, line) in KINDS.items():
        quality = qualities[name]
        axes.plot(along(quality), quality.precision, line, color=colour, linewidth=1 if name == "random" else 2,
                  marker="." if len(quality.precision) < 20 else "",
                  label=f"{'random order' if name == 'random' else name} (MAP {quality.map:.3f})")
        highest = np.fmax(highest, quality.precision.max())
    axes.set_ylim(0, min(1.02, 1.1 * highest) if np.isfinite(highest) else 1)
    if not np.isfinite(highest):
        axes.text(0.5, 0.5, "no query has a relevant result", transform=axes.transAxes, ha="center")
    _legend(axes)


# ---------------------------------------------------------------- rankings

def sample_rankings(retrieval, names, paths, seed):
    """Rows for `ranking_figure`: some seeded queries that have a relevant image, and their first AQD results."""
    r = retrieval
    query_bits, database_bits = metrics.pack_labels(r.qry_label), metrics.pack_labels(r.db_label)
    answerable = (r.qry_label & r.db_label.any(0)).any(1)
    order = stream(seed, "shown queries").permutation(len(r.qry_label))
    queries = np.sort(order[answerable[order]][:SHOWN_QUERIES])
    scores = quantizer.quantized_scores(r.queries[queries], r.db_codes, r.codebooks)
    top = metrics.rank(scores, min(SHOWN_RESULTS, len(r.db_label)))

    def named(labels):
        return ", ".join(names[label] for label in np.flatnonzero(labels)) or "no label"

    return [(thumbnail(paths["test"][query]), named(r.qry_label[query]),
             [(thumbnail(paths["database"][image]), named(r.db_label[image]),
               bool((database_bits[image] & query_bits[query]).any())) for image in images])
            for query, images in zip(queries, top, strict=True)]


def ranking_figure(path, rows, title=None):
    """Queries and their results, best first; a line has ten results, and further ones are below it.

    Args:
        rows: (query image, caption, [(result image, caption, hit), …]) of each query. An image is uint8 RGB
            (h, w, 3), or None where the file is missing; the query's may be a str, the words that were searched for.
            hit is True, False, or None where it is not known.
    """
    tile, gap, first, captions, head = 1, 0.12, 1.5, 0.55, 0.62  # lengths in tiles; results begin at `first`
    columns = min(TILES_A_LINE, max(4, *(len(results) for _, _, results in rows)))
    lines = [max(1, -(-len(results) // TILES_A_LINE)) for _, _, results in rows]
    width = first + columns * (tile + gap)
    height = head + sum(lines) * (tile + captions)
    figure = Figure((1.15 * width, 1.15 * height))
    axes = figure.add_axes((0, 0, 1, 1))
    top = head
    _head(axes, title, rows, first, width, gap)
    for (image, caption, results), count in zip(rows, lines, strict=True):
        if top > head:
            axes.plot((gap, width - gap), (top - 0.07, top - 0.07), color=GREY, linewidth=0.8)
        _tile(axes, image, caption, None, gap, top)
        for i, (result, text, hit) in enumerate(results):
            line, column = divmod(i, TILES_A_LINE)
            mark = {True: "✓ ", False: "✗ ", None: ""}[hit]
            _tile(axes, result, f"{mark}{i + 1}. {text}", hit, first + column * (tile + gap),
                  top + line * (tile + captions))
        top += count * (tile + captions)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    _save(figure, path)


def results_figure(path, photo, words, results):
    """A query, a photo (a Path) or else words, and its results, a list of `searcher.Result`."""
    query = (thumbnail(photo), os.fsencode(photo.name).decode(errors="replace")) if photo else (words, "")
    ranking_figure(path, [(*query, [(thumbnail(result.path), f"{result.cosine:.3f}", result.hit)
                                    for result in results])])


def _head(axes, title, rows, first, width, gap):
    """Draw the headings above the tiles, and what the frames mean if there are any."""
    style = {"fontsize": 10, "va": "center", "parse_math": False}
    axes.text(gap, 0.35, "query", weight="bold", **style)
    axes.text(first, 0.35, title or "results, best first", weight="bold", **style)
    if any(hit is not None for _, _, results in rows for _, _, hit in results):
        axes.text(width - 1.45, 0.35, "✓ relevant", color=HIT, ha="right", **style)
        axes.text(width - gap, 0.35, "✗ not relevant", color=MISS, ha="right", **style)


def _tile(axes, image, caption, hit, left, top):
    """Draw an image, its frame and its caption in the square of side 1 at (left, top), on its lower edge."""
    words = "missing" if image is None else image if isinstance(image, str) else None
    h, w = np.array(image.shape[:2]) / max(image.shape[:2]) if words is None else (1, 1)
    x, y = left + (1 - w) / 2, top + 1 - h
    if words is not None:
        axes.add_patch(Rectangle((x, y), w, h, color=GREY, fill=image is None))
        axes.text(left + 0.5, top + 0.5, _shorten(words, 13, 5), ha="center", va="center", fontsize=9,
                  color="#666666" if image is None else "black", parse_math=False)
    else:
        axes.imshow(image, extent=(x, x + w, y + h, y))
    if hit is not None:
        axes.add_patch(Rectangle((x, y), w, h, fill=False, color=HIT if hit else MISS, linewidth=3))
    axes.text(left + 0.5, top + 1.06, _shorten(caption), ha="center", va="top", fontsize=7.5, parse_math=False)


def _shorten(caption, width=19, lines=3):
    """A caption cut to at most `lines` lines of `width` characters, ending in … if it was longer."""
    parts = [part for line in caption.splitlines() for part in textwrap.wrap(line, width)]
    if len(parts) > lines:
        parts = [*parts[:lines - 1], parts[lines - 1][:width - 1].rstrip(" ,") + "…"]
    return "\n".join(parts)


# ---------------------------------------------------------------- t-SNE

def tsne_map(features, seed):
    """A seeded t-SNE of the directions of at most MAPPED embeddings, float32 (N, D): rows, int64 (n,), and (n, 2)."""
    rng = stream(seed, "t-SNE")
    rows = np.sort(rng.permutation(len(features))[:MAPPED])
    directions = unit_length(features[rows])
    spread = directions.std(0).max() > 1e-6  # otherwise all embeddings are equal, without principal axes
    tsne = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init="pca" if spread else "random",
                random_state=int(rng.integers(2**31)))
    with threadpool_limits(1):  # one thread sums in one order
        return rows, tsne.fit_transform(directions)


def main_labels(labels):
    """The most frequent labels, int64 (at most 10,), and for each image the first of them that it has, or −1: (N,)."""
    counts = labels.sum(0, dtype=np.int64)
    frequent = np.argsort(-counts, kind="stable")[:NAMED_LABELS]
    frequent = frequent[counts[frequent] > 0]
    has = labels[:, frequent] > 0  # (N, labels that have a colour)
    return frequent, np.where(has.any(1), frequent[has.argmax(1)] if len(frequent) else -1, -1)


def tsne_figure(path, features, labels, names, seed):
    """A map of at most 2,000 database embeddings, coloured by label.

    Args:
        features: float32 (N, D), N > 3.
        labels: 0/1 (N, L); the most frequent ones of the whole database are coloured.
        names: L names.
    """
    rows, places = tsne_map(features, seed)
    frequent, main = main_labels(labels)
    figure = Figure((9, 6.5), layout="constrained")
    shown = f"{len(rows):,} of the {len(features):,}" if len(rows) < len(features) else f"the {len(rows):,}"
    axes = figure.add_subplot(title=f"t-SNE of {shown} database embeddings", xticks=(), yticks=(),
                              xlabel="near each other: similar to the model (the axes have no unit)")
    groups = [(label, names[label], PALETTE[i], MARKERS[i % len(MARKERS)]) for i, label in enumerate(frequent)]
    groups.append((-1, "other or none", GREY, "."))
    groups = [group for group in groups if group[0] in main[rows]]
    for label, _, colour, marker in groups:
        axes.scatter(*places[main[rows] == label].T, s=14, color=colour, marker=marker, linewidths=0,
                     zorder=1 if label == -1 else 2)
    legend = figure.legend(axes.collections, map(str, range(len(groups))), loc="outside right upper", frameon=False,
                           title="label" if labels.sum(1).max() <= 1 else "most frequent label", markerscale=2)
    for text, (_, name, _, _) in zip(legend.get_texts(), groups, strict=True):
        text.set_parse_math(False)  # a name may contain a $
        text.set_text(textwrap.shorten(name, 24, placeholder="…"))
    _save(figure, path)


# ---------------------------------------------------------------- codewords

def codeword_usage(codes):
    """How many images use each codeword, int64 (M, K), and the entropy of each codebook in bits, (M,)."""
    counts = np.stack([np.bincount(column, minlength=quantizer.CODEWORDS) for column in codes.T])
    shares = counts / len(codes)
    return counts, -(shares * np.log2(np.where(counts, shares, 1))).sum(1)


def codeword_figure(path, codes):
    """Images a codeword, most used first, for each codebook. codes: uint8 (N, M)."""
    counts, entropies = codeword_usage(codes)
    codewords = counts.shape[1]
    figure, axes = _panel(f"Codewords that {len(codes):,} database images use", "codewords, most used first",
                          "images that use it", (8, 5))
    edges = np.arange(codewords + 1)
    for m, (used, entropy) in enumerate(zip(counts, entropies, strict=True)):
        unused = int((used == 0).sum())
        heights = np.sort(used)[::-1].astype(float)
        heights[heights == 0] = np.nan
        axes.stairs(heights, edges, color=PALETTE[m], linewidth=2, baseline=None,
                    label=f"codebook {m + 1}: {unused} of {codewords} unused, entropy {entropy:.2f} bits")
    axes.axhline(len(codes) / codewords, color="#888888", linewidth=1, linestyle=":",
                 label=f"all used equally: 0 of {codewords} unused, entropy {np.log2(codewords):.2f} bits")
    axes.set_yscale("log")
    axes.set_ylim(0.8, max(12, 1.5 * counts.max()))
    axes.set_xlim(0, codewords)
    axes.set_xticks(range(0, codewords + 1, codewords // 8))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
    _legend(axes)
    _save(figure, path)


# ---------------------------------------------------------------- training

def read_training_log(path):
    """The steps in a training log: float64 (steps, 4) of step, learning rate, L_emb and λ·L_q.

    A log may hold several runs. Where the step number falls, a run was started again or resumed, and its steps replace
    the earlier ones. Without the file there are no steps.
    """
    if not path.is_file():
        return np.empty((0, 4))
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = re.findall(r"step \[ *(\d+)\], lr \[ *(\S+?)\], embedding loss \[ *(\S+?)\], "
                       r"quantization loss \[ *(\S+?)\]", text)
    history = []
    for row in lines:
        row = [float(value) for value in row]
        while history and history[-1][0] >= row[0]:
            history.pop()
        history.append(row)
    return np.array(history).reshape(-1, 4)


def training_figure(path, history):
    """Both losses and the learning rate over the steps. history: see `read_training_log`."""
    steps, rates, embedding, quantization = history.T
    figure = Figure((7.5, 6.5), layout="constrained")
    figure.suptitle("Training")
    panels = figure.subplots(3, sharex=True, height_ratios=(3, 3, 1.2))
    _plot_loss(panels[0], steps, embedding, PALETTE[0], "embedding loss")
    _plot_loss(panels[1], steps, quantization, PALETTE[1], "λ · quantization loss")
    panels[2].step(steps, rates, where="post", color="#444444")
    panels[2].set(xlabel="step", ylabel="learning rate", ylim=(0, 1.15 * rates.max() or 1))
    panels[2].ticklabel_format(axis="y", scilimits=(0, 0))
    for panel in panels:
        _plain(panel)
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    _save(figure, path)


def traces_figure(path, traces, smoothed):
    """The losses of several trainings in one picture.

    Args:
        traces: (name, history as from `read_training_log`) of each.
        smoothed (int): steps of a running median.
    """
    figure = Figure((8, 6), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    for (name, history), colour in zip(traces, PALETTE, strict=False):
        for panel, losses in zip(panels, history.T[2:], strict=True):
            panel.plot(history[:, 0], losses, color=colour, alpha=0.25, linewidth=0.8)
            panel.plot(history[:, 0], median_filter(losses, smoothed, mode="nearest"), color=colour, linewidth=2,
                       label=name)
    for panel, name in zip(panels, ("embedding loss", "λ · quantization loss"), strict=True):
        panel.set_ylabel(name)
        _plain(panel)
    panels[0].legend(loc="best", frameon=False, fontsize="small")
    panels[1].set_xlabel("step")
    _save(figure, path)


def _plot_loss(axes, steps, losses, colour, name):
    """Plot the loss of each step; where there are many, pale behind their running median."""
    width = len(steps) // 20
    axes.set_ylabel(name)
    if width < 3:
        axes.plot(steps, losses, color=colour, marker="." if len(steps) < 20 else "")
        return
    axes.plot(steps, losses, color=colour, alpha=0.35, linewidth=0.8, label="each step")
    axes.plot(steps, median_filter(losses, width, mode="reflect"), color=colour, linewidth=2,
              label=f"median of {width} steps")
    axes.legend(loc="best", ncols=2, frameon=False)
