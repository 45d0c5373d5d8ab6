"""Pages as one file each: the frame with its style, and a policy that forbids every request.

A page is a Jinja template beside its module that extends `page/frame.html.jinja` and fills the
blocks header, main and footer. Values are escaped; what is markup already comes as `Markup`. Style
and scripts stand inline and are allowed by their hashes, so nothing that a value brings can run:
`style=` and `on...=` attributes are blocked too, also in the page's own markup.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loractl import leftovers

STYLE = Path(__file__).with_name("page.css")
SKIP = {"en": "Skip to the content", "zh": "跳到正文"}
UNSAFE = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
"""What would end a script or start a comment in one, as JSON escapes."""


def render(
    template: str,
    values: Mapping[str, Any],
    *,
    title: str,
    lang: str = "en",
    styles: Sequence[Path] = (),
    scripts: Sequence[Path] = (),
    data: Any = None,
    allow: Mapping[str, str] | None = None,
) -> str:
    """The HTML of a page.

    `template` is its path under reports/, such as `explain/lesson.html.jinja`. `styles` follow the
    style of the frame; `scripts` run in their order after the content. `data` is what the scripts
    read: JSON in the element with the id `data`. `allow` adds directives to the policy, such as
    {"connect-src": "'self'"}.
    """
    style_texts = [_text_of(path) for path in (STYLE, *styles)]
    script_texts = [_text_of(path) for path in scripts]
    return (
        _environment()
        .get_template(template)
        .render(
            {
                **values,
                "title": title,
                "lang": lang,
                "skip": SKIP[lang],
                "policy": policy(style_texts, script_texts, allow or {}),
                "styles": [Markup(text) for text in style_texts],
                "scripts": [Markup(text) for text in script_texts],
                "data": None if data is None else safe_json(data),
            }
        )
    )


def save(path: Path, page: str) -> None:
    """Write a page at once: beside its place, then renamed. Raises OSError.

    Bytes of a file name that are not UTF-8, which Python reads as surrogates, become a ?.
    """
    beside = leftovers.being_made(path)
    try:
        beside.write_bytes(page.encode("utf-8", errors="replace"))
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def policy(styles: Sequence[str], scripts: Sequence[str], allow: Mapping[str, str]) -> str:
    """The content security policy: nothing is loaded, and only these inline texts apply."""
    directives = {
        "default-src": "'none'",
        "style-src": " ".join(map(_hash_of, styles)),
        "script-src": " ".join(map(_hash_of, scripts)) or "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        **allow,
    }
    return "; ".join(f"{name} {sources}" for name, sources in directives.items())


def safe_json(content: Any) -> Markup:
    """JSON for a script element: no character in it can end the element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(UNSAFE))


def _hash_of(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _text_of(path: Path) -> str:
    """A style or script, read as it is hashed: a browser reads CR LF as LF."""
    return path.read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("loractl", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
