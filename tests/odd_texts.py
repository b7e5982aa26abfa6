"""Unusual texts for views, and how they are shown."""

MARKUP = [
    "<img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=1>",
    "<b>",
    "<script>window.hacked=1</script>",
    "<!--",
    "<script>",
    "</script>",
    "</script><script>window.hacked=1</script>",
    "</SCRIPT ><img src=x onerror=window.hacked=1>",
    "</pre><img src=x onerror=window.hacked=1>",
    "</style>",
    "<![CDATA[",
    "]]>",
    "&lt;b&gt;",
    "&amp;",
    "'\"`${window.hacked=1}",
    "';window.hacked=1;//",
    "\\u003cimg src=x onerror=window.hacked=1>",
    "\\",
    "javascript:window.hacked=1",
    "__proto__",
    "constructor",
    "$a_b$",
]
LETTERS = [
    "🎭",
    "👩‍👩‍👧",
    "🇱🇰",
    "👍🏽",
    "1\ufe0f\u20e3",
    "אב",
    "سلام",
    "e\u0301",
    "\u0301",
    "Z" + "\u0301\u0316" * 50,
    "සිං",
    "\u200d",
    "\ufeff",
    "\U0010ffff",
]
UNSEEN = {
    " ": "␣",
    "\n": "⏎",
    "\t": "⇥",
    "\0": "␀",
    "\r": "␍",
    "\x1b[31m": "␛[31m",
    "\x7f": "␡",
    "\x85": "U+0085",
    "\u2028": "U+2028",
    "\u2029": "U+2029",
    "\u202e": "U+202E",
    "\u202eabc\u202c": "U+202EabcU+202C",
    "\u2067\u2069": "U+2067U+2069",
    "\u061c\u200f": "U+061CU+200F",
    "\ud800": "\ufffd",
    "a\udfff": "a\ufffd",
}
LONG = "<i>" + 3333 * "אx " + "</i>"  # about 10,000 characters
ODD = (
    {text: text.replace(" ", "␣") for text in [*MARKUP, *LETTERS]}
    | UNSEEN
    | {LONG: LONG.replace(" ", "␣")}
)
