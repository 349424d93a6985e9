"""What `python -m experiments.NAME` calls: verbs, signals, exit codes. Effects live here.

Exit codes: 0 done; 2 the user's input is wrong (one line, no traceback); 75 stopped on request after
saving, run again to go on; 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigjax.config import resolve as configs
from bigjax.config.values import flatten
from bigjax.core import compilers
from bigjax.core.errors import RunFailed, UserError
from bigjax.loop import stages
from bigjax.loop.train import Stopped
from bigjax.mesh import distributed
from bigjax.run.screen import LogLines
from bigjax.verbs.flags import VERBS, read_command

log = logging.getLogger("bigjax")

OK, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75
DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


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
        raw = get_config()
        options, overrides = read_command(name, arguments, lambda: config_keys(raw))
        raw, overrides = of_stage(raw, overrides, options)
        # Before `initialize`: in a run of many processes JAX takes SIGTERM over, see distributed.agree.
        stop = Stop()
        if options.simulate_devices is not None:
            distributed.simulate_devices(options.simulate_devices)
        compilers.keep_compiled()
        distributed.initialize(options.coordinator, options.processes, options.process_id)
        with distributed.one_voice():
            function_of(options.verb)(raw, overrides, options, stop)
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


def function_of(verb: str) -> Callable[..., None]:
    """What a verb calls, with (raw config, overrides, options, stop)."""
    module = importlib.import_module(f"bigjax.verbs.{VERBS[verb].file}")
    return getattr(module, f"{verb}_verb")


def fail(code: int, message: str) -> int:
    """Prints the message and returns the exit code; ends all processes of the run with both."""
    print(f"error: {message}", file=sys.stderr)
    if distributed.is_joined():
        distributed.end_all(code, message)
    return code


def of_stage(raw: Any, overrides: list[str], options: argparse.Namespace) -> tuple[Any, list[str]]:
    """The raw config and overrides of the run that is meant; its folder goes into `options`.

    Raises:
      UserError: a pipeline's stage is not named where one run is meant, or there is none of that name.
    """
    if options.workdir.exists() and not options.workdir.is_dir():
        raise UserError(f"--workdir={options.workdir}: is a file, not a folder")
    if options.stage is None:
        whole = stages.is_pipeline(raw or {}) and not (options.workdir / "config.json").exists()
        if whole and VERBS[options.verb].looks_at == "one run":
            first, *others = raw["stages"]
            raise UserError(
                f"{options.verb} looks at one run, and this experiment is a pipeline: give "
                f"--stage={first} (or {', '.join(others)}), or --stage=seed1/{first}"
            )
        return raw, overrides
    stage, own, folder = stages.one_stage(raw or {}, overrides, options.stage)
    if VERBS[options.verb].looks_at == "a stage":
        options.stage = folder.name
        return raw, overrides
    options.workdir = options.workdir / folder
    return stage, own


def config_keys(raw: Any) -> list[str]:
    """The keys that `--config.` may name; none of a config that is wrong itself."""
    with contextlib.suppress(UserError):
        if stages.is_pipeline(raw or {}):
            found = stages.resolve(raw, [])[0].values()
        else:
            found = [configs.resolve(raw or {})]
        return list(dict.fromkeys(key for one in found for key in flatten(one.values)))
    return []


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
