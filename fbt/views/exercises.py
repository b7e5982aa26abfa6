"""Run the check of an exercise in the book and print its verdict."""

from collections.abc import Callable

from fbt._checks import check_callable


def grade(check: Callable[[], str | None]) -> None:
    """Run the check of an exercise and print its verdict.

    Args:
        check: returns None while the exercise has not been tried, so that nothing is
            printed; otherwise a sentence that begins "Correct" or "Not yet". An
            exception that an answer raises is printed as a hint.
    """
    check_callable("check", check)
    try:
        verdict = check()
    except Exception as error:
        verdict = f"Not yet: {type(error).__name__}: {error}"
    if verdict is not None:
        print(verdict)
