"""The console of the command line, and silence from the libraries below."""

from __future__ import annotations

import os
import warnings

from rich.console import Console


def terminal(*, to_stderr: bool = False) -> Console:
    """A console for people; with ``--json`` it goes to stderr, so that stdout stays machine-readable."""
    console = Console(stderr=to_stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100  # a file or a pipe: rich would assume 80 and wrap paths
    return console


def quiet_libraries() -> None:
    """Let progress and warnings of transformers, datasets and torch give way to longarc's own.

    ``LONGARC_DEBUG=1`` lets everything through.
    """
    if os.environ.get("LONGARC_DEBUG"):
        return
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings(
        "ignore", module=r"(torch|transformers|accelerate|datasets|sklearn)\b.*"
    )
