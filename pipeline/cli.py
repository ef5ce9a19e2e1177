"""What every stage's command line shares: arguments in, one clear line and exit code 1 when the input is at fault."""

import argparse
import os
import sys
from collections.abc import Callable

PARAMS_FILE = "params.yaml"


def run_stage(main: Callable[..., None], **arguments: str) -> None:
    """Calls `main` with the command line's options; `arguments` maps option names to their help texts, all required.

    Errors a user can mend (ValueError, OSError and their subclasses, FloatingPointError) end in one message on stderr
    and exit code 1; set CODESWAP_TRACEBACK=1 to see where they came from. Anything else is a defect and is shown whole.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    for name, text in arguments.items():
        parser.add_argument(f"--{name}", required=True, help=text)
    options = vars(parser.parse_args())
    try:
        main(**options)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("CODESWAP_TRACEBACK"):
            raise
        stage = main.__module__.rpartition(".")[2] if main.__module__ != "__main__" else sys.argv[0]
        print(f"error in {stage}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
