"""The results of experiments: a JSON file each, which tables and plots are made from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["RESULTS", "Sample", "by_round", "directory", "is_quick", "load", "of", "series", "spread", "write"]

#: One measurement: numbers by name.
Sample = Mapping[str, Any]

RESULTS = Path(__file__).resolve().parent / "results"


def is_quick() -> bool:
    """Say whether the environment asks for a tiny run (``QUICK=1``)."""
    return os.environ.get("QUICK", "") not in ("", "0")


def directory(quick: bool) -> Path:
    """Return where results lie; those of tiny runs lie apart, so that nobody takes them for measurements."""
    return RESULTS / "quick" if quick else RESULTS


def load(path: Path, name: str) -> dict[str, Any] | None:
    """Return the results of an experiment, or None where there are none."""
    file = path / f"{name}.json"
    if not file.exists():
        return None
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write results with a line for each sample, so that two files can be compared line by line."""
    path.mkdir(parents=True, exist_ok=True)
    samples = ",\n".join("  " + json.dumps(sample) for sample in content["samples"])
    head = json.dumps({**content, "samples": []}, indent=1)
    text = head.replace('"samples": []', '"samples": [\n' + samples + "\n ]") + "\n"
    (path / f"{content['experiment']}.json").write_text(text)


def of(samples: Iterable[Sample], case: str, server: str) -> list[Sample]:
    """Return a server's measurements in a case; one in which anything failed does not count."""
    return [
        sample for sample in samples if (sample["case"], sample["server"]) == (case, server) and not sample["failed"]
    ]


def by_round(samples: Iterable[Sample], case: str, server: str, value: str) -> dict[int, float]:
    """Return what was measured, by round."""
    return {sample["round"]: sample[value] for sample in of(samples, case, server) if sample.get(value) is not None}


def series(samples: Iterable[Sample], kind: str, server: str, value: str) -> list[tuple[int, list[float]]]:
    """Return (connections, what was measured in each round) of the cases of a kind, fewest connections first."""
    found: dict[int, list[float]] = {}
    for sample in samples:
        if sample["server"] == server and sample["case"].split()[0] == kind and not sample["failed"]:
            if sample.get(value) is not None:
                found.setdefault(sample["connections"], []).append(sample[value])
    return sorted(found.items())


def spread(found: Iterable[float]) -> tuple[float, float, float]:
    """Return median, least and greatest."""
    values = list(found)
    return median(values), min(values), max(values)
