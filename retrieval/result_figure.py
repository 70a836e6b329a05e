"""A query and its results as a picture. It needs matplotlib, so import this module only where a picture is wanted."""
import os

from retrieval.figures import ranking_figure, thumbnail


def draw(path, photo, words, results):
    """Write the picture, PNG, of a photo (a Path) or else of words, and of what was found, a list of Result."""
    query = (thumbnail(photo), os.fsencode(photo.name).decode(errors="replace")) if photo else (words, "")
    ranking_figure(path, [(*query, [(thumbnail(result.path), f"{result.cosine:.3f}", result.hit)
                                    for result in results])])
