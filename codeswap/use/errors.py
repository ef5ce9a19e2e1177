"""What can go wrong for somebody who swaps faces: one sentence each, and an exit code of its own."""

import typer


class UseError(ValueError):
    """The message says what is wrong and what to do; the command line ends with `code`."""

    code = 1


def ended(error: UseError) -> typer.Exit:
    """How a command ends with it: the sentence on stderr, and its code."""
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(error.code)


class MissingModelError(UseError):
    """No trained model, or no detector, where one is needed."""

    code = 3


class UnreadableError(UseError):
    """A picture that cannot be read, or a place that cannot be written."""

    code = 4


class NoFaceError(UseError):
    """No face, or not the one that was asked for."""

    code = 5


class UnfitFaceError(UseError):
    """A face too small, seen from the side, or one that cannot be aligned."""

    code = 7
