"""Each name and value in the arguments of a call needs a proof of its own."""

import pytest

from loractl.data.argument_values import Value, changed, form_of, values_of
from loractl.data.rendering import TemplateError
from tests.data.test_written import ALL_CALLS, asked, call, rendered

DUMP = "c.function.arguments | tojson"
WEATHER = call("get", city="Bern", days=3, warm=True, where={"near": ["lake", 2.5]})


def writing(expression: str) -> str:
    found = ALL_CALLS.replace("{{ " + DUMP + " }}", expression)
    assert found != ALL_CALLS
    return found


@pytest.mark.parametrize(
    ("expression", "lost"),
    [
        ("{{ c.function.arguments.values() | first }}", "name of the argument city "),
        ("{{ c.function.arguments.values() | list | tojson }}", "name of the argument city "),
        (
            "{% for k, v in c.function.arguments.items() if v is string %}{{ k }}={{ v }}"
            "{% endfor %}",
            "name of the argument days ",
        ),
        (
            "{% for k, v in c.function.arguments.items() %}{{ k }}="
            "{% if v is not boolean %}{{ v | tojson }}{% endif %}{% endfor %}",
            "value of the argument warm ",
        ),
        (
            "{% for k, v in c.function.arguments.items() %}{{ k }}="
            "{{ v.keys() | list if v is mapping else v }}{% endfor %}",
            r"value of the argument where\.near\[0\] ",
        ),
    ],
)
def test_an_argument_that_is_not_written_is_found(expression: str, lost: str) -> None:
    with pytest.raises(TemplateError, match=rf"messages\[1\].* {lost}of the call get"):
        rendered(writing(expression), asked(WEATHER))


def test_arguments_that_are_all_written_pass_in_any_form() -> None:
    loop = "{% for k, v in c.function.arguments | dictsort %}{{ k }}={{ v }};{% endfor %}"
    assert "warm=True" in rendered(writing(loop), asked(WEATHER))
    assert '"warm": true' in rendered(ALL_CALLS, asked(WEATHER))


def test_a_value_that_the_template_has_to_know_counts_as_read() -> None:
    picky = (
        "{% if c.function.arguments.city != 'Bern' %}{{ raise_exception('where?') }}{% endif %}"
        "{{ c.function.arguments | tojson }}"
    )
    assert "Bern" in rendered(writing(picky), asked(call("get", city="Bern")))


def test_a_row_with_values_of_other_types_is_proven_by_itself() -> None:
    strings = (
        "{% for k, v in c.function.arguments.items() if v is string %}{{ k }}={{ v }}{% endfor %}"
    )
    assert "city=Bern" in rendered(writing(strings), asked(call("get", city="Bern")))
    with pytest.raises(TemplateError, match="argument city"):
        rendered(writing(strings), asked(call("get", city=3)))


def test_the_form_of_arguments_has_their_types_and_not_their_values() -> None:
    assert form_of({"a": 1, "b": ["x", "y"]}) == form_of({"c": 2, "d": ["x", "y", "z"]})
    assert form_of({"a": 1}) != form_of({"a": "1"}) != form_of({"a": True})
    assert form_of([1]) != form_of([1, 2]) and form_of([{"a": 1}]) != form_of([{"a": "1"}])


def test_values_can_be_changed_one_by_one() -> None:
    given = {"a": {"b": [1, "x"]}, "c": None}
    found = dict(values_of(given))
    assert [str(value) for value in found] == ["a", "a.b", "a.b[0]", "a.b[1]", "c", "c"]
    assert changed(given, lambda value, one: one) == given
    only = Value(("a", "b", 1))
    assert changed(given, lambda v, one: "y" if v == only else one)["a"]["b"] == [1, "y"]
