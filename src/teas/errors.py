"""The one error that users of the library see for bad input."""


class TeasError(ValueError):
    """Bad input: the message says what was asked, what was seen and what to change."""


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a `TeasError` that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise TeasError(f"{what} is {value!r}; choose one of {', '.join(choices)}")
