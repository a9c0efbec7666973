"""The loop of the programs that damage inputs at random: what becomes of each, and everything that is wrong."""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import re
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bounded import TookTooLong, within

SECONDS = 10.0  # for one input, of computing


@dataclass(frozen=True)
class Attempt:
    """A damaged input.

    Attributes:
        call: What is done with it.
        save: Writes it to a path, which has no ending yet.
    """

    call: Callable[[], object]
    save: Callable[[Path], object]


@dataclass(frozen=True)
class Program:
    """A program that damages inputs.

    Attributes:
        description: What it does.
        kinds: The kinds of damage.
        attempts: The inputs of a kind, drawn at random, as many as are asked for; None for one that cannot be made. It
            gets the folder of the inputs at fault as well, if there is one.
        refusal: The error that says why an input is refused.
        longest: The most characters of its text.
        done: What an input is that is not refused.
    """

    description: str
    kinds: Sequence[str]
    attempts: Callable[[str, random.Random, int, Path | None], Iterable[Attempt | None]]
    refusal: type[Exception]
    longest: int
    done: str

    def fuzz(self, kind: str, *, seed: int, count: int, keep: Path | None) -> dict[str, object]:
        """Try many damaged inputs.

        Returns:
            What became of them: how many were done and refused; exceptions other than the refusal, and inputs that took
            too long, by what is wrong; the seconds of the slowest, and the most memory that was held.
        """
        outcomes: Counter[str] = Counter()
        wrong: dict[str, str] = {}
        slowest = 0.0
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        for number, attempt in enumerate(self.attempts(kind, random.Random(f"{kind} {seed}"), count, keep)):
            if attempt is None:
                outcomes["unreadable"] += 1
                continue
            started = time.process_time()
            outcome, complaint = self._outcome(attempt.call)
            slowest = max(slowest, time.process_time() - started)
            outcomes[outcome] += 1
            if complaint is not None and complaint not in wrong:
                wrong[complaint] = f"{kind}, seed {seed}, input {number}"
                if keep is not None:
                    attempt.save(keep / f"{kind}-{seed}-{number}")
        return {
            "kind": kind,
            "outcomes": dict(outcomes),
            "wrong": wrong,
            "slowest_s": round(slowest, 2),
            "peak_bytes": _peak_bytes(),
        }

    def _outcome(self, call: Callable[[], object]) -> tuple[str, str | None]:
        """How a call ends, and what is wrong with that; None where it succeeds, or says why not."""
        try:
            with warnings.catch_warnings(), within(SECONDS):
                warnings.simplefilter("ignore")
                call()
        except self.refusal as error:
            text = str(error)
            if not all(line.isprintable() for line in text.split("\n")):
                return "refused", f"an error that a terminal would obey: {text[:200]!r}"
            return "refused", f"an error of {len(text):,} characters" if len(text) > self.longest else None
        except TookTooLong as error:
            return "took too long", f"{error}, last in {_place(error)}"
        except BaseException as error:
            return "failed", f"{error.__class__.__name__}: {str(error)[:200]}, in {_place(error)}"
        return self.done, None

    def main(self) -> None:
        """Run it with the arguments of the command line, and print what became of the inputs as JSON."""
        parser = argparse.ArgumentParser(description=self.description)
        parser.add_argument("kind", choices=self.kinds)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--count", type=int, default=1000)
        parser.add_argument("--memory", type=int, default=4 << 30, help="bytes of address space")
        parser.add_argument("--keep", type=Path, help="a folder for the inputs at fault")
        options = parser.parse_args()
        faulthandler.enable()
        resource.setrlimit(resource.RLIMIT_AS, (options.memory, options.memory))
        found = self.fuzz(options.kind, seed=options.seed, count=options.count, keep=options.keep)
        print(json.dumps(found, indent=1))


def _peak_bytes() -> int:
    """The most memory that this program held. Linux's ru_maxrss would count that of the program which started it."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _place(error: BaseException) -> str:
    return ", ".join(f"{Path(at.filename).name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[-4:])
