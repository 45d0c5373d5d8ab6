"""A chat with a base and its adapters, which may be switched between turns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from loractl.generation.hub_model import HubModel
from loractl.generation.sample import Sampling, stream
from loractl.records import Message


@dataclass
class ChatSession:
    """Who answers next, an adapter or the base (None), and the conversation of each so far.

    A conversation is rendered with the chat template that its speaker was trained with. Each answer
    has its own seed, so that a whole conversation can be reproduced.
    """

    speakers: HubModel
    sampling: Sampling
    active: str | None = None
    conversations: dict[str | None, list[Message]] = field(default_factory=dict)
    _n_answers: int = 0

    @property
    def messages(self) -> list[Message]:
        """The conversation with the one who is active."""
        return self.conversations.get(self.active, [])

    def ask(self, text: str, tell: Callable[[str], None]) -> None:
        """Add a user turn, and stream the answer to `tell`.

        An interrupted answer (KeyboardInterrupt) is kept as far as it got, and the exception is
        passed on. If there is no text yet, or the answer fails (TemplateError, ModelError), the
        conversation stays as it was.
        """
        asked = [*self.messages, Message("user", text)]
        told: list[str] = []

        def note(piece: str) -> None:
            told.append(piece)
            tell(piece)

        ids = self.speakers.prompt_ids(self.active, asked)
        self.speakers.hub.use(self.active)
        finished = False
        try:
            speech = self.speakers.speech(self.active)
            stream(self.speakers.model, speech, ids, self._next_sampling(), note)
            finished = True
        finally:
            self.speakers.hub.use(None)
            if finished or told:
                answer = Message("assistant", "".join(told))
                self.conversations[self.active] = [*asked, answer]

    def compare(self, text: str | None = None) -> dict[str | None, str]:
        """The answers of the base and of every adapter to `text`, or to the last user turn, each
        after the conversation of the one who is active.

        All conversations stay as they were. Raises ValueError if there is no user turn yet, and
        TemplateError or ModelError like `ask`.
        """
        asked = [*self.messages]
        if text is not None:
            asked.append(Message("user", text))
        while asked and asked[-1].role != "user":
            asked.pop()
        if not asked:
            raise ValueError("nothing has been said yet")
        names = [None, *self.speakers.hub.names]
        prompts = [self.speakers.prompt_ids(name, asked) for name in names]
        answers = self.speakers.answers(prompts, names, self._next_sampling())
        return {name: one.text for name, one in zip(names, answers, strict=True)}

    def reset(self) -> None:
        """Forget the conversation of the one who is active."""
        self.conversations.pop(self.active, None)

    def _next_sampling(self) -> Sampling:
        self._n_answers += 1
        return replace(self.sampling, seed=(self.sampling.seed + self._n_answers - 1) % 2**63)
