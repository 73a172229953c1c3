"""Shapes and types of the rooms that annotate them are checked while the tests run."""

import signal

from jaxtyping import install_import_hook

install_import_hook(
    ["torchloc.improvement.prox", "torchloc.lipschitz", "torchloc.sensitivity"], "beartype.beartype"
)

# A shell that starts the tests in the background has them ignore Ctrl-C, and every command they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
