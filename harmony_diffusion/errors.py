"""Every exception and warning the library raises on purpose, in one tree.

`HarmonyError` catches all of them. Bad input is also a `ValueError`, so callers who know nothing of this
module still catch it in the usual way.
"""


class HarmonyError(Exception):
    """Base of all errors raised by this library."""


class InputError(HarmonyError, ValueError):
    """A picture, mask or argument that cannot be used.

    Args:
        subject: What is at fault: a path, or the name of an argument.
        reason: What is wrong with it.
        fix: What the caller can do about it.
    """

    def __init__(self, subject: object, reason: str, fix: str = "") -> None:
        self.subject, self.reason, self.fix = str(subject), reason, fix
        super().__init__(f"{self.subject}: {reason}" + (f". {fix}" if fix else ""))


class InputTypeError(InputError, TypeError):
    """An argument of a type that is not accepted."""


class DecodeError(InputError):
    """A file that is not a picture, is damaged, or is of a format that is not read."""


class TooLargeError(InputError):
    """A picture with more pixels than the limit."""


class SizeMismatchError(InputError):
    """Pictures that must have the same size and do not."""


class MaskError(InputError):
    """A mask that cannot say what the foreground is."""


class OutputError(HarmonyError, OSError):
    """A result that cannot be written where it was asked for.

    Args:
        path: Where it was to be written.
        reason: Why it cannot be.
        fix: What the caller can do about it.
    """

    def __init__(self, path: object, reason: str, fix: str = "") -> None:
        self.path, self.reason, self.fix = str(path), reason, fix
        super().__init__(f"{self.path}: {reason}" + (f". {fix}" if fix else ""))


class CheckpointError(HarmonyError, ValueError):
    """Weights that do not fit the model: missing, extra or mis-shaped keys, or no weights at all."""


class ExportError(HarmonyError, ValueError):
    """A model that cannot be exported, or whose exported form computes something else."""


class MissingDependencyError(HarmonyError, ImportError):
    """An optional package that is needed here; the message says which extra installs it."""


class InputNote(UserWarning):
    """A picture or mask was accepted in a way the caller should know of (frame taken, mask rescaled, …)."""


class HubError(HarmonyError, OSError):
    """An upload to the Hub that failed, or cannot be started.

    Args:
        reason: Why.
        fix: What the caller can do about it.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        self.reason, self.fix = reason, fix
        super().__init__(f"{reason}. {fix}" if fix else reason)
