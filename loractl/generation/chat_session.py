"""A chat with a base and its adapters, which may change between two turns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from loractl.generation.hub_model import HubModel
from loractl.generation.sample import Sampling, stream
from loractl.records import Message


@dataclass
class ChatSession:
    """What was said so far, and who answers next: an adapter, or the base (None).

    Whoever answers sees the whole of it, rendered with the chat template of its own training. Each
    answer is drawn with a seed of its own, so that a conversation comes again as a whole.
    """

    speakers: HubModel
    sampling: Sampling
    active: str | None = None
    messages: list[Message] = field(default_factory=list)
    _n_answers: int = 0

    def ask(self, text: str, tell: Callable[[str], None]) -> None:
        """Say something, and have the answer told in pieces.

        An answer that is interrupted (KeyboardInterrupt) stays as far as it came, and the exception
        goes on. When nothing came, or the answer fails (TemplateError, ModelError), the
        conversation is as it was.
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
            stream(self.speakers.model, self.speakers.tokenizer, ids, self._next_sampling(), note)
            finished = True
        finally:
            self.speakers.hub.use(None)
            if finished or told:
                self.messages = [*asked, Message("assistant", "".join(told))]

    def compare(self, text: str | None = None) -> dict[str | None, str]:
        """The answers of the base and of every adapter to `text`, said next, or to the last turn.

        The conversation stays as it was. Raises ValueError when nothing has been said, and
        TemplateError or ModelError as `ask`.
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
        """Forget what was said."""
        self.messages = []

    def _next_sampling(self) -> Sampling:
        self._n_answers += 1
        return replace(self.sampling, seed=(self.sampling.seed + self._n_answers - 1) % 2**63)
