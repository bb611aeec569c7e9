"""Pages as text and in parts."""

import re


def text_of(html):
    """Return the words of a page, without its elements, scripts and styles."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    bare = re.sub(r"<[^>]*>", " ", bare).replace("&#8239;", " ").replace("\u202f", " ")
    for entity, character in (
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
        ("&#39;", "'"),
        ("&#34;", '"'),
    ):
        bare = bare.replace(entity, character)
    return re.sub(r"\s+", " ", bare)


def section(html, name):
    return html.split(f'<section aria-labelledby="{name}"')[1].split("</section>")[0]
