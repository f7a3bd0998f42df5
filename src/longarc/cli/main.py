"""The command line's front door: which verb, its help, and what an error looks like."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from longarc.errors import Interrupted, LongarcError, close_matches
from longarc.stopping import stoppable
from longarc.version import __version__

VERBS = {
    "demo": "the main job on packaged real data and a packaged pretrained model, offline",
    "check": "what is wrong or noteworthy with a table before training",
    "train": "a table of texts and labels becomes a trained, evaluated run",
    "evaluate": "figures of a run's model on another labelled table",
    "predict": "labels and probabilities for every row of a table",
    "explain": "the training documents behind predictions, with contributions that add up",
    "diagnose": "whether the gradient vanishes or explodes, where, and what to change",
    "pretrain": "an encoder adapted to texts without labels: simcse, simsiam, byol, masked tokens",
    "lr": "a learning rate with reasons: a measured range, and rates in it that were tried",
    "compare": "several encoders, attentions, lengths or losses under one budget, in one chart",
    "report": "one offline HTML page for a run, or for several side by side",
    "cite": "BibTeX for exactly what a run used",
    "study": "a published claim: computed, drawn, compared with what was claimed",
}

_EPILOG = """\
longarc VERB --help shows the options of a verb, with an example.
Exit status: 0 done, 1 input that cannot be used (with one message), 2 wrong usage, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"longarc {__version__}")
        return 0
    verb, *rest = words
    if verb not in VERBS:
        print(f"longarc: no verb '{verb}'. {close_matches(verb, VERBS)}", file=sys.stderr)
        return 2
    try:
        # torchrun's other processes wait where no handler of Python's is run: SIGTERM ends them.
        with stoppable() if os.environ.get("RANK", "0") == "0" else nullcontext():
            module = importlib.import_module(f"longarc.cli.{verb}")
            return module.run(rest) or 0
    except LongarcError as error:
        from longarc.data.terminal import printable

        print(f"longarc: {printable(str(error))}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        print("longarc: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left; Python would complain at exit
        return 141  # as of a program that SIGPIPE has ended
    except OSError as error:
        if error.errno is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"longarc: {error.strerror}:{where}", file=sys.stderr)
        return 1


def usage() -> str:
    """The text of ``longarc --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return (
        "usage: longarc VERB …\n\n"
        "Train text encoders on long documents and long-tailed labels.\n\n"
        f"verbs:\n{verbs}\n\n{_EPILOG}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
