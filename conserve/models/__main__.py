"""`python -m conserve.models`: unpacks the default model where needed, verifies it, prints its folder."""

from __future__ import annotations

import logging
import os
import sys

from conserve.models.default import DEFAULT_MODEL, ModelError, default_model_folder, ensure_default_model


def main() -> int:
    """Prints the folder to standard output, progress and errors to standard error."""
    # One bar of transformers' is not its logging's; tqdm reads the variable when it is imported, which is later.
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not default_model_folder().exists():
        print(f"model: unpacking {DEFAULT_MODEL} into {default_model_folder()}", file=sys.stderr, flush=True)
    try:
        folder = ensure_default_model(thorough=True)
    except ModelError as error:
        print(f"model: error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
