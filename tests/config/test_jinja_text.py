"""What is read from the text of a chat template without rendering it."""

from loractl.config.jinja_text import words_of


def test_the_words_of_a_template_are_its_attributes_and_quoted_words() -> None:
    text = "{# m.c #}{% if 'a b' in m.d and m['e'] %}f{{ m.get('g') }}{% generation %}{{ m.h }}"
    assert words_of(text + "{% endgeneration %}{% endif %}") == {"a b", "d", "e", "get", "g", "h"}
    assert words_of("{% if %}") == frozenset()
