"""What `python -m experiments.NAME` calls: flags, verbs, signals, exit codes. Effects live here.

Exit codes: 0 done; 2 the user's input is wrong (one line, no traceback); 75 stopped on request after
saving, run again to go on; 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigjax.core import compilers
from bigjax.core.errors import RunFailed, UserError, did_you_mean
from bigjax.loop.train import Stopped
from bigjax.mesh import distributed
from bigjax.run.screen import LogLines
from bigjax.verbs.export import export_verb
from bigjax.verbs.inspect import (
    checkpoints_verb,
    config_verb,
    doctor_verb,
    replay_verb,
    sharding_verb,
)
from bigjax.verbs.predict import evaluate_verb, predict_verb
from bigjax.verbs.train import train_verb

log = logging.getLogger("bigjax")

OK, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75
DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

# A new verb is one function of (raw config, overrides, options, stop), and one line here.
VERBS = {
    "train": train_verb,
    "evaluate": evaluate_verb,
    "predict": predict_verb,
    "replay": replay_verb,
    "checkpoints": checkpoints_verb,
    "sharding": sharding_verb,
    "export": export_verb,
    "config": config_verb,
    "doctor": doctor_verb,
}


def run(get_config: Callable[[], Any]) -> None:
    """Runs the experiment whose file ends in this call, as the command line says, and exits."""
    main = sys.modules["__main__"]
    name = main.__spec__.name if main.__spec__ else Path(main.__file__).stem
    sys.exit(execute(name, get_config, sys.argv[1:]))


def execute(name: str, get_config: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Runs one verb of an experiment.

    Args:
      name: the experiment's module, "experiments.NAME".
      get_config: returns its raw config.
      arguments: the command line after the module's name.

    Returns:
      The exit code. Exceptions other than the user's errors and stops pass through.
    """
    handler = LogLines()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    try:
        options, overrides = parse(name, arguments)
        # Before `initialize`: in a run of many processes JAX takes SIGTERM over, see distributed.agree.
        stop = Stop()
        if options.simulate_devices is not None:
            distributed.simulate_devices(options.simulate_devices)
        compilers.keep_compiled()
        distributed.initialize(options.coordinator, options.processes, options.process_id)
        with distributed.one_voice():
            VERBS[options.verb](get_config(), overrides, options, stop)
        distributed.end()
    except UserError as error:
        return fail(WRONG_INPUT, str(error))
    except RunFailed as failed:
        return fail(FAILED, str(failed))
    except Stopped as stopped:
        distributed.end()
        print(f"{stopped}; run the same command again to go on", file=sys.stderr)
        return STOPPED
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and (error.errno in DISK_FAILS or error.filename):
            code = FAILED if error.errno in DISK_FAILS else WRONG_INPUT
            return fail(code, f"{error.filename or 'the disk'}: {error.strerror}")
        if distributed.is_joined():
            distributed.end_all(FAILED, f"{type(error).__name__}: {error}", error)
        raise
    return OK


def fail(code: int, message: str) -> int:
    """Prints the message and returns the exit code; ends all processes of the run with both."""
    print(f"error: {message}", file=sys.stderr)
    if distributed.is_joined():
        distributed.end_all(code, message)
    return code


def parse(name: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the config overrides ("KEY=VALUE") of a command line.

    Raises:
      UserError: unknown verb or flag; the nearest is named.
    """
    overrides = [a.removeprefix("--config.") for a in arguments if a.startswith("--config.")]
    rest = [argument for argument in arguments if not argument.startswith("--config.")]
    short = name.removeprefix("experiments.")
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        allow_abbrev=False,
        exit_on_error=False,
        epilog="--config.KEY=VALUE overrides any value; the verb `config` shows them all",
    )
    parser.add_argument("verb", nargs="?", default="train", help=", ".join(VERBS))
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs", short), help="the run's folder"
    )
    parser.add_argument("--split", help="evaluate: which split (default: evaluate.splits)")
    parser.add_argument(
        "--input", type=Path, help="predict: .npz, .csv, .txt, or a folder of png/jpg"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="predict: JSON lines go here, not to the terminal; export: folder",
    )
    parser.add_argument(
        "--allow_changed", action="append", default=[], metavar="KEY", help="resume: may differ"
    )
    parser.add_argument(
        "--trust", action="store_true", help="a run's folder may name any code, and it is run"
    )
    parser.add_argument("--verify", action="store_true", help="checkpoints: hash every file again")
    parser.add_argument("--from", type=int, dest="start", help="replay: step of a checkpoint, or 0")
    parser.add_argument("--steps", type=int, help="replay: how many (default: all recorded)")
    parser.add_argument("--format", default="safetensors", help="export: safetensors")
    parser.add_argument("--family", help="export: whose layout, such as bert or roberta")
    parser.add_argument("--json", action="store_true", help="sharding, doctor: for machines")
    parser.add_argument("--simulate_devices", type=int, help="as if the CPU were so many devices")
    parser.add_argument("--coordinator", help="many processes: HOST:PORT where process 0 listens")
    parser.add_argument("--processes", type=int, help="how many (detected on known clusters)")
    parser.add_argument("--process_id", type=int, help="which of them this one is, from 0")
    try:
        options, unknown = parser.parse_known_args(rest)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        flags = [
            "--config",
            *(flag for action in parser._actions for flag in action.option_strings),
        ]
        word = unknown[0].partition("=")[0]
        near = did_you_mean(word.partition(".")[0], flags)
        raise UserError(f"unknown argument {word}{near}")
    if options.verb not in VERBS:
        raise UserError(
            f"unknown verb '{options.verb}'{did_you_mean(options.verb, VERBS)}; "
            f"verbs: {', '.join(VERBS)}"
        )
    return options, overrides


class Stop:
    """Whether SIGTERM, SIGINT or SIGHUP has come. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, self._ask)

    def __call__(self) -> bool:
        return self._asked

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, _stop_at_once)
        with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
            print(f"\n{signal.Signals(number).name}: saving, then stopping", file=sys.stderr)


def _stop_at_once(number: int, frame: Any) -> None:
    """Ends the process without waiting for a save under way; the one before it counts."""
    os._exit(FAILED)
