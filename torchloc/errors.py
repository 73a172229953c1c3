"""The package's own exceptions.

The command line maps them to exit codes: `InputError` is 2 (the input is at fault and the message
says how to mend it), everything else is 1.
"""


class InputError(ValueError):
    """Bad input. The message names the field, the value, the index that breaks the rule, and the mend."""


class BudgetError(InputError):
    """A size that exceeds what was allowed. The message gives the size, the bytes and the way out."""


class SolveError(RuntimeError):
    """A numerical solve that did not reach its tolerance, or that has no unique answer."""


class FileError(RuntimeError):
    """A file that could not be written for reasons outside the input, such as a full disk."""
