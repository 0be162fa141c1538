"""The benchmarks are a package in the project's root, which `tests` puts on the path; an installed package has none."""

from pathlib import Path

if not (Path(__file__).parents[2] / "benchmarks").is_dir():
    collect_ignore_glob = ["test_*.py"]
