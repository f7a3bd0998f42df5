"""``python -m longarc``, also for ``torchrun -m longarc``."""

from longarc.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
