"""One spelling of a tag that people type in many ways, and the tags in a text of words.

The programs that read tags and an index that is searched by words must agree on both.
"""
import re
import unicodedata

SPACE = "_"  # between the words of a tag, as in the files of word vectors; in tag lists a space ends a tag
MOST_WORDS = 6  # of a tag that is looked for in a text
ACCENTS = re.compile("([a-z])[\u0300-\u036f]+")  # on Latin letters; in other scripts such marks make other letters


def fold(text):
    """A tag in its one spelling: `  Café  del Mar` becomes `cafe_del_mar`. Empty if no visible letter is left."""
    text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize("NFC", ACCENTS.sub(r"\1", text))
    words = ("".join(letter for letter in word if unicodedata.category(letter)[0] != "C") for word in text.split())
    return SPACE.join(filter(None, words))


def tags_in(text, known):
    """The tags that a text names, in order. Adjacent words that together are a tag of `known` become that tag.

    A word that belongs to no known tag is in the list by itself, in lower case.
    """
    words, found = text.split(), []
    while words:
        longest = range(min(len(words), MOST_WORDS), 0, -1)
        count, tag = next(((count, tag) for count in longest for tag in _spellings(words[:count]) if tag in known),
                          (1, words[0].lower()))
        found.append(tag)
        words = words[count:]
    return found


def _spellings(words):
    tag = SPACE.join(words)
    return tag, tag.lower(), fold(tag)
