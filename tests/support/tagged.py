"""Photos that carry tags."""
from pathlib import Path

TAGGED = Path(__file__).resolve().parent / "tagged_photos"  # which make.sh there made


XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/" {attributes}>{content}</rdf:Description>
</rdf:RDF></x:xmpmeta>"""


def subject(*keywords):
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return XMP.format(attributes="", content=f"<dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>")
