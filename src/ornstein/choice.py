"""What is chosen: frozen values with types, that are their own configuration.

A choice is written in a recipe, read from YAML, overridden on the command line and stored with
the run. Where a field may hold one of several choices its type is a union, told apart by `kind`:
the annotation is the registry.
"""

import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field


class Choice(BaseModel):
    """A frozen value; an unknown field or a wrong type is an error, NaN and infinity too."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        revalidate_instances="never",
    )

    def but(self, **changes: Any) -> Self:
        """The same choice with some fields changed, validated as if it were written anew."""
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return self.model_validate({**kept, **changes})


class RunRef(Choice):
    """Another run that a recipe builds on (a teacher, a codec): by path, and by content.

    `weights` is the SHA-256 of the file of weights that is meant, so that a recipe names exactly
    what it was trained with; loading refuses anything else.
    """

    path: str
    average: str = Field("", description="which average of the weights; empty: the first")
    weights: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="a SHA-256, or empty where not pinned"
    )


Load = Callable[[RunRef], Any]
"""Turns a reference into the trained model behind it: `build` is handed one, so that no
family needs to know what a run is."""


def references(choice: Any) -> Iterator[RunRef]:
    """Every reference to a run in a choice."""
    if isinstance(choice, RunRef):
        yield choice
    elif isinstance(choice, Choice):
        for name in type(choice).model_fields:
            yield from references(getattr(choice, name))
    elif isinstance(choice, tuple | list):
        for item in choice:
            yield from references(item)


def pinned(choice: Any, pin: Callable[[RunRef], RunRef]) -> Any:
    """The choice with every reference to a run in it pinned."""
    if isinstance(choice, RunRef):
        return pin(choice)
    if isinstance(choice, tuple | list):
        return type(choice)(pinned(item, pin) for item in choice)
    if not isinstance(choice, Choice):
        return choice
    fields = {name: pinned(getattr(choice, name), pin) for name in type(choice).model_fields}
    changed = {k: v for k, v in fields.items() if v is not getattr(choice, k)}
    return choice.model_copy(update=changed) if changed else choice


def members(annotation: Any) -> list[Any]:
    """What a field may hold: the members of a union, or the one type."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in members(part)]
    return [annotation]


def by_kind(options: Iterable[Any]) -> dict[str, type[Choice]]:
    """The choices among some types by kind; "" stands for one that has no kind."""
    kinds: dict[str, type[Choice]] = {}
    for option in options:
        if isinstance(option, type) and issubclass(option, Choice):
            field = option.model_fields.get("kind")
            named = field is not None and get_origin(field.annotation) is Literal
            kinds |= dict.fromkeys(get_args(field.annotation) if field and named else [""], option)
    assert "" not in kinds or len(kinds) == 1, "only a `kind` tells the choices of a union apart"
    return kinds


def elements(options: Iterable[Any], container: type, index: int) -> list[Any] | None:
    """The types of what a container holds, if one of some types is such a container."""
    for option in options:
        origin, args = get_origin(option) or option, get_args(option)
        if origin is Any:
            return [Any]
        if not isinstance(origin, type) or not issubclass(origin, container) or origin is str:
            continue
        if issubclass(origin, tuple) and args and args[-1] is not ...:
            return members(args[min(index, len(args) - 1)])
        return members(args[1 if issubclass(origin, Mapping) else 0]) if args else [Any]
    return None
