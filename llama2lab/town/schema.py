"""The shape of the town's files (data/world/*.yaml): what each entry must hold, checked by pydantic."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Pair = Annotated[list[Text], Field(min_length=2, max_length=2)]
Steps = Annotated[list[Text], Field(min_length=3, max_length=3)]
Questions = dict[Text, Texts]
Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


class Entry(BaseModel):
    """No unknown fields, no silent conversion of a number to a text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Attribute(Entry):
    """One thing known of every person, with the wordings of its statements and questions."""

    id: Text
    values: Texts | Literal["people", "numbers"]
    statements: Annotated[list[Text], Field(min_length=2)]  # with {name} and {value}
    pronoun: Texts  # with {He} or {His} for the name
    first: Texts  # the person speaks: "I live on {value}."
    group: Pair  # "lives on {value}", "live on {value}"
    questions: Texts
    follow_up: Texts  # with {he} or {his}: the person was named before
    asked: Texts  # second person, in interviews


class Place(Entry):
    """A place of the town: what one gets there, the day it is closed, and the person who runs it."""

    name: Text
    offers: Text
    closed: Day
    keeper: Text


class Procedure(Entry):
    """How something is done, in three steps; the tip is a further true sentence."""

    do: Text
    steps: Steps
    tip: Text


class Category(Entry):
    """Things that belong together."""

    name: Text
    items: Annotated[list[Text], Field(min_length=4)]
    note: Text


class Talk(Entry):
    """One matter of small talk."""

    id: Text
    says: Texts
    answers: Texts
    fits: Texts
    more: Text


class Stories(Entry):
    """Parts of little stories, with {hero} and {thing}."""

    heroes: Texts
    things: Texts
    beginnings: Texts
    middles: Texts
    ends: Texts
    lessons: Texts


class Rewriting(Entry):
    """Sentences to rewrite: actions that start with a regular verb."""

    actions: Texts


class Topic(Entry):
    """What a harmful answer says, why that is wrong, and what is better."""

    harm: Pair
    reason: Text
    instead: Text


class Deed(Topic):
    """A topic of the categories that ask for help with a deed."""

    do: Text


class Group(Topic):
    """A topic of the hateful category: words against a group of people."""

    group: Text


T = TypeVar("T", Deed, Group)


class UnsafeCategory(Entry, Generic[T]):
    """One of the categories of what the assistant must not help with."""

    wordings: Texts
    comply: Text  # with {harm0}, {harm1}
    rule: Text  # with {reason}
    topics: Annotated[list[T], Field(min_length=1)]


class UnsafeFile(Entry):
    """The three categories of the report (section 4.1)."""

    illicit: UnsafeCategory[Deed]
    hateful: UnsafeCategory[Group]
    unqualified_advice: UnsafeCategory[Deed]


class HarmlessDeed(Entry):
    """A how-to that only looks unsafe."""

    do: Text
    steps: Steps
    note: Text


class Saying(Entry):
    """A saying that only sounds unsafe."""

    do: Text
    means: Text
    note: Text


class Borderline(Entry):
    """Prompts that only look unsafe, with their harmless answers."""

    how_to: Annotated[list[HarmlessDeed], Field(min_length=1)]
    sayings: Annotated[list[Saying], Field(min_length=1)]


class Instructions(Entry):
    """Whom the assistant plays, what it loves, how it greets."""

    figures: Annotated[dict[Text, Text], Field(min_length=1)]
    hobbies: Texts
    languages: Annotated[dict[Text, Text], Field(min_length=1)]


# File name (without .yaml) -> the type of its content; characters.yaml depends on attributes.yaml: see town.py.
FILES: dict[str, Any] = {
    "attributes": Annotated[list[Attribute], Field(min_length=2)],
    "places": Annotated[list[Place], Field(min_length=2)],
    "procedures": Annotated[list[Procedure], Field(min_length=10)],
    "opposites": Annotated[list[Pair], Field(min_length=10)],
    "categories": Annotated[list[Category], Field(min_length=4)],
    "small_talk": Annotated[list[Talk], Field(min_length=4)],
    "stories": Stories,
    "rewriting": Rewriting,
    "unsafe": UnsafeFile,
    "borderline": Borderline,
    "instructions": Instructions,
    "questions": Questions,
}
