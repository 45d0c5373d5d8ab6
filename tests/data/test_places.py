"""The places of all contents, found with one rendering, are those where they stand."""

from loractl.data.places import places_of
from loractl.data.rendering import Renders
from loractl.records import Message
from tests.tiny import CHATML, make_tokenizer

SAID = ["hi", " hi\n", "<think>\nx\n</think>\n\nhi", "assistant", "hi"]
MESSAGES = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(SAID)]


def renders_of(template: str) -> Renders:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Renders(tokenizer, MESSAGES)


def test_equal_contents_are_told_apart_and_trimmed_ones_found() -> None:
    renders = renders_of(CHATML.replace("m['content']", "m['content'] | trim"))
    found = places_of(renders)
    assert list(found) == list(range(len(SAID)))
    texts = [renders.whole[start:end] for start, end in found.values()]
    assert texts == [text.strip() for text in SAID]
    assert sorted(found.values()) == list(found.values())


def test_a_template_that_reads_or_repeats_what_is_said_gives_none() -> None:
    for content in ("m['content'] | upper", "m['content'] * 2"):
        assert places_of(renders_of(CHATML.replace("m['content']", content))) == {}
    reads = CHATML.replace("m['content']", "('' if 'hi' in m['content'] else 'no ') + m['content']")
    assert places_of(renders_of(reads)) == {}
