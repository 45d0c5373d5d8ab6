"""Who is held out: a share of the conversations, duplicates together."""

from collections.abc import Callable

from loractl.data import rows as formats
from loractl.data.sources import held_out
from loractl.records import Conversation, Message

# Who is held out

MANY = [
    Conversation((Message("user", f"{i}?"), Message("assistant", f"{i * i}."))) for i in range(1000)
]


def test_a_share_of_the_conversations_is_held_out_and_a_larger_share_holds_the_smaller() -> None:
    tenth = {c.messages[0].content for c in MANY if held_out(c, 0.1)}
    half = {c.messages[0].content for c in MANY if held_out(c, 0.5)}
    assert 60 < len(tenth) < 140 and 440 < len(half) < 560 and tenth < half


def test_duplicates_are_held_out_together_whatever_their_rows_look_like() -> None:
    for i in range(100):
        asked, answer = f"{i}\n?", f"{i}."
        chat = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        same = [
            {"messages": chat, "id": i},
            {"messages": [{**chat[0], "content": f" {i}\r\n?\n"}, {**chat[1], "train": False}]},
            {
                "conversations": [
                    {"from": "human", "value": asked},
                    {"from": "gpt", "value": answer},
                ]
            },
            {"instruction": asked, "input": "", "output": answer, "source": "x"},
            {"prompt": asked, "completion": answer},
            {"prompt": chat[:1], "completion": chat[1:], "tools": []},
        ]
        found = [formats.FORMATS[formats.detect(row)](row) for row in same]
        assert len({held_out(conversation, 0.5) for conversation in found}) == 1


def test_every_part_of_a_conversation_decides_but_the_ids_of_its_calls() -> None:
    def sides(change: Callable[[int], Conversation]) -> set[bool]:
        return {held_out(change(i), 0.5) for i in range(30)}

    user = Message("user", "x")
    both = {True, False}
    assert sides(lambda i: Conversation((user,), ({"name": f"f{i}"},))) == both
    assert sides(lambda i: Conversation((Message(f"r{i}", "x"),))) == both
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    calls = [({**call, "id": str(i)}, {"function": {"name": f"f{i}"}}) for i in range(30)]
    assert sides(lambda i: Conversation((Message("assistant", "", True, calls[i][1:]),))) == both
    same = sides(lambda i: Conversation((Message("assistant", "", True, calls[i][:1]),)))
    assert len(same) == 1
