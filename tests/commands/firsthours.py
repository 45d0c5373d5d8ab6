"""Data of a new user's first hour: support tickets, chats and extraction, a function of a seed."""

import random

PHRASES = {
    "shipping": """
        my {thing} has still not arrived|where is the parcel with my {thing}
        tracking says my {thing} was delivered, but nothing is here
        the courier left my {thing} with a neighbor I do not know
        can you send the {thing} to another address|delivery of the {thing} is {days} days late
        the tracking number for my {thing} does not work
        I need the {thing} before {day}, when will it be shipped|my {thing} is stuck at customs
        the driver never rang and took the {thing} away again|how long does delivery to {city} take
        you sent my {thing} to my old address in {city}
    """,
    "billing": """
        I was charged twice for my {thing}|the invoice for the {thing} shows the wrong amount
        please send me a receipt for the {thing}|why was {money} taken from my card
        my bank declined the payment for the {thing}|can I pay for the {thing} in installments
        the discount code was not applied to my {thing}|there is a fee of {money} that I do not know
        I need the invoice for the {thing} with our tax number
        my statement shows {money} more than the {thing} costs
        can I change the card that you charge every month|you billed me {money} after I had canceled
    """,
    "returns": """
        I want to return the {thing} I bought on {day}|how do I send the {thing} back
        the {thing} is too small, can I exchange it|I would like my money back for the {thing}
        the return label for my {thing} cannot be printed|is it too late to give the {thing} back
        I sent the {thing} back {days} days ago and got no refund
        can I swap the {thing} for a different color|who pays for sending the {thing} back
        I ordered two and want to give one {thing} back|you refused my return of the {thing}
        where do I drop off the {thing} that I am sending back
    """,
    "account": """
        I forgot my password|I cannot log in since {day}|please delete my account and all my data
        how do I change my email address|the code for signing in never reaches me
        somebody else has used my login|my profile shows the wrong name
        I want to merge my two accounts|my account is locked after {days} attempts
        how do I turn off the newsletter|I cannot register with my address in {city}
        two-factor sign-in stopped working when I got a new phone
    """,
    "defect": """
        the {thing} arrived broken|my {thing} does not turn on
        the {thing} stopped working after {days} days
        there is a crack in the {thing}|the screen of my {thing} stays black
        the {thing} makes a loud noise|a part of the {thing} is missing from the box
        the battery of the {thing} lasts {days} minutes|my {thing} gets hot and smells of smoke
        the zip on the {thing} tore on the first day|the {thing} keeps crashing
        the {thing} leaks water
    """,
}  # fmt: skip
OPENINGS = (
    "",
    "",
    "Hello, ",
    "Hi there, ",
    "Good morning, ",
    "Dear team, ",
    "Sorry, but ",
    "Hey, ",
)
CLOSINGS = (
    "",
    "",
    " Please help.",
    " Thanks!",
    " What can I do?",
    " This is urgent.",
    " Regards, {name}",
)
WORDS = {
    "thing": "lamp|kettle|jacket|printer|backpack|headset|chair|blender|keyboard|watch|tent",
    "days": "two|three|four|five|six|nine|ten|twelve",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "city": "Leeds|Graz|Lyon|Porto|Gdansk|Bergen|Turin|Ghent",
    "money": "12.90|24 euros|49.50|8 pounds|135 dollars",
    "name": "Ana|Ben|Clara|David|Elena|Felix|Grace|Hugo|Iris",
}


def tickets(n: int, seed: int) -> list[tuple[str, str]]:
    """Different (question, category) pairs."""
    rng = random.Random(seed)
    phrases = {
        category: [one.strip() for line in text.strip().splitlines() for one in line.split("|")]
        for category, text in PHRASES.items()
    }
    found: dict[str, str] = {}
    while len(found) < n:
        category = rng.choice(list(phrases))
        opening, middle = rng.choice(OPENINGS), rng.choice(phrases[category])
        middle = middle if opening else middle[0].upper() + middle[1:]
        end = (
            "?"
            if middle.lower().startswith(("where", "can", "how", "why", "is it", "who"))
            else "."
        )
        text = opening + middle + end + rng.choice(CLOSINGS)
        found[
            text.format(**{slot: rng.choice(words.split("|")) for slot, words in WORDS.items()})
        ] = category
    return list(found.items())


HOURS = {"Leeds": "8 to 18", "Graz": "9 to 17", "Lyon": "10 to 19", "Porto": "9 to 20"}
DAYS = {"a lamp": "two days", "a chair": "nine days", "a tent": "five days", "a watch": "one day"}
GREETINGS = ("Hello", "Good morning", "Hi", "Hey there", "Good day", "Hello again")
ASKS_HOURS = (
    "when is the shop in {} open?", "what are your hours in {}?", "how long is {} open today?",
    "can I still come to your place in {}?", "I want to visit {}, when may I come?",
    "are you in {} open now?",
)  # fmt: skip
ASKS_DAYS = (
    "How long does {} take to arrive?", "And when would {} be here?",
    "I order {}: when is it here?",
    "If I buy {} now, how long must I wait?", "What is the delivery time of {}?",
    "How fast can you ship {}?",
)  # fmt: skip


def chats(n: int, seed: int) -> list[list[dict[str, str]]]:
    """Different conversations of two turns in ShareGPT's layout; each answer is the only one."""
    rng = random.Random(seed)
    found: dict[str, list[dict[str, str]]] = {}
    while len(found) < n:
        city, thing = rng.choice(list(HOURS)), rng.choice(list(DAYS))
        asked = f"{rng.choice(GREETINGS)}, {rng.choice(ASKS_HOURS).format(city)}"
        then = rng.choice(ASKS_DAYS).format(thing)
        found[asked + then] = [
            {"from": "human", "value": asked},
            {"from": "gpt", "value": f"Our shop in {city} is open from {HOURS[city]}."},
            {"from": "human", "value": then},
            {"from": "gpt", "value": f"We deliver {thing} within {DAYS[thing]}."},
        ]
    return list(found.values())
